"""Parquet with columns of any name: --columns=call=NAME,pid=NAME,... says what they hold; see `csv`.

A row is one call, or, where the column `calls` is a list, a whole trace. Parquet is read from its end, so what does not
come as a plain file is first copied to a temporary one. What a file claims of itself is checked against its size.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import columns
from syscall_lm.traces.archive import METADATA_KEY
from syscall_lm.traces.columns import Columns, Rows
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "Parquet; --columns says which column holds what"

DAMAGED = "row group damaged"
NOISE = frozenset()
GROUPINGS = columns.GROUPINGS

MAX_FILE = 2**36  # bytes
MAX_METADATA = 2**26  # bytes of names in it
MAX_COLUMNS = 10_000
MAX_CHUNK = 2**31  # bytes that one column of a row group unpacks to
MAX_RATIO = 1000  # rows, or bytes unpacked, to a byte of the file, ...
FREE = 2**26  # ... once there are this many
_ROWS = 2**14  # at a time
_MAGIC = b"PAR1"
# What pyarrow raises for damage; among others OSError and ValueError.
_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, NotImplementedError)

vocabulary = columns.vocabulary


def recognises(name: str, head: bytes) -> bool:
    """By the first bytes."""
    del name
    return head.startswith(_MAGIC)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one table: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the table.
      vocabulary: what `vocabulary` gave.
      options: `columns`, `mapping`, `numbering`, `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled; its `lines` are rows.

    Raises:
      SyscallLMError: the file is damaged or larger than it can be, or its columns do not tell calls and traces.
    """
    with tempfile.TemporaryFile() as file:
        size = _copy(source, file)
        table = _open(source.name, file, size)
        chosen = Columns.choose([field.name for field in table.schema_arrow], options, source.name)
        rows = Rows(source, vocabulary, options, counters, chosen)
        wanted = sorted(set(chosen.names.values()))
        for group in range(table.num_row_groups):
            batches = iter(table.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False))
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    batch.validate(full=True)
                    values = batch.to_pydict()
                except _ERRORS:
                    counters.skipped[DAMAGED] += 1
                    break
                counters.lines += batch.num_rows
                for row in range(batch.num_rows):
                    rows.add(lambda name, row=row, values=values: values[name][row])
                yield from rows.grouping.settle(batch.num_rows)
        yield from rows.grouping.finish()


def _copy(source: Source, file: IO[bytes]) -> int:
    size = 0
    with _told(source.name, "cannot be copied to a temporary file"):
        while data := source.stream.read(2**18):
            size += file.write(data)
            if size > MAX_FILE:
                raise SyscallLMError(f"{source.name}: a Parquet file of more than {MAX_FILE:,} bytes; split it")
    return size


def _open(name: str, file: IO[bytes], size: int) -> pq.ParquetFile:
    with _told(name, "not a Parquet file, or truncated or damaged"):
        table = pq.ParquetFile(
            file, thrift_string_size_limit=MAX_METADATA, thrift_container_size_limit=2**20, memory_map=False
        )
        metadata = table.metadata
        if METADATA_KEY in (metadata.metadata or {}):
            raise SyscallLMError(f"{name}: is a trace archive already; there is nothing to ingest")
        if metadata.num_columns > MAX_COLUMNS:
            raise SyscallLMError(f"{name}: a Parquet file of {metadata.num_columns:,} columns; expected a few")
        limit = max(FREE, MAX_RATIO * size)
        total = 0
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            sizes = [row_group.column(i).total_uncompressed_size for i in range(row_group.num_columns)]
            total += sum(map(abs, sizes))
            if max(sizes, default=0) > MAX_CHUNK or min(sizes, default=0) < 0 or row_group.num_rows < 0:
                raise SyscallLMError(f"{name}: a Parquet file that claims impossible sizes; it is damaged or hostile")
        if total > limit or metadata.num_rows > limit:
            raise SyscallLMError(
                f"{name}: a Parquet file of {size:,} bytes that claims {metadata.num_rows:,} rows and {total:,} bytes "
                "of content; it is damaged or hostile"
            )
        table.schema_arrow  # noqa: B018 - raises for types that Arrow does not know
        return table


@contextlib.contextmanager
def _told(name: str, problem: str) -> Iterator[None]:
    try:
        yield
    except SyscallLMError:
        raise
    except _ERRORS as error:
        raise SyscallLMError(f"{name}: {problem} ({' '.join(str(error).split())[:120]})") from error
