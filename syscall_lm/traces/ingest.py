"""Many files of one format to one archive."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import readers, sources
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace

AUTO = "auto"
_OTHER_FORMAT = "file not recognised"


@dataclasses.dataclass
class Summary:
    """What became of the files.

    Attributes:
      format: the format that they were read as.
      numbering: which of the format's numberings was used, if it has several.
      sources: files and members that were read.
      counters: what the reader saw.
      skipped_files: what was not opened or not read to its end, by reason.
      groups: traces by (label, split).
      longest: id and calls of the longest trace.
      renamed: traces whose id had to be changed because another has it.
    """

    format: str
    numbering: str = ""
    sources: int = 0
    counters: Counters = dataclasses.field(default_factory=Counters)
    skipped_files: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    groups: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    longest: tuple[str, int] = ("", 0)
    renamed: int = 0

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
    progress: Callable[[Trace], object] = lambda trace: None,
) -> Summary:
    """Reads what the arguments name into one archive, which appears only if all went well.

    Args:
      arguments: files, patterns, folders, "-" for standard input.
      output: path of the archive.
      format: the name of a format, or "auto": the one that recognises the first file that any format recognises. Files
        that it does not recognise are then left out and counted.
      options: how to read.
      max_bad_fraction: fail if a larger share of lines was bad; 0 also refuses truncated and damaged files.
      progress: is called with each trace.

    Raises:
      SyscallLMError: an input cannot be read or recognised, no call was read, or too much was bad.
    """
    if not 0 <= max_bad_fraction <= 1:
        raise SyscallLMError(f"--max_bad_fraction={max_bad_fraction}: expected a number from 0 to 1")
    options = options or Options()
    skipped_files = collections.Counter[str]()
    opened = sources.open_sources(arguments, skipped_files)
    if format == AUTO:
        format, opened = _recognised(opened, skipped_files, arguments)
    reader = readers.reader(format)
    vocabulary = reader.vocabulary(options)
    numbering = reader.numbering(options) if hasattr(reader, "numbering") else ""
    summary = Summary(format, numbering, skipped_files=skipped_files)

    with TraceArchiveWriter(output, vocabulary) as writer:
        distinct = _DistinctIds()
        for source in opened:
            summary.sources += 1
            for trace in reader.read(source, vocabulary, options, summary.counters):
                trace = distinct(trace)
                writer.write(trace)
                summary.groups[trace.label, trace.split] += 1
                summary.longest = max(summary.longest, (trace.id, len(trace.calls)), key=lambda pair: pair[1])
                progress(trace)
        summary.renamed = distinct.renamed
        _check(summary, max_bad_fraction)
        writer.metadata.update(
            format=format,
            numbering=numbering,
            arguments=[sources.as_text(argument) for argument in arguments],
            sources=summary.sources,
            counters=summary.counters.to_json(),
            skipped_files=dict(skipped_files.most_common()),
        )
    return summary


def _recognised(
    opened: Iterator[Source], skipped: collections.Counter[str], arguments: Sequence[str]
) -> tuple[str, Iterator[Source]]:
    """The format of the first file that any format recognises, and the files of that format."""
    unknown = ""
    for source in opened:
        found = list(readers.recognise(source.name, source.head))
        if len(found) > 1:
            raise SyscallLMError(f"{source.name}: may be {' or '.join(found)}; name the format with --format")
        if found:
            return found[0], _of_format(readers.reader(found[0]), source, opened, skipped)
        unknown = unknown or source.name
        skipped[_OTHER_FORMAT] += 1
    if not unknown:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in skipped.most_common()) or "no file in them"
        raise SyscallLMError(f"{' '.join(map(sources.as_text, arguments))[:200]}: nothing to read ({reasons})")
    raise SyscallLMError(
        f"{unknown}: its format is not recognised; name one with --format, known are {', '.join(readers.names())}"
    )


def _of_format(
    reader: ModuleType, first: Source, rest: Iterator[Source], skipped: collections.Counter[str]
) -> Iterator[Source]:
    yield first
    for source in rest:
        if reader.recognises(source.name, source.head):
            yield source
        else:
            skipped[_OTHER_FORMAT] += 1


class _DistinctIds:
    """Gives a trace whose id another trace has a number."""

    def __init__(self):
        self._times: dict[str, int] = {}
        self.renamed = 0

    def __call__(self, trace: Trace) -> Trace:
        ident = trace.id
        while ident in self._times:
            self._times[trace.id] += 1
            ident = f"{trace.id}~{self._times[trace.id]}"
        self._times[ident] = 1
        if ident == trace.id:
            return trace
        self.renamed += 1
        return dataclasses.replace(trace, id=ident)


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
