"""A Parquet file from outside, read by a process of its own, which hands on an Arrow stream.

Parquet's reader is C++ that trusts a file more than one should: a single changed byte in the footer can abort the
process. So only this child has to die; it also gets limits of memory and time. What a file claims of itself, and what
comes out of it, is checked against its size, since a few bytes can stand for billions of rows.

  python -m syscall_lm.traces.parquet_stream FILE NAME COLUMNS

writes the columns that `columns.Columns` chooses to standard output. Exit code 2: a sentence for the user is on
standard error; 0: the number of damaged row groups is.
"""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parquet_check
from syscall_lm.traces.archive import METADATA_KEY
from syscall_lm.traces.columns import Columns
from syscall_lm.traces.readers import Options

MAX_METADATA = 2**26  # bytes of names in it
MAX_COLUMNS = 10_000
MAX_RATIO = 1000  # rows, or bytes unpacked, to a byte of the file, ...
FREE = 2**26  # ... once there are this many
_compute: Any = pyarrow.compute  # its functions are made when it is imported
_ROWS = 2**14  # at a time
_PIECE = 2**27  # bytes at a time
_BYTES = 8  # of a value, besides its own
_FLAT = (pa.null(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_REFUSED = 2
_LAST_WORDS = 60  # seconds that the child has to end after its stream has


def stream(path: str, name: str, columns: str) -> Iterator[pa.RecordBatch | int]:
    """The rows of a Parquet file, some at a time, and at last the number of row groups that were damaged.

    Args:
      path: the file.
      name: what to call it in messages.
      columns: `Options.columns`.

    Raises:
      SyscallLMError: the file is damaged, claims impossible sizes, or lacks the columns.
    """
    # -P: nothing is imported from the current folder, which may be the captures'.
    command = [sys.executable, "-P", "-m", "syscall_lm.traces.parquet_stream", path, name, columns]
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=told)
        rows = 0
        try:
            with contextlib.suppress(pa.ArrowException, OSError):  # the stream ends where the child died
                for batch in pa.ipc.open_stream(child.stdout):
                    rows += batch.num_rows
                    yield batch
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LAST_WORDS)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        told.seek(0)
        message = told.read(2000).decode("utf-8", "replace").strip()
    if child.returncode == _REFUSED:
        raise SyscallLMError(message)
    if message.isdigit():
        yield int(message)
    elif rows == 0:
        raise SyscallLMError(f"{name}: a damaged or hostile Parquet file; the process that read it died")
    else:
        yield 1


def _open(path: str, name: str) -> pq.ParquetFile:
    size = pathlib.Path(path).stat().st_size
    try:
        table = pq.ParquetFile(path, thrift_string_size_limit=MAX_METADATA, thrift_container_size_limit=2**20)
        metadata = table.metadata
        if METADATA_KEY in (metadata.metadata or {}):
            raise SyscallLMError(f"{name}: is a trace archive already; there is nothing to ingest")
        if metadata.num_columns > MAX_COLUMNS:
            raise SyscallLMError(f"{name}: a Parquet file of {metadata.num_columns:,} columns; expected a few")
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        sizes = [group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)]
        rows = [metadata.num_rows, *(group.num_rows for group in groups)]
        limit = max(FREE, MAX_RATIO * size)
        if min(rows) < 0 or min(sizes, default=0) < 0 or sum(sizes) > limit or max(rows) > limit:
            raise SyscallLMError(
                f"{name}: a Parquet file of {size:,} bytes that claims {max(rows):,} rows and {sum(sizes):,} bytes of "
                "content; it is damaged or hostile"
            )
        return table
    except SyscallLMError:
        raise
    except parquet_check.ERRORS as error:
        problem = " ".join(str(error).split())[:120]
        raise SyscallLMError(f"{name}: not a Parquet file, or truncated or damaged ({problem})") from error


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows of a batch in pieces that a process can hold as objects; ValueError for too large a row."""
    if _size(batch) <= _PIECE:
        yield batch
    elif batch.num_rows == 1:
        raise ValueError("a row larger than any trace")
    else:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))


def _size(values: pa.RecordBatch | pa.Array) -> int:
    """About how many bytes the values take where nothing is shared; ValueError for a type that is none of a table's."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(_size, values.columns))
    kind = values.type
    if pa.types.is_dictionary(kind):  # all might be the longest one
        words = values.dictionary
        is_text = words.type in _FLAT[1:]
        longest = (_compute.max(_compute.binary_length(words)).as_py() or 0) if is_text else _size(words)
        return len(values) * (_BYTES + longest)
    if pa.types.is_nested(kind):
        inner = values.flatten()
        return len(values) * _BYTES + (sum(map(_size, inner)) if isinstance(inner, list) else _size(inner))
    if not isinstance(values, pa.ExtensionArray) and (
        pa.types.is_primitive(kind) or kind in _FLAT or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind)
    ):
        return values.nbytes + len(values) * _BYTES
    raise ValueError(f"a column of type {kind}")


def _main(path: str, name: str, columns: str) -> int:
    """What the child does; the exit code."""
    parquet_check.limit_memory()
    parquet_check.limit_time(path)
    try:
        table = _open(path, name)
        present = [field.name for field in table.schema_arrow]
        chosen = Columns.choose(present, Options(columns=columns), name)
    except SyscallLMError as error:
        print(error, file=sys.stderr)
        return _REFUSED
    wanted = sorted(set(chosen.names.values()))
    schema = pa.schema([table.schema_arrow.field(present.index(column)) for column in wanted])
    damaged, unpacked = 0, 0
    limit = max(FREE, MAX_RATIO * pathlib.Path(path).stat().st_size) * _BYTES
    with pa.ipc.new_stream(sys.stdout.buffer, schema) as output:
        for group in range(table.num_row_groups):
            try:
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                    batch = batch.select(wanted)
                    batch.validate(full=True)
                    for piece in _pieces(batch):
                        unpacked += _size(piece)
                        if unpacked > limit:
                            print(
                                f"{name}: unpacks to over {limit:,} bytes, like a decompression bomb", file=sys.stderr
                            )
                            return _REFUSED
                        output.write_batch(piece)
            except BrokenPipeError:
                return 1
            except parquet_check.ERRORS:
                damaged += 1
    print(damaged, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:4]))
