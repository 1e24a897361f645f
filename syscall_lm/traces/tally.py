"""What became of the inputs, countable over many files."""

import collections
import dataclasses
from typing import Any

from syscall_lm.traces.readers import Counters
from syscall_lm.traces.trace import Trace

MAX_DISTINCT = 4096  # sources, hosts, commands that are counted by name; a capture may hold any number
MAX_SKIPPED = 3  # skipped files that are told by name
OTHERS = "others"


@dataclasses.dataclass
class Tally:
    """Counts of what was read.

    Attributes:
      sources: files and members that were read.
      counters: what the reader saw.
      skipped_files: what was not opened or not read to its end, by reason.
      unread: the first files that no reader took for their own, by name.
      groups: traces by (label, split).
      by_source, by_host, by_command: name to [traces, calls]; names beyond the first few thousand are "others".
    """

    sources: int = 0
    counters: Counters = dataclasses.field(default_factory=Counters)
    skipped_files: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unread: list[str] = dataclasses.field(default_factory=list)
    groups: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    by_source: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    by_host: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    by_command: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add_trace(self, trace: Trace) -> None:
        """Counts one trace."""
        self.groups[trace.label, trace.split] += 1
        calls = len(trace.calls)
        _add(self.by_source, trace.source, 1, calls)
        _add(self.by_host, trace.host, 1, calls)
        _add(self.by_command, trace.command, 1, calls)

    def skip(self, reason: str, name: str) -> None:
        """Counts a file that no reader took for its own."""
        self.skipped_files[reason] += 1
        self.unread = [*self.unread, name][:MAX_SKIPPED]

    def add(self, other: "Tally") -> None:
        """Adds another tally's counts to these."""
        self.sources += other.sources
        self.counters.add(other.counters)
        self.skipped_files += other.skipped_files
        self.unread = [*self.unread, *other.unread][:MAX_SKIPPED]
        self.groups += other.groups
        for name in ("by_source", "by_host", "by_command"):
            for key, (traces, calls) in getattr(other, name).items():
                _add(getattr(self, name), key, traces, calls)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "sources": self.sources,
            "counters": self.counters.to_json(),
            "skipped_files": dict(self.skipped_files),
            "unread": self.unread,
            "by_source": self.by_source,
            "by_host": self.by_host,
            "by_command": self.by_command,
            "groups": [[label, split, traces] for (label, split), traces in sorted(self.groups.items())],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """The reverse of `to_json`."""
        counters = Counters(**values["counters"])
        for name in ("skipped", "filtered", "unknown"):
            setattr(counters, name, collections.Counter(getattr(counters, name)))
        return cls(
            **{
                **values,
                "counters": counters,
                "skipped_files": collections.Counter(values["skipped_files"]),
                "groups": collections.Counter({(label, split): n for label, split, n in values["groups"]}),
            }
        )


def most(by_name: dict[str, list[int]], how_many: int) -> dict[str, list[int]]:
    """The names with the most calls."""
    return dict(sorted(by_name.items(), key=lambda item: (-item[1][1], item[0]))[:how_many])


def _add(by_name: dict[str, list[int]], name: str, traces: int, calls: int) -> None:
    if name not in by_name and len(by_name) >= MAX_DISTINCT:
        name = OTHERS
    counts = by_name.setdefault(name, [0, 0])
    counts[0] += traces
    counts[1] += calls
