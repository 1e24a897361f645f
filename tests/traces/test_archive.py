import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import archive
from syscall_lm.traces.archive import METADATA_KEY, SCHEMA, TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Sequences, Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(tuple(f"call{i}" for i in range(9)), "for tests")
IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
traces_lists = st.lists(
    st.builds(
        Trace,
        calls=st.lists(st.integers(0, VOCABULARY.unk), min_size=1, max_size=30).map(lambda c: np.array(c, np.uint16)),
        id=texts,
        source=texts,
        pid=st.none() | st.integers(-(2**63), 2**63 - 1),
        command=texts,
        host=texts,
        start_time=st.none() | st.floats(allow_nan=False),
        label=texts,
        family=texts,
        split=texts,
    ),
    min_size=1,
    max_size=20,
)


def write(path, traces):
    with TraceArchiveWriter(path, VOCABULARY) as writer:
        for trace in traces:
            writer.write(trace)
        writer.metadata["numbering"] = "A"
    return path


def rows(batch):
    """A batch as a list of tuples."""
    columns = [batch.column(name).tolist() for name in SCHEMA.names if name != "calls"]
    return [(*row, calls.tolist()) for row, calls in zip(zip(*columns, strict=True), batch.calls, strict=True)]


def as_rows(traces):
    fields = [field.name for field in dataclasses.fields(Trace) if field.name != "calls"]
    assert fields == [name for name in SCHEMA.names if name != "calls"]
    return [(*(getattr(t, name) for name in fields), t.calls.tolist()) for t in traces]


@IN_TMP
@given(traces_lists, st.integers(1, 60), st.integers(1, 80))
def test_what_is_written_is_read_whole_and_in_batches(tmp_path, traces, calls_per_group, max_calls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "CALLS_PER_GROUP", calls_per_group)
        path = write(tmp_path / "x.parquet", traces)
    read = TraceArchive(path)
    assert read.num_traces == len(traces) and read.num_calls == sum(len(t.calls) for t in traces)
    assert read.vocabulary == VOCABULARY and read.metadata["numbering"] == "A"
    assert rows(read.read()) == as_rows(traces)
    batches = list(read.batches(max_calls))
    assert [row for batch in batches for row in rows(batch)] == as_rows(traces)
    assert all(len(batch) == 1 or len(batch.calls.calls) <= max_calls for batch in batches)


def test_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "CALLS_PER_GROUP", 10)
    traces = [Trace(np.full(4, i % 9, np.uint16), str(i)) for i in range(20)]
    path = write(tmp_path / "x.parquet", traces)
    assert pq.ParquetFile(path).num_row_groups == 7
    assert rows(TraceArchive(path).read()) == as_rows(traces)
    assert [len(batch) for batch in TraceArchive(path).batches(20)] == [5] * 4


@IN_TMP
@given(traces_lists, st.data())
def test_taking_rows_keeps_calls_and_columns_together(tmp_path, traces, data):
    batch = TraceArchive(write(tmp_path / "x.parquet", traces)).read()
    expected = as_rows(traces)
    indices = data.draw(st.lists(st.integers(0, len(traces) - 1)))
    assert rows(batch.take(np.array(indices, int))) == [expected[i] for i in indices]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(traces), max_size=len(traces))))
    assert rows(batch.take(mask)) == [row for row, kept in zip(expected, mask, strict=True) if kept]


def test_a_failed_writing_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = write(tmp_path / "x.parquet", [Trace(np.zeros(1, np.uint16), "old")])
    with pytest.raises(KeyError), TraceArchiveWriter(path, VOCABULARY) as writer:
        writer.write(Trace(np.zeros(1, np.uint16), "new"))
        raise KeyError
    assert TraceArchive(path).read().column("id").tolist() == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("calls", [[], [VOCABULARY.go]])
def test_a_trace_that_no_reader_may_make_is_refused(tmp_path, calls):
    with pytest.raises(SyscallLMError), TraceArchiveWriter(tmp_path / "x", VOCABULARY) as writer:
        writer.write(Trace(np.array(calls, np.uint16), "t"))


