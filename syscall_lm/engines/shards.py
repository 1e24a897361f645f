"""An archive in shards, so that no finished work is ever lost, whatever engine scores them.

A shard is a run of the archive's traces. Its rows are written to `OUTPUT.parts`, each shard in a file that appears only
when it is complete; the output is joined from them last, with a manifest in its footer. A run that was killed leaves
its finished shards, and the same run goes on from there, with any engine: its output is the same to the byte.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.archive import TraceArchive, TraceBatch

_CONFIGURATION = "configuration.json"  # in the folder of the parts
MANIFEST_KEY = "syscall_lm.manifest"  # in the output's footer: a JSON object of what was scored, and with what


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some traces that are scored together.

    Attributes:
      first: the number of the first trace in the archive.
      traces: how many they are.
      calls: how many calls they have.
      part: the file that is to hold their rows.
    """

    first: int
    traces: int
    calls: int
    part: pathlib.Path

    def write(self, rows: pa.Table) -> None:
        """Makes the shard complete.

        Raises:
          SyscallLMError: the folder cannot be written, or the disk is full.
        """
        with files.complete_file(self.part) as temporary:
            pq.write_table(rows, temporary, compression="zstd")


# Completes the shards that it is given, with their traces, and yields each when it is complete, in any order.
Engine = Callable[[Iterator[tuple[Shard, TraceBatch]]], Iterator[Shard]]


def score_archive(
    archive: TraceArchive,
    engine: Engine,
    schema: pa.Schema,
    output: str | os.PathLike[str],
    configuration: Mapping[str, Any],
    calls_per_shard: int,
    progress: Callable[[int], object] = lambda calls: None,
) -> int:
    """Scores an archive into one Parquet file, which appears when all of it is scored.

    Args:
      archive: N traces.
      engine: what scores the shards that are missing.
      schema: of the output.
      output: the file to write.
      configuration: plain JSON values that decide the rows, the archive aside; finished shards of another configuration
        or archive are refused. Goes into the manifest.
      calls_per_shard: about how many calls are scored before they are safe on disk; a process holds three shards.
      progress: called with the calls of each shard, when it is done.

    Returns:
      how many shards an earlier run had finished.

    Raises:
      SyscallLMError: the folder or file cannot be written, the output is the archive itself, another run is at work on
        the same output, or an earlier run of another configuration was interrupted there.
    """
    output = pathlib.Path(output)
    if output.is_dir():
        raise SyscallLMError(f"{output}: is a folder, but a file is to be written there")
    files.require_no_input(output, [archive.path])
    folder = output.with_name(output.name + ".parts").absolute()
    settings = dict(configuration) | {"calls_per_shard": calls_per_shard}
    shards: list[Shard] = []
    resumed = 0

    def missing() -> Iterator[tuple[Shard, TraceBatch]]:
        nonlocal resumed
        first = 0
        for number, batch in enumerate(archive.batches(calls_per_shard)):
            shard = Shard(first, len(batch), len(batch.calls.calls), folder / f"{number:08}.parquet")
            first += len(batch)
            shards.append(shard)
            if shard.part.exists():
                resumed += 1
                progress(shard.calls)
            else:
                yield shard, batch

    with files.exclusive(folder):
        files.remove_leftovers(output)
        _require_same(folder, settings | {"archive": _as_it_is_now(archive.path)})
        for shard in engine(missing()):
            progress(shard.calls)
        with (
            files.complete_file(output) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for shard in shards:
                writer.write_table(_read(shard.part))
            calls = sum(shard.calls for shard in shards)
            manifest = settings | {"shards": len(shards), "traces": archive.num_traces, "calls": calls}
            writer.add_key_value_metadata({MANIFEST_KEY: json.dumps(manifest, sort_keys=True)})
        files.remove_folder(folder, "*.parquet", _CONFIGURATION)
    return resumed


def _read(part: pathlib.Path) -> pa.Table:
    try:
        return pq.read_table(part)
    except (pa.ArrowException, OSError) as error:
        raise SyscallLMError(f"{part}: a damaged shard; delete it to score it again") from error


def _as_it_is_now(path: pathlib.Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _require_same(folder: pathlib.Path, configuration: dict[str, Any]) -> None:
    file = folder / _CONFIGURATION
    text = json.dumps(configuration, indent=1, sort_keys=True) + "\n"
    if not file.exists():
        files.write_text(file, text)
    elif file.read_text(encoding="utf-8", errors="replace") != text:
        raise SyscallLMError(
            f"{folder}: holds the shards of an interrupted run with another model, archive or flags; "
            "finish that run, or delete the folder"
        )
