"""Captures that tell each call's time come in as they happened, whatever the order and number of their records."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import filters, grouping, readers
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.ingest import ingest
from syscall_lm.traces.readers import Options

NUMBERS = {"read": 0, "write": 1, "close": 3, "openat": 257}
BOTH = Options(order_events=True, drop_doubled_events=True)


def lines(rows):
    return "".join(f"{row}\n" for row in rows).encode()


def drakvuf(events):
    return lines(
        [
            json.dumps(
                {"Plugin": "syscall", "TimeStamp": f"{time:.6f}", "PID": pid, "TID": pid, "Method": f"sys_{call}"}
            )
            for pid, time, call in events
        ]
    )


def tracee(events):
    return lines(
        [
            json.dumps(
                {
                    "timestamp": round(time * 1e9),
                    "processId": 1,
                    "hostProcessId": pid,
                    "eventName": call,
                    "syscall": call,
                }
            )
            for pid, time, call in events
        ]
    )


def tetragon(events):
    return lines(
        [
            json.dumps(
                {
                    "process_kprobe": {"process": {"pid": pid, "tid": pid}, "function_name": f"__x64_sys_{call}"},
                    "time": f"2024-05-01T10:00:{time % 60:09.6f}Z",
                }
            )
            for pid, time, call in events
        ]
    )


def bpftrace(events):
    return lines([f"{round(time * 1e9)} {pid} {pid} cat {NUMBERS[call]}" for pid, time, call in events])


def jsonl(events):
    return lines([json.dumps({"pid": pid, "time": time, "syscall": call}) for pid, time, call in events])


def csv(events):
    return lines(["pid,time,call", *[f"{pid},{time:.6f},{call}" for pid, time, call in events]])


def parquet(events):
    file = io.BytesIO()
    pq.write_table(pa.table(dict(zip(("pid", "time", "call"), zip(*events, strict=True), strict=True))), file)
    return file.getvalue()


FORMATS = {one.__name__: one for one in (drakvuf, tracee, tetragon, bpftrace, jsonl, csv, parquet)}


def recorded_anew(events, rng):
    """Some events twice, all of them near their place."""
    doubled = [event for event in events for _ in range(1 + int(rng.random() < 0.3))]
    return [doubled[i] for i in np.argsort(np.arange(len(doubled)) + 8 * rng.random(len(doubled)))]


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    return [(int(rng.integers(7, 10)), 1_700_000_000 + i / 1024, str(rng.choice(list(NUMBERS)))) for i in range(120)]


@pytest.mark.parametrize("name", FORMATS)
def test_out_of_order_and_doubled_records_become_the_traces_that_happened(name, events, read):
    def traces(events, options=None):
        found, counters, names = read(name, FORMATS[name](events), options)
        assert not counters.skipped
        return {trace.pid: calls for trace, calls in zip(found, names, strict=True)}, counters.filtered

    recorded = recorded_anew(events, np.random.default_rng(1))
    happened, nothing = traces(events)
    filtered, counts = traces(recorded, BOTH)
    assert filtered == happened != traces(recorded)[0]
    assert counts.keys() == {filters.DOUBLED_EVENT, filters.LATE_EVENT} and not nothing
    assert counts[filters.DOUBLED_EVENT] == len(recorded) - len(events) and counts[filters.LATE_EVENT] > 0


def test_the_archive_tells_which_filters_were_used_and_what_they_did(events, tmp_path):
    path, output = tmp_path / "guest.json", tmp_path / "out.parquet"
    path.write_bytes(drakvuf(recorded_anew(events, np.random.default_rng(1))))
    summary = ingest([str(path)], output, options=BOTH)
    assert summary.bad == 0 and summary.counters.filtered.total() > 0
    (step,) = TraceArchive(output).metadata["filters"]
    assert step == {**BOTH.event_filters, "counts": dict(summary.counters.filtered)}
    ingest([str(path)], output)
    assert "filters" not in TraceArchive(output).metadata


@pytest.mark.parametrize("flag", ["order_events", "drop_doubled_events"])
def test_without_times_the_filters_are_refused_in_one_sentence(flag, tmp_path):
    options = Options(**{flag: True})
    for file, text, words in (
        ("a.strace", "7 read(0) = 0\n", "which the reader of strace does not tell; those of .*drakvuf.*tracee do"),
        ("a.csv", "pid,call\n7,read\n", "no column holds one; name it by --columns=time=NAME, it has pid, call"),
        ("a.jsonl", '{"id": "a", "time": 1, "calls": ["read", "read"]}\n', "a row of it holds a whole trace"),
    ):
        (tmp_path / file).write_text(text)
        with pytest.raises(SyscallLMError, match=f"--{flag}.*{words}") as error:
            ingest([str(tmp_path / file)], tmp_path / "out.parquet", options=options)
        assert "\n" not in str(error.value)


def test_every_reader_that_offers_times_is_tested_here():
    for name in ("strace", "adfa_ld", "unm", "awsctd", "text_lines"):
        with pytest.raises(SyscallLMError, match=f"--max_gap needs each call's time, which the reader of {name} does"):
            readers.require_times(readers.reader(name), Options(max_gap=1))
    readers.require_times(readers.reader("sysdig"), Options(max_gap=1))
    offering = {name for name in readers.names() if getattr(readers.reader(name), "EVENT_TIMES", False)}
    assert offering == FORMATS.keys()


def test_a_row_without_a_time_is_skipped_and_counted(tmp_path):
    (tmp_path / "a.csv").write_text("pid,time,call\n7,2,read\n7,,open\n7,x,open\n7,1,write\n")
    summary = ingest([str(tmp_path / "a.csv")], tmp_path / "out.parquet", options=BOTH)
    assert summary.counters.skipped == {grouping.NO_TIME: 2} and summary.bad == 2
    assert summary.counters.calls == 2