def use(path):
    opened = TraceArchive(path)
    for batch in (opened.read(), *opened.batches()):
        assert batch.calls.calls.max() <= opened.vocabulary.unk
        rows(batch)


@IN_TMP
@example(0.6460285834991593, b"\0", False)  # a number of rows that becomes none
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_damaged_archive_raises_nothing_but_the_package_error(tmp_path, place, change, cut):
    traces = [Trace(np.arange(9, dtype=np.uint16), f"trace {i}", command="c") for i in range(50)]
    data = bytearray(write(tmp_path / "x.parquet", traces).read_bytes())
    at = int(place * len(data))
    data[at : at + len(change)] = change
    (tmp_path / "y.parquet").write_bytes(data[: at + 4] if cut else data)
    try:
        use(tmp_path / "y.parquet")
    except SyscallLMError as error:
        assert "y.parquet" in str(error)


def test_a_flipped_bit_in_the_calls_is_noticed(tmp_path):
    calls = np.random.default_rng(0).integers(0, 9, 5000).astype(np.uint16)
    path = write(tmp_path / "x.parquet", [Trace(calls, "t")])
    column = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("calls"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SyscallLMError, match="row group 0"):
        TraceArchive(path).read()


def rewritten(path, change, table=None):
    """The archive with another header."""
    source = pq.read_table(path) if table is None else table
    header = json.loads(pq.ParquetFile(path).metadata.metadata[METADATA_KEY])
    change(header)
    source = source.replace_schema_metadata({METADATA_KEY: json.dumps(header)})
    pq.write_table(source, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.update(version=2), "version 2"),
        (lambda h: h["vocabulary"]["names"].reverse(), "hash"),
        (lambda h: h["vocabulary"]["names"].append("call0"), "damaged"),
        (lambda h: h["vocabulary"].update(names=[]), "damaged"),
        (lambda h: h["vocabulary"].update(names=7), "damaged"),
        (lambda h: h.pop("vocabulary"), "damaged"),
        (lambda h: h.update(calls="many"), "damaged"),
        (lambda h: h.update(calls=float("inf")), "damaged"),
        (lambda h: h.update(filters=5), "damaged"),
        (lambda h: h.update(filters=["read"]), "damaged"),
        (lambda h: h.update(filters=[{"drop": [1]}]), "damaged"),
        (lambda h: h.update(filters=[{"max_repeats": "many"}]), "damaged"),
        (lambda h: h.update(vocabulary=[]), "damaged"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, change, words):
    path = write(tmp_path / "x.parquet", [Trace(np.zeros(3, np.uint16), "t")])
    rewritten(path, change)
    with pytest.raises(SyscallLMError, match=words):
        TraceArchive(path)


@pytest.mark.parametrize("calls", [[[]], [None], [[1, None]], [[VOCABULARY.go]], [[65535, 1]]])
def test_calls_that_no_archive_holds_are_refused(tmp_path, calls):
    path = write(tmp_path / "x.parquet", [Trace(np.zeros(3, np.uint16), "t")])
    table = pq.read_table(path)
    table = table.set_column(table.num_columns - 1, SCHEMA.field("calls"), pa.array(calls, SCHEMA.field("calls").type))
    rewritten(path, lambda header: None, table)
    with pytest.raises(SyscallLMError, match="x.parquet"):
        use(path)


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(SyscallLMError, match="no such file"):
        TraceArchive(path)
    for data in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"7853 read(3) = 1\n"):
        path.write_bytes(data)
        with pytest.raises(SyscallLMError, match="not a trace archive"):
            TraceArchive(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(SyscallLMError, match="names no vocabulary"):
        TraceArchive(path)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4)))
def test_distinct_sequences_stand_for_all(lists):
    sequences = Sequences.from_list(np.array(calls) for calls in lists)
    assert [calls.tolist() for calls in sequences] == lists
    first, inverse = sequences.distinct()
    assert [lists[first[i]] for i in inverse] == lists
    assert len({tuple(lists[i]) for i in first}) == len(first) and sorted(first) == first.tolist()
