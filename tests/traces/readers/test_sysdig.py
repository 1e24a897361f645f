import gzip
import io
import zipfile

import pytest

from syscall_lm.traces import grouping, sources, sysdig_events
from syscall_lm.traces.ingest import ingest
from syscall_lm.traces.lost_events import LOST
from syscall_lm.traces.readers import Counters, Options, lid_ds, sysdig


@pytest.mark.parametrize(
    ("line", "tid", "command", "call"),
    [
        ("34378 12:02:36.269753803 2 echo (7896) > close fd=3(/usr/lib/locale)", 7896, "echo", "close"),
        ("34378 12:02:36.269753803 2 echo (7896) < close res=0", 7896, "echo", "close"),
        ("34378 12:02:36.269753803 2 echo (7896) close fd=3 res=0", 7896, "echo", "close"),
        ("34378 1447000000.269753803 2 echo (7896) > close ", 7896, "echo", "close"),
        ("34378 12:02:36.269753803 2 Web Content (7896) > close ", 7896, "Web Content", "close"),
        ("34378 12:02:36.269753803 2 a (1) > open (7896) > close ", 7896, "a (1) > open", "close"),
        ("34378 12:02:36.269753803 2 a (7896) > open name=x (1) > close ", 7896, "a", "open"),
        ("34378 12:02:36.269753803 2 more-than-15-bytes (7896) > open ", 7896, "more-than-15-bytes", "open"),
        ("34378 12:02:36.269753803 2 web (0123456789ab) nginx (7896:7) > read fd=3", 7896, "nginx", "read"),
        ("34378 12:02:36.269753803 2 host (host) nginx (7896:7896) > read fd=3", 7896, "nginx", "read"),
        ("34378 12:02:36.269753803 2 x (7) > syscall ID=318(getrandom) nativeID=318", 7, "x", "getrandom"),
        ("34378 12:02:36.269753803 2 x (7) > pread fd=3", 7, "x", "pread64"),
        ("34378 12:02:36.269753803 2 x (7) > umount name=/", 7, "x", "umount2"),
        ('{"evt.cpu":1,"evt.dir":">","evt.num":7,"evt.type":"ioctl","proc.name":"b","thread.tid":9}', 9, "b", "ioctl"),
    ],
)  # fmt: skip
def test_one_line_is_one_call(read, line, tid, command, call):
    traces, _, names = read("sysdig", line.encode())
    assert (traces[0].pid, traces[0].command, names) == (tid, command, [[call]])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 12:02:36.269753803 2 x (7) > switch next=9 pgft_maj=0", sysdig_events.NOT_A_CALL),
        ("1 12:02:36.269753803 2 x (7) > procexit status=0", sysdig_events.NOT_A_CALL),
        ("1 12:02:36.269753803 2 x (7) > drop ratio=2", LOST),
        ("1 12:02:36.269753803 2 x (7) < clone res=0 exe=x", grouping.CHILD),
        ("1 12:02:36.269753803 2 x (7) > syscall nativeID=9", sysdig_events.NAMELESS),
        ("hello", sysdig.NOT_AN_EVENT),
        ('{"evt.type":"open"}', sysdig.NOT_AN_EVENT),
        ("", sysdig.BLANK),
    ],
)
def test_one_line_is_no_call(read, line, reason):
    assert read("sysdig", line.encode() + b"\n")[1].skipped == {reason: 1}


def test_a_call_counts_where_it_is_entered_and_else_where_it_is_left(read):
    rows = ["< read res=1", "> open ", "< open fd=3", "> close ", "> write ", "< write res=1", "< clone res=8"]
    data = "".join(f"{i} 12:02:36.{i:09} 2 x (7) {row}\n" for i, row in enumerate(rows)).encode()
    assert read("sysdig", data)[2] == [["read", "open", "close", "write", "clone"]]


def test_the_end_of_a_thread_and_silence_end_a_trace(read):
    rows = [(1, "> open"), (2, "> procexit status=0"), (3, "> read"), (100, "> write"), (50, "> brk"), (52, "> close")]
    data = "".join(f"1 {t // 3600:02}:{t // 60 % 60:02}:{t % 60:02}.5 2 x (7) {row}\n" for t, row in rows).encode()
    assert read("sysdig", data)[2] == [["open"], ["read", "write", "brk", "close"]]
    # A clock that jumps back is no silence.
    assert read("sysdig", data, Options(max_gap=30))[2] == [["open"], ["read"], ["write", "brk", "close"]]


