"""TraceArchive: traces in one Parquet file that explains itself.

Columns: see `SCHEMA`; `calls` is a list of uint16 ids. The schema's metadata holds, under `syscall_lm`, a JSON object
with the vocabulary (names, origin, hash), the reader's counters and the numbering of the calls where a format has
several. Files are read and written a row group at a time.
"""

import dataclasses
import errno
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parquet_check
from syscall_lm.traces.trace import Sequences, Trace
from syscall_lm.traces.vocabulary import Vocabulary

METADATA_KEY = b"syscall_lm"
VERSION = 1
CALLS_PER_GROUP = 2**20
TRACES_PER_GROUP = 2**16

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("pid", pa.int64()),
        ("command", pa.string()),
        ("host", pa.string()),
        ("start_time", pa.float64()),
        ("label", pa.string()),
        ("family", pa.string()),
        ("split", pa.string()),
        ("calls", pa.list_(pa.uint16())),
    ]
)
TOLD = ("id", "source", "command", "host", "label", "family", "split")  # what tables of verdicts repeat of a trace
_INFO_COLUMNS = [name for name in SCHEMA.names if name != "calls"]


def to_table(traces: Sequence[Trace]) -> pa.Table:
    """Traces as a table of `SCHEMA`."""
    sequences = Sequences.from_list(trace.calls for trace in traces)
    calls = pa.ListArray.from_arrays(pa.array(sequences.offsets.astype(np.int32)), pa.array(sequences.calls))
    columns = [pa.array([getattr(t, name) for t in traces], SCHEMA.field(name).type) for name in _INFO_COLUMNS]
    return pa.Table.from_arrays([*columns, calls], schema=SCHEMA)


class TraceArchiveWriter:
    """Writes traces to `path`, which appears only when the `with` block ends without an error.

    `metadata` (JSON values: counters, numbering, ...) may be filled until the block ends.
    """

    def __init__(self, path: str | os.PathLike[str], vocabulary: Vocabulary):
        self._complete = files.complete_file(path)
        self._vocabulary = vocabulary
        self._traces: list[Trace] = []
        self._tables: list[pa.Table] = []
        self._buffered_calls = 0
        self.metadata: dict[str, Any] = {}
        self.num_traces = 0
        self.num_calls = 0

    def __enter__(self) -> "TraceArchiveWriter":
        self._temporary = self._complete.__enter__()
        self._writer = pq.ParquetWriter(self._temporary, SCHEMA, compression="zstd", write_page_checksum=True)
        return self

    def write(self, trace: Trace) -> None:
        """Adds one trace; an empty one is an error of the caller."""
        if len(trace.calls) == 0:
            raise SyscallLMError(f"trace {trace.id!r} has no calls")
        if trace.calls.max() > self._vocabulary.unk:
            raise SyscallLMError(f"trace {trace.id!r} holds call id {trace.calls.max()}, outside its vocabulary")
        self._traces.append(trace)
        self._buffered_calls += len(trace.calls)
        self.num_traces += 1
        self.num_calls += len(trace.calls)
        if self._buffered_calls >= CALLS_PER_GROUP or len(self._traces) >= TRACES_PER_GROUP:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Adds traces that `to_table` made, with ids of this archive's vocabulary; no one checks them again."""
        if self._traces:
            self._flush()
        self._tables.append(table)
        calls = sum(len(chunk.flatten()) for chunk in table["calls"].chunks)
        self._buffered_calls += calls
        self.num_traces += table.num_rows
        self.num_calls += calls
        rows = sum(table.num_rows for table in self._tables)
        if self._buffered_calls >= CALLS_PER_GROUP or rows >= TRACES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._traces:
            self._tables.append(to_table(self._traces))
        self._writer.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._traces, self._tables, self._buffered_calls = [], [], 0

    def __exit__(self, *exception: Any) -> bool | None:
        try:
            if exception[0] is None:
                if self._traces or self._tables:
                    self._flush()
                self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(self._header())})
            self._writer.close()
        except BaseException as error:
            self._complete.__exit__(type(error), error, error.__traceback__)
            raise
        return self._complete.__exit__(*exception)

    def _header(self) -> dict[str, Any]:
        vocabulary = self._vocabulary
        return {
            "version": VERSION,
            "vocabulary": {"names": vocabulary.names, "origin": vocabulary.origin, "hash": vocabulary.hash},
            "traces": self.num_traces,
            "calls": self.num_calls,
            **self.metadata,
        }


