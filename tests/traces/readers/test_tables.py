"""csv, jsonl, parquet; and traces as lines: text_lines, awsctd."""

import contextlib
import io
import json
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import columns, csv_rows, grouping, numbers, parquet_check, parquet_stream
from syscall_lm.traces.ingest import ingest
from syscall_lm.traces.readers import Counters, Options, awsctd, parquet, text_lines
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream
from syscall_lm.traces.vocabulary import Vocabulary

TABLE = {
    "who": ["a", "a", "b", "a", "b"],
    "what": ["open", "read", "open", "close", "write"],
    "process": ["x", "x", "y", "x", "y"],
    "attack": [0, 0, 0, 0, 1],
}
COLUMNS = "call=what,trace=who"


def as_csv(table):
    return "\n".join(
        [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    ).encode()


def as_jsonl(table):
    rows = zip(*table.values(), strict=True)
    return "".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows).encode()


def as_parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(table), file, **options)
    return file.getvalue()


FORMATS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("name", FORMATS)
def test_columns_may_have_any_name(read, name):
    traces, counters, names = read(name, FORMATS[name](TABLE), Options(columns=COLUMNS, label="normal"))
    assert names == [["open", "read", "close"], ["open", "write"]]
    assert [(trace.id, trace.command, trace.label) for trace in traces] == [
        ("capture:a", "x", "normal"),
        ("capture:b", "y", "attack"),
    ]
    assert not counters.skipped


@pytest.mark.parametrize("name", FORMATS)
def test_what_columns_cannot_tell_is_refused_in_a_sentence(read, name):
    data = FORMATS[name](TABLE)
    for chosen, words in (
        ("", "no column holds calls.*who, what"),
        ("call=what", "no column tells which calls belong together"),
        ("call=none,trace=who", "has no column 'none'"),
        ("verb=what", "is not WHAT=NAME"),
        ("call", "is not WHAT=NAME"),
    ):
        with pytest.raises(SyscallLMError, match=words):
            read(name, data, Options(columns=chosen))


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_a_row_may_hold_a_whole_trace(read, name):
    table = {"id": ["a", "b"], "calls": [["open", "read"], ["close"]]}
    assert read(name, FORMATS[name](table))[2] == [["open", "read"], ["close"]]
    table = {"sequence": [["open", "read"], ["close"]]}
    assert [trace.id for trace in read(name, FORMATS[name](table))[0]] == ["capture:1", "capture:2"]
    # Whatever calls it holds, and whoever comes after it.
    table = {"pid": [7, 7], "calls": [["open", "exit_group", "read"], ["close"]]}
    traces, _, names = read(name, FORMATS[name](table))
    assert names == [["open", "exit_group", "read"], ["close"]]
    assert [trace.id for trace in traces] == ["capture:7", "capture:7#2"]


def test_any_number_of_whole_traces_is_read(read, monkeypatch):
    monkeypatch.setattr(grouping, "MAX_LIVE", 10)
    monkeypatch.setattr(grouping, "MAX_HELD", 10)
    table = {"id": [f"t{i}" for i in range(5000)], "calls": [["open", "read"]] * 5000}
    traces, counters, _ = read("jsonl", as_jsonl(table))
    assert [trace.id for trace in traces] == [f"capture:t{i}" for i in range(5000)] and not counters.skipped


@pytest.mark.parametrize("name", FORMATS)
def test_the_number_of_a_row_is_no_session(read, name):
    table = {"id": [1, 2, 3], "pid": [7, 7, 8], "syscall": ["open", "read", "close"]}
    assert read(name, FORMATS[name](table))[2] == [["open", "read"], ["close"]]
    told = read(name, FORMATS[name](table), Options(columns="trace=id"))
    assert told[2] == [["open"], ["read"], ["close"]]
    table = {"session": [1, 2, 3], "pid": [7, 7, 8], "syscall": ["open", "read", "close"]}
    assert read(name, FORMATS[name](table))[2] == [["open"], ["read"], ["close"]]
    assert read(name, FORMATS[name](table), Options(columns="trace="))[2] == [["open", "read"], ["close"]]


