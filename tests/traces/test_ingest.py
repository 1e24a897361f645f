import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import readers
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.ingest import ingest
from syscall_lm.traces.readers import MAX_UNKNOWN_NAMES, Counters, Options

STRACE = b"7 read(0) = 0\n7 write(1) = 1\n8 brk(0) = 1\n7 --- SIGINT {} ---\n7 +++ exited with 0 +++\n"


@pytest.fixture
def mapping(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapping") / "map.txt"
    path.write_text("".join(f"call{i}\n" for i in range(50)))
    return str(path)


def test_an_archive_explains_itself(tmp_path):
    (tmp_path / "x.strace").write_bytes(STRACE + b"garbage\n7 new_call(0) = 0\n")
    options = Options(host="h", label="normal", family="f", split="train")
    seen = []
    summary = ingest([str(tmp_path / "x.strace")], tmp_path / "x.parquet", options=options, progress=seen.append)
    archive = TraceArchive(tmp_path / "x.parquet")
    batch = archive.read()
    assert [[archive.vocabulary.name(c) for c in calls] for calls in batch.calls] == [
        ["read", "write"],
        ["brk"],
        ["<unknown>"],
    ]
    assert batch.column("id").tolist() == [f"{tmp_path}/x.strace:{i}" for i in ("7", "8", "7#2")]
    for name, value in (("host", "h"), ("label", "normal"), ("family", "f"), ("split", "train"), ("start_time", None)):
        assert set(batch.column(name)) == {value}
    counters = archive.metadata["counters"]
    assert counters == json.loads(json.dumps(summary.counters.to_json()))
    assert counters["skipped"] == {"signal": 1, "exit line": 1, "not a call": 1}
    assert counters["unknown"] == {"new_call": 1}
    assert archive.metadata["format"] == "strace" and archive.metadata["arguments"] == [str(tmp_path / "x.strace")]
    assert summary.groups == {("normal", "train"): 3} and summary.longest == (f"{tmp_path}/x.strace:7", 2)
    assert seen == [2, 1, 1]
    assert summary.bad == 1 and summary.bad_fraction == 1 / 7


@pytest.mark.parametrize(
    ("data", "format", "calls"),
    [(STRACE, "strace", 3), (b"6 6 63 6\n", "adfa_ld", 4), (b"1 2\n1 3\n2 4\n", "unm", 3)],
)
def test_the_format_is_recognised_by_content(tmp_path, mapping, data, format, calls):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/README").write_text("This is not a trace.\n")
    (tmp_path / "in/x").write_bytes(data)
    explained = Options(mapping=mapping if format == "unm" else "")
    summary = ingest([str(tmp_path / "in")], tmp_path / "x.parquet", options=explained)
    assert summary.unread == [str(tmp_path / "in/README")]
    assert (summary.format, summary.counters.calls, summary.sources) == (format, calls, 1)
    assert summary.skipped_files == {"file not recognised": 1}
    assert TraceArchive(tmp_path / "x.parquet").num_calls == calls


def test_the_numbering_is_written_down(tmp_path, mapping):
    (tmp_path / "x").write_bytes(b"1 2\n1 3\n")
    for numbering, used in (("", "A"), ("A", "A"), ("B", "B")):
        ingest([str(tmp_path / "x")], tmp_path / "x.parquet", options=Options(mapping=mapping, numbering=numbering))
        archive = TraceArchive(tmp_path / "x.parquet")
        assert archive.metadata["numbering"] == used
        expected = ["call2", "call3"] if used == "A" else ["call1", "call2"]
        assert [archive.vocabulary.name(c) for c in archive.read().calls[0]] == expected


def test_ids_that_stand_twice_are_made_unique(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("UTD-1.txt", "a/UTD-1.txt"):
        (tmp_path / name).write_bytes(b"3 4 5\n")
    (tmp_path / "UTD-1~2.txt").write_bytes(b"3 4 5\n")
    summary = ingest([str(tmp_path)] * 2, tmp_path / "x.parquet", "adfa_ld")
    ids = TraceArchive(tmp_path / "x.parquet").read().column("id").tolist()
    assert len(ids) == len(set(ids)) == 6 and summary.renamed == 4


def test_what_cannot_be_used_is_one_clear_sentence(tmp_path):
    output = tmp_path / "x.parquet"
    for name, data in (("text", b"hello\n"), ("noise", b"7 +++ exited with 0 +++\n"), ("bad", STRACE + b"x\n" * 5)):
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    for arguments, format, fraction, words in (
        (["text"], "auto", 1.0, "not recognised.*adfa_ld.*strace.*unm"),
        (["text"], "strace", 1.0, "no call could be read as strace"),
        (["noise"], "auto", 1.0, "no call could be read"),
        (["text"], "other", 1.0, "--format=other"),
        (["empty.tar"], "auto", 1.0, "nothing to read.*empty file: 1"),
        (["bad"], "auto", 0.4, "5 lines are bad"),
        (["bad"], "auto", 7.0, "--max_bad_fraction=7"),
    ):
        with pytest.raises(SyscallLMError, match=words):
            ingest([str(tmp_path / a) for a in arguments], output, format, max_bad_fraction=fraction)
        assert not output.exists() and not list(tmp_path.glob(".x*"))
    ingest([str(tmp_path / "bad")], output, max_bad_fraction=0.5)
    assert output.exists()


def test_a_capture_is_never_replaced_by_its_archive(tmp_path):
    capture = tmp_path / "run.strace"
    capture.write_text("1 read(0) = 0\n")
    (tmp_path / "link").symlink_to(capture)
    for output in (capture, tmp_path / "link"):
        with pytest.raises(SyscallLMError, match="would replace"):
            ingest([str(capture)], output)
    assert capture.read_text() == "1 read(0) = 0\n" and len(list(tmp_path.iterdir())) == 2


def test_noise_is_not_bad_but_truncation_is_for_the_strict(tmp_path):
    output = tmp_path / "x.parquet"
    (tmp_path / "x").write_bytes(STRACE)
    assert ingest([str(tmp_path / "x")], output, max_bad_fraction=0).bad == 0
    rows = b"".join(b"7 read(%d) = %d\n" % (i, i * i) for i in range(20_000))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(rows)[:-5000])
    ingest([str(tmp_path / "cut.gz")], output, max_bad_fraction=0.01)
    with pytest.raises(SyscallLMError, match="truncated"):
        ingest([str(tmp_path / "cut.gz")], output, max_bad_fraction=0)


def test_a_file_that_two_formats_claim_must_be_named(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(STRACE)
    monkeypatch.setattr(readers.reader("unm"), "recognises", lambda name, head: True)
    with pytest.raises(SyscallLMError, match="strace or unm; name the format"):
        ingest([str(tmp_path / "x")], tmp_path / "x.parquet")


@pytest.mark.parametrize("options", [Options(mapping="none"), Options(numbering="A"), Options(columns="call=x")])
def test_what_explains_other_formats_is_refused(tmp_path, options):
    (tmp_path / "x").write_bytes(STRACE)
    with pytest.raises(SyscallLMError, match=r"--(mapping|numbering|columns)=.*: does not concern strace, only .*csv"):
        ingest([str(tmp_path / "x")], tmp_path / "x.parquet", options=options)


def test_a_capture_in_a_folder_or_pattern_is_not_replaced(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.strace").write_bytes(STRACE)
    for argument in (tmp_path / "in", tmp_path / "in/*.strace"):
        with pytest.raises(SyscallLMError, match=r"x\.strace: is an input, which the output would replace"):
            ingest([str(argument)], tmp_path / "in/x.strace")
    assert (tmp_path / "in/x.strace").read_bytes() == STRACE


def test_every_reader_keeps_to_the_interface():
    assert {"strace", "adfa_ld", "unm"} <= set(readers.names())
    for name in readers.names():
        module = readers.reader(name)
        assert "\n" not in module.DESCRIPTION and isinstance(module.NOISE, frozenset)
        assert set(getattr(module, "EXPLAINED_BY", ())) <= {"mapping", "numbering", "columns"}
        assert module.recognises("x", b"") is False and module.recognises("x", bytes(100)) is False


def test_the_readers_agree_with_numpy_on_one_large_file(tmp_path, mapping):
    pairs = np.random.default_rng(0).integers(0, 50, (200_000, 2))
    pairs[:, 0] //= 20
    np.savetxt(tmp_path / "x", pairs, "%d")
    summary = ingest([str(tmp_path / "x")], tmp_path / "x.parquet", options=Options(mapping=mapping))
    batch = TraceArchive(tmp_path / "x.parquet").read()
    assert np.array_equal(batch.calls.calls, pairs[:, 1])
    assert summary.counters.traces == 1 + np.count_nonzero(np.diff(pairs[:, 0]))
    assert np.array_equal(np.repeat(batch.column("pid").astype(int), batch.calls.lengths), pairs[:, 0])


def test_unknown_names_stay_bounded_however_many_parts_are_added():
    total = Counters()
    for part in range(3):
        counters = Counters()
        for number in range(800):
            counters.count_unknown(f"call_{part}_{number}")
        total.add(counters)
    assert total.unknown.total() == 2400 and len(total.unknown) == MAX_UNKNOWN_NAMES + 1