@dataclasses.dataclass(frozen=True)
class TraceBatch:
    """Some traces of an archive: their calls, and the other columns as an Arrow table of N rows."""

    calls: Sequences
    info: pa.Table

    def __len__(self) -> int:
        return len(self.calls)

    def column(self, name: str) -> np.ndarray:
        """One column as an object array `[N]` (missing values are None)."""
        return np.array(self.info[name].to_pylist() + [None], object)[:-1]  # the None keeps numpy from nesting

    def take(self, indices: np.ndarray) -> "TraceBatch":
        """The rows at `indices` (integers or a boolean mask), in that order."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return TraceBatch(self.calls.take(indices), self.info.take(pa.array(indices.astype(np.int64))))


def _require_filter(step: Any) -> None:
    """What an archive says of a filter; `filters.Filters` knows more of it.

    Raises:
      ValueError: it says nothing that could be told.
    """
    if isinstance(step, dict):
        names, most = step.get("drop") or [], step.get("max_repeats") or 0
        if isinstance(names, list) and all(isinstance(name, str) for name in names) and isinstance(most, int):
            return
    raise ValueError(f"a filter is {step!r}")


class TraceArchive:
    """Reads an archive.

    Attributes:
      vocabulary: what its call ids mean.
      metadata: the JSON object that was written with it (counters by reason, numbering, sources).
      notice: a sentence that must stand wherever figures from this archive do; usually empty.
      num_traces: N.
      num_calls: the total over all traces.

    Raises:
      SyscallLMError: the file is missing, truncated, foreign, hostile, of a newer version, or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        if self.path.is_dir():
            raise SyscallLMError(f"{self.path}: is a folder; `ingest` makes a trace archive of captures in it")
        if not self.path.is_file():
            raise SyscallLMError(f"{self.path}: no such file; expected a trace archive (make one with `ingest`)")
        if not os.access(self.path, os.R_OK):
            raise SyscallLMError(f"{self.path}: cannot be read ({os.strerror(errno.EACCES)})")
        parquet_check.check(self.path)
        try:
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SyscallLMError(f"{self.path}: not a trace archive (Parquet), or truncated") from error
        header = (self._file.metadata.metadata or {}).get(METADATA_KEY)
        if header is None:
            raise SyscallLMError(f"{self.path}: a Parquet file, but not a trace archive: it names no vocabulary")
        if not self._file.schema_arrow.equals(SCHEMA):
            raise SyscallLMError(
                f"{self.path}: a Parquet file, but not a trace archive: its columns are not {', '.join(SCHEMA.names)}"
            )
        try:
            self.metadata: dict[str, Any] = json.loads(header)
            version = self.metadata["version"]
            vocabulary = self.metadata["vocabulary"]
            names = [name for name in vocabulary["names"] if isinstance(name, str)]
            self.vocabulary = Vocabulary(tuple(names), str(vocabulary["origin"]))
            intact = self.vocabulary.hash == vocabulary["hash"]
            self.num_calls = int(self.metadata["calls"])
            for step in self.metadata.get("filters", []):
                _require_filter(step)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise SyscallLMError(f"{self.path}: its header is damaged ({str(error)[:80]})") from error
        if version != VERSION:
            raise SyscallLMError(f"{self.path}: archive version {version!r}; this program reads version {VERSION}")
        if not intact:
            raise SyscallLMError(f"{self.path}: its call names do not match their hash; the header is damaged")
        self.notice = str(self.metadata.get("notice", ""))
        self.num_traces: int = self._file.metadata.num_rows
        if self.num_traces == 0:
            raise SyscallLMError(f"{self.path}: an archive without traces")
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        if sum(sizes) != self.num_traces:
            raise SyscallLMError(f"{self.path}: holds {sum(sizes):,} traces and says {self.num_traces:,}: damaged")

    def batches(self, max_calls: int = CALLS_PER_GROUP) -> Iterator[TraceBatch]:
        """Streams the archive in order, a batch at a time: at least one trace, at most about `max_calls` calls."""
        table = None
        for group in range(self._file.num_row_groups):
            table = self._read_group(group) if table is None else pa.concat_tables([table, self._read_group(group)])
            lengths = self._lengths(table)
            start = 0
            while len(lengths) - start > 0:
                ends = np.cumsum(lengths[start:])
                rows = max(1, int(np.searchsorted(ends, max_calls, side="right")))
                if rows >= len(lengths) - start and group + 1 < self._file.num_row_groups:
                    break  # the next row group may still fit into this batch
                yield self._batch(table.slice(start, rows))
                start += rows
            table = table.slice(start) if start < len(lengths) else None

    def rows(self, first: int, count: int) -> TraceBatch:
        """The `count` traces from number `first` on; reads the row groups that hold them.

        Raises:
          SyscallLMError: the archive has fewer, or is damaged.
        """
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        ends = np.cumsum(sizes)
        if not 0 <= first < first + count <= self.num_traces:
            raise SyscallLMError(f"{self.path}: has no traces {first:,} to {first + count - 1:,}")
        groups = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, first + count)) + 1)
        table = pa.concat_tables([self._read_group(group) for group in groups])
        return self._batch(table.slice(first - int(ends[groups[0]]) + sizes[groups[0]], count))

    def read(self) -> TraceBatch:
        """The whole archive as one batch."""
        return self._batch(pa.concat_tables([self._read_group(g) for g in range(self._file.num_row_groups)]))

    def _read_group(self, group: int) -> pa.Table:
        try:
            table = self._file.read_row_group(group)
            table.validate(full=True)  # offsets, and that text is UTF-8
            if len(table) != self._file.metadata.row_group(group).num_rows:
                raise ValueError("fewer rows than it says")
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SyscallLMError(f"{self.path}: damaged or truncated in row group {group}") from error

    @staticmethod
    def _lengths(table: pa.Table) -> np.ndarray:
        offsets = [np.diff(chunk.offsets.to_numpy()) for chunk in table["calls"].chunks]
        return np.concatenate([np.zeros(0, np.int64), *offsets])

    def _batch(self, table: pa.Table) -> TraceBatch:
        column = table["calls"].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        offsets = column.offsets.to_numpy().astype(np.int64)
        calls = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        if column.null_count or calls.null_count or (np.diff(offsets) == 0).any():
            raise SyscallLMError(f"{self.path}: holds a trace without calls; an archive never does")
        calls = calls.to_numpy()
        if calls.max(initial=0) > self.vocabulary.unk:
            raise SyscallLMError(f"{self.path}: holds call id {calls.max()}, outside its vocabulary")
        return TraceBatch(Sequences(calls, offsets - offsets[0]), table.drop_columns(["calls"]))