def test_labels_are_understood_or_counted(read):
    data = b"trace,syscall,label\na,open,1.0\nb,open,0.0\nc,open,malware\nd,open,\n"
    traces, counters, _ = read("csv", data)
    assert [trace.label for trace in traces] == ["attack", "normal", "", ""]
    assert counters.skipped == {columns.ODD_LABEL: 1}


def test_a_long_cell_is_a_trace(read):
    _, counters, names = read("csv", b"id,calls\na," + b"open " * 40_000 + b"\n")
    assert names == [["open"] * 40_000] and not counters.skipped


def test_rows_without_a_call_or_a_process_are_counted(read):
    data = b'{"pid":1,"syscall":"open"}\n{"pid":1}\n{"syscall":"read"}\n{"pid":{},"syscall":[]}\n[1]\n'
    data += b'{"pid":1,"syscall":-1}\n'
    _, counters, names = read("jsonl", data)
    assert names == [["open"]]
    assert counters.skipped == {columns.NO_CALL: 2, columns.NO_PROCESS: 2, "not a JSON object": 1}
    _, counters, names = read("csv", b"pid,syscall\n1,open\n1\n,read\n1,close,more\n")
    assert names == [["open", "close"]] and counters.skipped == {columns.NO_CALL: 1, columns.NO_PROCESS: 1}


def test_a_quote_that_never_ends_costs_rows_not_memory(read):
    data = b"pid,syscall\n1,open\n" + b'1,"' + b"x,\n" * 400_000 + b'"\n1,close\n'
    _, counters, names = read("csv", data)
    assert names[0][0] == "open" and counters.skipped[csv_rows.DAMAGED] >= 1


def test_numbers_mean_what_the_options_say(read, tmp_path):
    (tmp_path / "map").write_text("open\nread\nclose\n")
    for name, data in (
        ("csv", b"pid,syscall\n1,1\n1,2\n"),
        ("jsonl", b'{"pid":1,"syscall":1}\n{"pid":1,"syscall":"2"}\n'),
        ("text_lines", b"1 2\n"),
        ("awsctd", b"1,2,Virus\n"),
    ):
        assert read(name, data)[2] == [["number 1", "number 2"]]
        assert read(name, data, Options(numbering="abi"))[2] == [["write", "open"]]
        assert read(name, data, Options(mapping=str(tmp_path / "map")))[2] == [["read", "close"]]
        with pytest.raises(SyscallLMError, match="--numbering=B: expected abi"):
            read(name, data, Options(numbering="B"))


def test_the_vocabulary_is_the_abi_s_if_the_names_are(tmp_path):
    for words, whole in ((["open", "read", "my_call"], True), (["NtClose", "NtOpenFile", "open"], False)):
        (tmp_path / "x.txt").write_text(" ".join(words) + "\n")
        summary = ingest([str(tmp_path / "x.txt")], tmp_path / "x.parquet", "text_lines")
        vocabulary = read_vocabulary(tmp_path / "x.parquet")
        if whole:
            assert vocabulary == Vocabulary.from_abi("x86_64") and summary.counters.unknown == {"my_call": 1}
        else:
            assert vocabulary == Vocabulary.from_names(words) and not summary.counters.unknown


def read_vocabulary(path):
    from syscall_lm.traces.archive import TraceArchive

    return TraceArchive(path).vocabulary


