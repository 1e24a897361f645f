"""Reading many files in parts: each part's traces are kept beside the output until all are there.

What a part holds depends on its files and the options alone. So it does not matter how many processes read, or how
often the run was killed: finished parts are taken as they are, and the output is the same to the byte.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import pyarrow as pa

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import readers, sources
from syscall_lm.traces.archive import CALLS_PER_GROUP, SCHEMA, TRACES_PER_GROUP, to_table
from syscall_lm.traces.readers import Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.tally import Tally
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen

VERSION = 2  # to be raised when readers change what they make of a file
BYTES_PER_PART = 2**26  # of files on disk; a larger file is a part of its own
FILES_PER_PART = 512

NOT_RECOGNISED = "file not recognised"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some files that are read one after the other.

    Attributes:
      format: the format they are read as.
      only_recognised: whether files that the format does not recognise are left out.
      options: how to read.
      mapping: hash of the mapping file.
      files: path, whether it is all that the user named, size, time of change.
    """

    format: str
    only_recognised: bool
    options: Options
    mapping: str
    files: tuple[tuple[str, bool, int, int], ...]

    @property
    def key(self) -> str:
        """Changes with everything that the part's content depends on."""
        text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def sources(self, skipped: collections.Counter[str]) -> Iterator[Source]:
        """The files' sources, opened one at a time."""
        for path, lone, _, _ in self.files:
            yield from sources.open_file(path, lone, skipped)


def divide(paths: Iterable[tuple[str, bool]], format: str, only_recognised: bool, options: Options) -> list[Part]:
    """Divides files into parts, in order.

    Raises:
      SyscallLMError: a file cannot be found any more.
    """
    mapping = hashlib.sha256(pathlib.Path(options.mapping).read_bytes()).hexdigest() if options.mapping else ""
    found: list[Part] = []
    chosen: list[tuple[str, bool, int, int]] = []
    total = 0

    def close() -> None:
        nonlocal chosen, total
        if chosen:
            found.append(Part(format, only_recognised, options, mapping, tuple(chosen)))
        chosen, total = [], 0

    for path, lone in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise SyscallLMError(f"{sources.as_text(path)}: cannot be read ({error.strerror})") from error
        if total + status.st_size > BYTES_PER_PART or len(chosen) >= FILES_PER_PART:
            close()
        chosen.append((path, lone, status.st_size, status.st_mtime_ns))
        total += status.st_size
    close()
    return found


@dataclasses.dataclass(frozen=True)
class Stored:
    """A part that has been read.

    Attributes:
      path: its traces, an Arrow file of `archive.SCHEMA`.
      tally: what became of its files.
      names: the vocabulary of its call ids where that grew while reading; nothing where the format has a fixed one.
    """

    path: pathlib.Path
    tally: Tally
    names: tuple[str, ...] | None

    @classmethod
    def load(cls, folder: pathlib.Path, key: str) -> "Stored | None":
        """A part that is complete; nothing if it has to be read."""
        path = folder / f"{key}.arrow"
        try:
            told = json.loads((folder / f"{key}.json").read_text("utf-8"))
            if path.stat().st_size != told["size"]:
                return None
            return cls(path, Tally.from_json(told["tally"]), None if told["names"] is None else tuple(told["names"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def tables(self) -> Iterator[pa.Table]:
        """Its traces, some at a time.

        Raises:
          SyscallLMError: the file cannot be read.
        """
        try:
            with pa.OSFile(str(self.path)) as file, pa.ipc.open_file(file) as stored:
                for i in range(stored.num_record_batches):
                    yield pa.Table.from_batches([stored.get_batch(i)], SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise SyscallLMError(f"{self.path}: cannot be read ({error}); remove it and run again") from error


def read(
    part: Part, opened: Iterable[Source] | None, folder: pathlib.Path, progress: Callable[[int], object]
) -> Stored:
    """Reads a part's files and stores its traces.

    Args:
      part: what to read.
      opened: its sources if they are open already (standard input).
      folder: where to store them.
      progress: is called with the calls of each trace.

    Raises:
      SyscallLMError: a file cannot be read, or the folder cannot be written.
    """
    tally = Tally()
    reader = readers.reader(part.format)
    vocabulary = reader.vocabulary(part.options)
    opened = part.sources(tally.skipped_files) if opened is None else opened
    path = folder / f"{part.key}.arrow"
    with files.complete_file(path) as temporary:
        compression = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, SCHEMA, options=compression) as writer:
            for traces in _grouped(_traces(part, reader, vocabulary, opened, tally), progress):
                writer.write_table(to_table(traces))
    names = vocabulary.names if isinstance(vocabulary, NamesSeen) else None
    told = {"size": path.stat().st_size, "tally": tally.to_json(), "names": names}
    files.write_text(folder / f"{part.key}.json", json.dumps(told))
    return Stored(path, tally, names)


def _traces(part: Part, reader: ModuleType, vocabulary: Any, opened: Iterable[Source], tally: Tally) -> Iterator[Trace]:
    for source in opened:
        if part.only_recognised and not reader.recognises(source.name, source.head):
            tally.skip(NOT_RECOGNISED, source.name)
            continue
        tally.sources += 1
        for trace in reader.read(source, vocabulary, part.options, tally.counters):
            tally.add_trace(trace)
            yield trace


def _grouped(traces: Iterator[Trace], progress: Callable[[int], object]) -> Iterator[list[Trace]]:
    group: list[Trace] = []
    calls = 0
    for trace in traces:
        group.append(trace)
        calls += len(trace.calls)
        progress(len(trace.calls))
        if calls >= CALLS_PER_GROUP or len(group) >= TRACES_PER_GROUP:
            yield group
            group, calls = [], 0
    if group:
        yield group
