"""Parquet with columns of any name: --columns=call=NAME,pid=NAME,... says what they hold; see `csv`.

A row is one call, or, where the column `calls` is a list, a whole trace. Parquet is read from its end, so the file is
first copied to a temporary one, which a process of its own reads (see `parquet_stream`).
"""

import tempfile
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import columns, parquet_stream
from syscall_lm.traces.columns import Columns, Rows
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "Parquet; --columns says which column holds what"
EXPLAINED_BY = ("mapping", "numbering", "columns")

DAMAGED = "row group damaged"
NOISE = frozenset()
GROUPINGS = columns.GROUPINGS
EVENT_TIMES = True  # where a column holds them

MAX_FILE = 2**36  # bytes
_MAGIC = b"PAR1"

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
    rows = None
    with tempfile.NamedTemporaryFile(prefix="syscall_lm.") as file:
        _copy(source, file)
        for batch in parquet_stream.stream(file.name, source.name, options.columns):
            if isinstance(batch, int):
                if batch:
                    counters.skipped[DAMAGED] += batch
                continue
            if rows is None:
                chosen = Columns.choose(batch.schema.names, options, source.name)
                rows = Rows(source, vocabulary, options, counters, chosen)
            counters.lines += batch.num_rows
            values = _values(batch)
            for row in range(batch.num_rows):
                rows.add(lambda name, row=row, values=values: values[name][row])
            yield from rows.grouping.settle(batch.num_rows)
    if rows is not None:
        yield from rows.grouping.finish()


def _values(batch: pa.RecordBatch) -> dict[str, list[object]]:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError, OSError):  # a date that Python has not, and the like
            values[name] = [None] * batch.num_rows
    return values


def _copy(source: Source, file: IO[bytes]) -> None:
    size = 0
    try:
        while data := source.stream.read(2**18):
            size += file.write(data)
            if size > MAX_FILE:
                raise SyscallLMError(f"{source.name}: a Parquet file of more than {MAX_FILE:,} bytes; split it")
        file.flush()
    except OSError as error:
        raise SyscallLMError(f"{source.name}: cannot be copied to a temporary file ({error.strerror})") from error