def test_lines_of_traces(read):
    traces, counters, names = read("text_lines", b"open,read\n\n3 4\t99999999 99999999999 5\nclose (x) write\n")
    assert names == [["open", "read"], ["number 3", "number 4", "number 5"], ["close", "write"]]
    assert [trace.id for trace in traces] == ["capture:1", "capture:3", "capture:4"]
    large = {"number too large for a call": 1, numbers.NOT_A_NUMBER: 1}
    assert counters.skipped == {text_lines.BLANK: 1, text_lines.NOT_A_CALL: 1, **large}
    traces, counters, names = read("awsctd", b"15,18,18,AdWare\nx\n1,Clean\n\n1,2\n")
    assert names == [["number 15", "number 18", "number 18"], ["number 1"]]
    assert [(trace.label, trace.family) for trace in traces] == [("attack", "AdWare"), ("normal", "Clean")]
    assert counters.skipped == {awsctd.NOT_A_TRACE: 2, awsctd.BLANK: 1}


@given(
    st.lists(
        st.sampled_from(["1", "18", "007", "0000000000003", "99999", "70000", "123456", "", " 2", "x"]), min_size=1
    ),
    st.sampled_from(["Clean", "Ad Ware", "", "9", "a,b"]),
)
def test_a_plain_line_of_awsctd_is_read_as_its_expression_would(read, numbers, family):
    line = ",".join([*numbers, family]).encode()
    traces, counters, names = read("awsctd", line)
    spaced = read("awsctd", b" " + line)  # which is not plain
    assert names == spaced[2] and [trace.family for trace in traces] == [trace.family for trace in spaced[0]]
    assert counters.skipped == spaced[1].skipped


def test_prose_is_not_taken_for_traces():
    for data in (
        b"read the manual\nopen the door\n",
        b"This is\nsome text\n",
        b"1 2\n3 4\n",
        b"\0" * 50,
        b"1.5 2 3\n4 5 6\n",
    ):
        assert not text_lines.recognises("x", data) and not awsctd.recognises("x", data)
    assert awsctd.recognises("x", b"15," * 30_000) and not awsctd.recognises("x", b"15,18,AdWare 2, 3\n")


# ---------------------------------------------------------------- Parquet that lies


def test_an_archive_is_not_ingested_again(tmp_path):
    (tmp_path / "x.txt").write_text("open read\n")
    ingest([str(tmp_path / "x.txt")], tmp_path / "x.parquet")
    with pytest.raises(SyscallLMError, match="is a trace archive already"):
        ingest([str(tmp_path / "x.parquet")], tmp_path / "y.parquet")


def damaged(whole, seed):
    """`whole` with a few bytes changed."""
    generator = random.Random(seed)
    data = bytearray(whole)
    for _ in range(generator.randint(1, 4)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 60), marks=pytest.mark.slow)])
def test_damaged_parquet_is_a_sentence_or_a_counted_row_group(read, seeds):
    table = {"pid": [1] * 200, "syscall": ["open", "read"] * 100}
    whole = as_parquet(table, row_group_size=50, write_page_checksum=True)
    for seed in seeds:
        with contextlib.suppress(SyscallLMError):
            read("parquet", damaged(whole, seed))


def test_truncated_parquet_is_refused_in_a_sentence(read):
    whole = as_parquet({"pid": [1], "syscall": ["open"]})
    for size in (0, 10, len(whole) - 1):
        with pytest.raises(SyscallLMError, match="not a Parquet file, or truncated"):
            read("parquet", whole[:size])


def test_parquet_that_kills_its_reader_is_refused_in_a_sentence(read):
    # In each a byte of the footer is changed, on which pyarrow 26 ends the process from C++.
    for path in sorted((pathlib.Path(__file__).parents[2] / "fuzz/regressions").glob("parquet-abort-*")):
        with pytest.raises(SyscallLMError, match="the process that read it died|damaged"):
            read("parquet", path.read_bytes())


def test_parquet_that_claims_more_than_it_can_hold_is_refused(tmp_path, monkeypatch):
    bomb = as_parquet({"pid": [1] * 3_000_000, "syscall": ["open"] * 3_000_000}, compression="zstd")
    assert len(bomb) < 30_000
    (tmp_path / "bomb").write_bytes(bomb)
    monkeypatch.setattr(parquet_stream, "FREE", 2**20)
    with pytest.raises(SyscallLMError, match="claims 3,000,000 rows"):
        monkeypatch.setattr(parquet_stream, "MAX_RATIO", 10)
        parquet_stream._open(str(tmp_path / "bomb"), "bomb")
    monkeypatch.setattr(parquet_stream, "MAX_COLUMNS", 1)
    with pytest.raises(SyscallLMError, match="of 2 columns"):
        parquet_stream._open(str(tmp_path / "bomb"), "bomb")


