"""Readers: one module a format. A module placed in this package is found by itself; nothing else needs a change.

A reader module defines:

  DESCRIPTION: str                      one line for `ingest --help`.
  NOISE                                 the reasons in `Counters.skipped` that are no sign of a bad file (signals, ...).
  recognises(name, head) -> bool        whether a file called `name` that starts with the bytes `head` is of it.
  vocabulary(options) -> Vocabulary     what the ids of its traces mean.
  read(source, vocabulary, options, counters) -> Iterator[Trace]

and may define

  GROUPINGS: tuple[str, ...]            "thread", "process": whose calls can make a trace; the first is the default.
  EXPLAINED_BY: tuple[str, ...]         those of "mapping", "numbering" and "columns" that it reads.
  EVENT_TIMES: bool                     whether it tells `Grouping` the time of each call, so that calls can be ordered.
  GAPS: bool                            whether it tells at least how much time lies between calls, for --max_gap.
  WARNING: str                          what every user of such a capture has to know (it holds a subset of calls, ...).
  numbering(options) -> str             which of several tables its numbers follow; archives of different numberings
                                        must not be mixed.

`vocabulary` may also give `NamesSeen`, which grows while files are read and is settled when all have been.

`read` gets one `Source` (a name and a binary stream, already decompressed), streams it, and fills `counters`. It never
stops for one bad line, never trusts a length, and raises only `SyscallLMError`.
"""

import collections
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from syscall_lm.errors import SyscallLMError

MAX_UNKNOWN_NAMES = 1000  # distinct unknown names that are counted by name; the rest are counted together


@dataclasses.dataclass
class Counters:
    """What a reader saw.

    Attributes:
      lines: lines (or records) read.
      calls: calls that became part of a trace.
      traces: traces made.
      skipped: what was not used, by reason ("signal", "exit line", "not a call", "line too long", ...).
      filtered: calls that the filters of events moved or dropped, by reason (see `filters.Events`).
      unknown: calls outside the vocabulary (they became UNK), by name.
    """

    lines: int = 0
    calls: int = 0
    traces: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    filtered: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unknown: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def count_unknown(self, name: str, times: int = 1) -> None:
        """Counts calls outside the vocabulary, by name as long as there are not too many names."""
        known = name in self.unknown or len(self.unknown) < MAX_UNKNOWN_NAMES
        self.unknown[name if known else "other names"] += times

    def add(self, other: "Counters") -> None:
        """Adds another reader's counts to these."""
        self.lines += other.lines
        self.calls += other.calls
        self.traces += other.traces
        self.skipped += other.skipped
        self.filtered += other.filtered
        for name, times in other.unknown.items():
            self.count_unknown(name, times)

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON values, the most frequent first."""
        return {
            **dataclasses.asdict(self),
            "skipped": dict(self.skipped.most_common()),
            "filtered": dict(self.filtered.most_common()),
            "unknown": dict(self.unknown.most_common()),
        }


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read; each format uses what concerns it.

    Attributes:
      abi: the ABI whose table gives the vocabulary, for formats that hold names or that ABI's numbers.
      mapping: path of a mapping file (UNM).
      numbering: which of a format's numberings the numbers follow (UNM: "A" or "B").
      host: where the capture was recorded.
      label: "normal", "attack" or empty: for sources that do not say it themselves.
      family, split: likewise.
      group: "thread" or "process": whose calls make a trace; empty for the format's own choice.
      max_gap: seconds of silence after which a thread or process counts as another one; 0 for never.
      columns: which columns hold what ("call=name,pid=PID"), for formats with columns of any name.
      order_events: put the calls of each trace in the order of their times.
      drop_doubled_events: drop a call that equals the one before it in thread, time and name.
    """

    abi: str = "x86_64"
    mapping: str = ""
    numbering: str = ""
    host: str = ""
    label: str = ""
    family: str = ""
    split: str = ""
    group: str = ""
    max_gap: float = 0.0
    columns: str = ""
    order_events: bool = False
    drop_doubled_events: bool = False

    @property
    def event_filters(self) -> dict[str, bool]:
        """The filters of single events that are on, by name; they need each call's time."""
        return {name: True for name in ("order_events", "drop_doubled_events") if getattr(self, name)}


def names() -> list[str]:
    """The names of all formats."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def reader(name: str) -> ModuleType:
    """The reader module of a format.

    Raises:
      SyscallLMError: there is no such format.
    """
    if name not in names():
        raise SyscallLMError(f"--format={name}: no such format; known are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def grouping(module: ModuleType, options: Options) -> str:
    """Whose calls make a trace, as the options wish; empty for a format without processes.

    Raises:
      SyscallLMError: the format cannot tell.
    """
    possible: tuple[str, ...] = getattr(module, "GROUPINGS", ())
    if options.group and options.group not in possible:
        name = module.__name__.rpartition(".")[2]
        offered = f"it tells {' and '.join(possible)} only" if possible else "its traces are what they are"
        raise SyscallLMError(f"--group={options.group}: {name} does not tell which calls belong together so; {offered}")
    return options.group or (possible[0] if possible else "")


def require_concerned(module: ModuleType, options: Options) -> None:
    """Refuses what explains a capture, but none of this format.

    Raises:
      SyscallLMError: such an option is given.
    """
    for flag in ("mapping", "numbering", "columns"):
        if getattr(options, flag) and flag not in getattr(module, "EXPLAINED_BY", ()):
            able = [name for name in names() if flag in getattr(reader(name), "EXPLAINED_BY", ())]
            name = module.__name__.rpartition(".")[2]
            raise SyscallLMError(
                f"--{flag}={getattr(options, flag)}: does not concern {name}, only {', '.join(able)} (see --format)"
            )


def require_times(module: ModuleType, options: Options) -> None:
    """Refuses filters of single events, and gaps, for a format that does not tell the times they need.

    Raises:
      SyscallLMError: one is asked for.
    """

    def tells(module: ModuleType, kind: str) -> bool:
        return getattr(module, "EVENT_TIMES", False) or getattr(module, kind, False)

    wanted = [(flag, "EVENT_TIMES") for flag in options.event_filters]
    wanted += [("max_gap", "GAPS")] if options.max_gap else []
    for flag, kind in wanted:
        if not tells(module, kind):
            able = [name for name in names() if tells(reader(name), kind)]
            name = module.__name__.rpartition(".")[2]
            raise SyscallLMError(
                f"--{flag} needs each call's time, which the reader of {name} does not tell; those of "
                f"{', '.join(able)} do"
            )


def recognise(name: str, head: bytes) -> Iterator[str]:
    """The formats that take a file called `name` starting with `head` for their own."""
    return (format for format in names() if reader(format).recognises(name, head))
