"""Many files of one format to one archive: in several processes, and resumed where a run was killed."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parts, readers, sources, workers
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.parts import NOT_RECOGNISED, Part, Stored
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import STANDARD_INPUT, Source
from syscall_lm.traces.tally import Tally, most
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary, settle

AUTO = "auto"
_TOLD = 100  # sources, hosts, commands that the archive's metadata names


@dataclasses.dataclass
class Summary(Tally):
    """What became of the files, see `Tally`.

    Attributes:
      format: the format that they were read as.
      numbering: which of the format's numberings was used, if it has several.
      longest: id and calls of the longest trace.
      renamed: traces whose id had to be changed because another has it.
      resumed: parts that an earlier run had read.
    """

    format: str = ""
    numbering: str = ""
    longest: tuple[str, int] = ("", 0)
    renamed: int = 0
    resumed: int = 0

    @property
    def warning(self) -> str:
        """What a user of such captures has to know; empty for most formats."""
        return getattr(readers.reader(self.format), "WARNING", "")

    @property
    def bad(self) -> int:
        """Lines (or words) that were skipped and are no noise."""
        noise = readers.reader(self.format).NOISE
        return sum(times for reason, times in self.counters.skipped.items() if reason not in noise)

    @property
    def bad_fraction(self) -> float:
        """The share of lines (or words) that were skipped as bad."""
        return self.bad / max(1, self.counters.lines, self.counters.calls + self.bad)


def ingest(
    arguments: Sequence[str],
    output: str | os.PathLike[str],
    format: str = AUTO,
    options: Options | None = None,
    max_bad_fraction: float = 1.0,
    workers: int = 1,
    progress: Callable[[int], object] = lambda calls: None,
) -> Summary:
    """Reads what the arguments name into one archive, which appears only if all went well.

    While it runs, what has been read is kept in the folder `OUTPUT.parts`. A run that is killed leaves it, and the same
    call goes on from there; files that changed since are read again. Standard input cannot be resumed.

    Args:
      arguments: files, patterns, folders, "-" for standard input.
      output: path of the archive.
      format: the name of a format, or "auto": the one that recognises the first file that any format recognises. Files
        that it does not recognise are then left out and counted.
      options: how to read.
      max_bad_fraction: fail if a larger share of lines was bad; 0 also refuses truncated and damaged files.
      workers: processes that read; the archive is the same whatever their number.
      progress: is called with numbers of calls as they are read.

    Raises:
      SyscallLMError: an input cannot be read or recognised, or is the output, no call was read, or too much was bad;
        another run is writing the same output.
    """
    if not 0 <= max_bad_fraction <= 1:
        raise SyscallLMError(f"--max_bad_fraction={max_bad_fraction}: expected a number from 0 to 1")
    if workers < 1:
        raise SyscallLMError(f"--workers={workers}: expected at least 1")
    options = options or Options()
    output = pathlib.Path(output)
    files.require_no_input(output, arguments)
    if STANDARD_INPUT in arguments:
        skipped = collections.Counter[str]()
        opened = sources.open_sources(arguments, skipped)
        named = format
        if format == AUTO:
            format, opened = _recognised(opened, skipped, arguments)
        summary, vocabulary = _prepare(format, options)
        with _parts_folder(output) as folder:
            part = Part(format, named == AUTO, options, "", ((STANDARD_INPUT, False, 0, 0),))
            stored = parts.read(part, opened, folder, progress)
            summary.skipped_files += skipped
            return _write(output, [stored], summary, vocabulary, options, arguments, max_bad_fraction, folder)

    with contextlib.ExitStack() as stack:
        skipped = collections.Counter[str]()
        found = list(sources.find_files(arguments, skipped))
        files.require_no_input(output, (path for path, _ in found))
        recognised = format == AUTO
        if recognised:
            ignored = skipped.copy()  # is counted when the parts are read
            opened = (source for path, lone in found for source in sources.open_file(path, lone, ignored))
            with contextlib.closing(opened):  # else a zip archive's list of members stays
                format = _recognised(opened, ignored, arguments)[0]
        summary, vocabulary = _prepare(format, options)
        summary.skipped_files += skipped
        folder = stack.enter_context(_parts_folder(output))
        divided = parts.divide(found, format, recognised, options)
        missing = [part for part in divided if Stored.load(folder, part.key) is None]
        summary.resumed = len(divided) - len(missing)
        _read_all(missing, folder, workers, progress)
        loaded = [Stored.load(folder, part.key) for part in divided]
        stored = [part for part in loaded if part is not None]
        if len(stored) < len(divided):
            raise SyscallLMError(f"{folder}: was changed while a run was at work there; run again")
        return _write(output, stored, summary, vocabulary, options, arguments, max_bad_fraction, folder)


_read_all = workers.read_all  # the argument of `ingest` has the module's name


def _prepare(format: str, options: Options) -> tuple[Summary, Vocabulary | NamesSeen]:
    reader = readers.reader(format)
    readers.grouping(reader, options)
    readers.require_concerned(reader, options)
    readers.require_times(reader, options)
    numbering = reader.numbering(options) if hasattr(reader, "numbering") else ""
    return Summary(format=format, numbering=numbering), reader.vocabulary(options)


@contextlib.contextmanager
def _parts_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of parts, for this run alone; it goes when the run succeeds, or fails with nothing to go on from."""
    if output.is_dir():
        raise SyscallLMError(f"{output}: is a folder, but a file is to be written there")
    folder = output.with_name(output.name + ".parts")
    with files.exclusive(folder):
        files.remove_leftovers(output)
        for leftover in folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        try:
            yield folder
        finally:
            if not any(folder.glob("*.json")):
                _remove(folder)