def test_parquet_that_is_too_large_is_refused(read, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FILE", 1000)
    with pytest.raises(SyscallLMError, match="more than 1,000 bytes"):
        read("parquet", bytes(2000))


def test_nested_and_odd_types_are_rows_without_calls(read):
    table = {"pid": [1, 1], "syscall": [{"a": [1]}, {"a": []}]}
    assert read("parquet", as_parquet(table))[1].skipped == {columns.NO_CALL: 2}
    table = {"pid": [1.5, None], "syscall": [b"\xff", None]}
    assert read("parquet", as_parquet(table))[1].skipped == {columns.NO_PROCESS: 2}


def test_a_row_that_never_ends_is_cut(monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_ROW", 1000)
    data = b'pid,syscall\n1,read\n2,"x' + b'","y\n' * 5000 + b'"\n3,write\n'
    counters = Counters()
    blocks = list(csv_rows.blocks(Source("x", ByteStream(io.BytesIO(data).read)), counters, skip=1))
    assert counters.skipped[csv_rows.DAMAGED] == 1
    assert max(sum(map(len, row)) for block in blocks for row in block) < 2000
    assert blocks[0][0] == ["1", "read"] and sum(map(len, blocks)) > 4000  # the lines behind it are read


def test_rows_are_handed_on_before_they_are_too_large_together(monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_ROW", 1000)
    data = b"pid,syscall\n" + b"1,read,a,b,c,d,e,f,g\n" * 1000
    blocks = list(csv_rows.blocks(Source("x", ByteStream(io.BytesIO(data).read)), Counters(), skip=1))
    assert sum(map(len, blocks)) == 1000 and max(map(len, blocks)) < 60


def as_lists(calls, rows):
    words = pa.DictionaryArray.from_arrays(pa.array([0] * calls * rows, pa.int8()), pa.array(["read"]))
    lists = pa.ListArray.from_arrays(pa.array(range(0, calls * rows + 1, calls), pa.int32()), words)
    return pa.record_batch({"calls": lists, "id": ["a"] * rows})


def test_parquet_rows_are_handed_on_in_pieces_of_bounded_size(monkeypatch):
    monkeypatch.setattr(parquet_stream, "_PIECE", 10_000)
    pieces = list(parquet_stream._pieces(as_lists(100, 1000)))
    assert sum(piece.num_rows for piece in pieces) == 1000
    assert max(map(parquet_stream._size, pieces)) <= 10_000
    with pytest.raises(ValueError, match="larger than any trace"):
        list(parquet_stream._pieces(as_lists(5000, 1)))


def test_a_word_that_many_rows_share_counts_for_each():
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int8()), pa.array(["x" * 1000]))
    assert parquet_stream._size(words) > 100_000
    assert parquet_stream._size(pa.array([None] * 100)) >= 800


def test_parquet_that_unpacks_to_more_than_its_size_explains_is_refused(tmp_path, monkeypatch, capfd):
    pq.write_table(pa.table({"id": ["a"] * 100, "calls": [["read"] * 1000] * 100}), tmp_path / "x")
    monkeypatch.setattr(parquet_check.resource, "setrlimit", lambda *values: None)  # this process goes on
    monkeypatch.setattr(parquet_stream, "FREE", 1000)
    monkeypatch.setattr(parquet_stream, "_open", lambda path, name: pq.ParquetFile(path))
    monkeypatch.setattr(parquet_stream, "MAX_RATIO", 1)
    assert parquet_stream._main(str(tmp_path / "x"), "x", "") == 2
    assert "x: unpacks to over" in capfd.readouterr().err