# ---------------------------------------------------------------- LID-DS


@pytest.mark.parametrize(
    ("line", "thread", "command", "call"),
    [
        ("51156 01:47:31.305898142 3 33 apache2 29915 > close fd=12(<f>/x)", 29915, "apache2", "close"),
        ("51156 01:47:31.305898142 3 33 apache2 29915 > close", 29915, "apache2", "close"),
        ("51156 01:47:31.305898142 3 33 a 1 > open 29915 > close ", 29915, "a 1 > open", "close"),
        ("1631610000123456789 0 1587 python 35377 getpid > arg0=0x7f", 35377, "python", "getpid"),
        ("1631610000123456789 0 1587 Web Content 2 35377 getpid > ", 35377, "Web Content 2", "getpid"),
        ("1631610000123456789 0 1587 a 1 open > b 35377 getpid >", 35377, "a 1 open > b", "getpid"),
        ("1631610000123456789 0 1587 a 35377 open > name=x 1 read > y", 35377, "a", "open"),
        ("1631610000123456789 0 1587  35377 open >", 35377, "", "open"),
    ],
)
def test_columns_are_found_behind_any_name(read, line, thread, command, call):
    traces, _, names = read("lid_ds", line.encode())
    assert (traces[0].pid, traces[0].command, names) == (thread, command, [[call]])


@pytest.mark.parametrize(
    ("path", "split", "label"),
    [
        ("/data/training/LID-DS-2021/CVE/test/normal_and_attack/x.zip!x.sc", "test", ""),
        ("/home/me/test/LID-DS-2021/CVE/training/x.zip!x.sc", "train", "normal"),
        ("CVE/test/normal/x.zip!x.sc", "test", "normal"),
        ("CVE/x.sc", "", ""),
    ],
)
def test_the_last_folder_of_the_protocol_counts(path, split, label):
    told = lid_ds._protocol(path, Options())
    assert (told.split, told.label) == (split, label)


def test_real_recordings(read, shared_data):
    samples = shared_data / "format_samples"
    data = gzip.decompress((samples / "lid-ds-2021-sc/normal_32.sc.gz").read_bytes())
    for group, traces in (("", 127), ("process", 1)):
        found, counters, _ = read("lid_ds", data, Options(group=group))
        assert (len(found), counters.lines, counters.calls) == (traces, 9073, 4542)
        assert counters.skipped == {grouping.END_OF_CALL: 4407, grouping.CHILD: 124}
        assert not counters.unknown and found[0].start_time > 1.7e9
    for name, lines, calls, others in (("enough_greider_9103", 36, 18, 0), ("mock_run_2", 49, 27, 4)):
        _, counters, _ = read("lid_ds", (samples / f"lid-ds-2019/{name}.txt").read_bytes())
        assert (counters.lines, counters.calls) == (lines, calls)
        assert counters.skipped[sysdig_events.NOT_A_CALL] == others and not counters.unknown


def test_the_folders_of_2021_tell_split_and_label(tmp_path):
    row = b"1631610000123456789 0 7 x 7 getpid > \n"
    for folder in ("training", "validation", "test/normal", "test/normal_and_attack"):
        (tmp_path / folder).mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / folder / "a.zip", "w") as archive:
            archive.writestr("a.sc", row)
            archive.writestr("a.json", '{"exploit": true}')
    summary = ingest([str(tmp_path)], tmp_path / "out.parquet")
    assert summary.format == "lid_ds" and summary.skipped_files == {"file not recognised": 4}
    assert summary.groups == {
        ("normal", "train"): 1,
        ("normal", "validation"): 1,
        ("normal", "test"): 1,
        ("", "test"): 1,
    }


def test_memory_stays_flat_over_many_lines():
    row = b"1631610000123456789 0 7 x 7 getpid > \n"
    counters = Counters()
    stream = io.BytesIO(row * 20_000)
    traces = lid_ds.read(sources.Source("x", stream), lid_ds.vocabulary(Options()), Options(), counters)  # type: ignore[arg-type]
    assert [len(trace.calls) for trace in traces] == [20_000]