def _remove(folder: pathlib.Path) -> None:
    files.remove_folder(folder, "*.json", "*.arrow")


def _write(
    output: pathlib.Path,
    stored: Sequence[Stored],
    summary: Summary,
    vocabulary: Vocabulary | NamesSeen,
    options: Options,
    arguments: Sequence[str],
    max_bad_fraction: float,
    folder: pathlib.Path,
) -> Summary:
    """Joins the parts, in order."""
    for part in stored:
        summary.add(part.tally)
    try:
        _check(summary, max_bad_fraction)
    except SyscallLMError:
        _remove(folder)
        raise
    if isinstance(vocabulary, NamesSeen):
        vocabulary = settle((name for part in stored for name in part.names or ()), options.abi)
    with TraceArchiveWriter(output, vocabulary) as writer:
        distinct = _DistinctIds()
        for part in stored:
            table = None if part.names is None else _translation(part.names, vocabulary)
            for traces in part.tables():
                if table is not None:
                    traces = _translate(traces, table, part.names or (), vocabulary, summary.counters)
                traces = distinct(traces)
                _note_longest(traces, summary)
                writer.write_table(traces)
        summary.renamed = distinct.renamed
        writer.metadata.update(
            format=summary.format,
            numbering=summary.numbering,
            arguments=[sources.as_text(argument) for argument in arguments],
            sources=summary.sources,
            counters=summary.counters.to_json(),
            skipped_files=dict(summary.skipped_files.most_common()),
            warning=summary.warning,
            **{name: most(getattr(summary, name), _TOLD) for name in ("by_source", "by_host", "by_command")},
        )
        if options.event_filters:
            counts = dict(summary.counters.filtered.most_common())
            writer.metadata["filters"] = [{**options.event_filters, "counts": counts}]
    _remove(folder)
    return summary


def _translation(names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    table = np.full(2**16, vocabulary.unk, np.uint16)
    table[: len(names)] = vocabulary.encode(names)
    return table


def _with_calls(traces: pa.Table, calls: np.ndarray) -> pa.Table:
    column = traces["calls"].combine_chunks()
    offsets = column.offsets.to_numpy()
    return traces.set_column(
        traces.schema.get_field_index("calls"),
        traces.schema.field("calls"),
        pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), pa.array(calls)),
    )


def _translate(
    traces: pa.Table, table: np.ndarray, names: Sequence[str], vocabulary: Vocabulary, counters: Counters
) -> pa.Table:
    calls = traces["calls"].combine_chunks().flatten().to_numpy()
    translated = table[calls]
    # Calls that were unknown already when they were read have been counted then.
    for call, times in collections.Counter(
        calls[(translated == vocabulary.unk) & (calls < len(names))].tolist()
    ).items():
        counters.count_unknown(str(names[call]), times)
    return _with_calls(traces, translated)


def _note_longest(traces: pa.Table, summary: Summary) -> None:
    lengths = np.diff(traces["calls"].combine_chunks().offsets.to_numpy())
    row = int(lengths.argmax())
    if lengths[row] > summary.longest[1]:
        summary.longest = (traces["id"][row].as_py(), int(lengths[row]))


def _recognised(
    opened: Iterator[Source], skipped: collections.Counter[str], arguments: Sequence[str]
) -> tuple[str, Iterator[Source]]:
    """The format of the first file that any format recognises, and the files from there on."""
    unknown = ""
    for source in opened:
        found = list(readers.recognise(source.name, source.head))
        if len(found) > 1:
            raise SyscallLMError(f"{source.name}: may be {' or '.join(found)}; name the format with --format")
        if found:
            return found[0], _chain(source, opened)
        unknown = unknown or source.name
        skipped[NOT_RECOGNISED] += 1
    if not unknown:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in skipped.most_common()) or "no file in them"
        raise SyscallLMError(f"{' '.join(map(sources.as_text, arguments))[:200]}: nothing to read ({reasons})")
    raise SyscallLMError(
        f"{unknown}: its format is not recognised; name one with --format, known are {', '.join(readers.names())}"
    )


def _chain(first: Source, rest: Iterator[Source]) -> Iterator[Source]:
    yield first
    yield from rest


class _DistinctIds:
    """Gives a trace whose id another trace has a number. Keeps 8 bytes an id, since there may be ten millions."""

    _MERGE_AT = 2**20

    def __init__(self):
        self._recent: set[int] = set()
        self._sorted = np.zeros(0, np.uint64)
        self._number = 0
        self.renamed = 0

    def __call__(self, traces: pa.Table) -> pa.Table:
        ids = traces["id"].to_pylist()
        changed = False
        hashes = np.array([_hash(ident) for ident in ids], np.uint64)
        old = self._in_sorted(hashes)
        for row, ident in enumerate(ids):
            self._number += 1
            number = int(hashes[row])
            if old[row] or number in self._recent:
                while (number := _hash(f"{ident}~{self._number}")) in self._recent or self._in_sorted(number):
                    self._number += 1
                ids[row] = f"{ident}~{self._number}"
                self.renamed += 1
                changed = True
            self._recent.add(number)
        if len(self._recent) >= self._MERGE_AT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()
        if not changed:
            return traces
        return traces.set_column(traces.schema.get_field_index("id"), traces.schema.field("id"), pa.array(ids))

    def _in_sorted(self, hashes: "np.ndarray | int") -> np.ndarray:
        if len(self._sorted) == 0:
            return np.zeros(np.shape(hashes), bool)
        hashes = np.asarray(hashes, np.uint64)
        places = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        return self._sorted[places] == hashes


def _hash(ident: str) -> int:
    return int.from_bytes(hashlib.blake2b(ident.encode(), digest_size=8).digest(), "little")


def _check(summary: Summary, max_bad_fraction: float) -> None:
    counters = summary.counters
    reasons = ", ".join(f"{r}: {n:,}" for r, n in (counters.skipped + summary.skipped_files).most_common(5)) or "empty"
    if counters.calls == 0:
        raise SyscallLMError(
            f"no call could be read as {summary.format} from {summary.sources} files ({reasons}); "
            "is it the right --format?"
        )
    if summary.bad_fraction > max_bad_fraction:
        raise SyscallLMError(
            f"{summary.bad:,} lines are bad, a share of {summary.bad_fraction:.2g}, more than "
            f"--max_bad_fraction={max_bad_fraction:g} ({reasons})"
        )
    damaged = sum(summary.skipped_files[reason] for reason in sources.DAMAGE)
    if max_bad_fraction == 0 and damaged:
        raise SyscallLMError(
            f"{damaged} files are truncated or damaged, which --max_bad_fraction=0 refuses ({reasons})"
        )
