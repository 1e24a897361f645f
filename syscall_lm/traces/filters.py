"""Filters: "filtering and ordering of redundant system calls" (Soni et al. 2019, sections I, III and VI).

The paper does not say what was redundant. Its traces come from introspection of a virtual machine, where processors
report out of order and one call may be trapped twice; so four filters are offered, each optional: order by process
and time, drop what was recorded twice, collapse immediate repetitions, drop calls by name. They work on traces, so that
every model can use them (`experiments/filter.py` makes an archive of an archive). An archive no longer knows when each
call happened; so the first two also work on single events, while a capture that tells their times is read (`Events`,
`ingest --order_events --drop_doubled_events`).
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import UNK_NAME, Vocabulary

REPEATED = "call repeated at once"
NAMED = "call dropped by name"
DOUBLED_TRACE = "trace recorded twice"
EMPTIED = "trace without calls left"
MOVED = "trace moved"
LATE_EVENT = "call recorded after a later one"
DOUBLED_EVENT = "call recorded twice"


@dataclasses.dataclass(frozen=True)
class Events:
    """The calls of one trace, in the order of their recording.

    Attributes:
      thread: integers `[n]`.
      time: float64 `[n]`, seconds on any clock; dates in seconds tell 0.24 microseconds apart.
      call: integer ids `[n]`.
    """

    thread: np.ndarray
    time: np.ndarray
    call: np.ndarray

    def __len__(self) -> int:
        return len(self.call)

    @property
    def late(self) -> int:
        """How many were recorded after one that happened later."""
        return int((self.time < np.maximum.accumulate(self.time)).sum())

    def ordered(self) -> "Events":
        """By time; events of one time keep their order."""
        return self._take(np.argsort(self.time, kind="stable"))

    def without_doubles(self) -> "Events":
        """Without events that equal the one before them of their thread in time and call: one event, recorded twice.

        Order them first. Two calls of one thread at the very same time are taken for one only if they are equal too,
        and no other call of that thread stands between them.
        """
        by_thread = np.argsort(self.thread, kind="stable")
        columns = (self.thread[by_thread], self.time[by_thread], self.call[by_thread])
        same = np.all([column[1:] == column[:-1] for column in columns], axis=0)
        return self._take(np.sort(by_thread[np.append(len(self) > 0, ~same)[: len(self)]]))

    def _take(self, indices: np.ndarray) -> "Events":
        return Events(self.thread[indices], self.time[indices], self.call[indices])


def collapse(calls: np.ndarray, limit: int = 1) -> np.ndarray:
    """Keeps at most `limit` of equal calls in a row: read read read write becomes read write.

    Raises:
      SyscallLMError: a limit below 1.
    """
    if limit < 1:
        raise SyscallLMError(f"--max_repeats={limit}: at least one of equal calls in a row must stay")
    if len(calls) <= limit:
        return calls
    redundant = np.ones(len(calls) - limit, bool)  # equal to each of the `limit` calls before it
    for back in range(1, limit + 1):
        redundant &= calls[limit:] == calls[limit - back : len(calls) - back]
    return calls[~np.append(np.zeros(limit, bool), redundant)]


def without(calls: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Drops these calls."""
    return calls[~np.isin(calls, ids)]


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which filters to use, in this order.

    Attributes:
      order: traces by host, process id and start time; those that lack one come last and keep their order.
      drop_doubles: drop a trace that equals one before it in host, process id, start time and calls, if all are known:
        one process, recorded twice.
      drop: names of calls to drop.
      max_repeats: how many equal calls in a row stay; 0 keeps all. Calls that meet since others between them were
        dropped count as a row.
    """

    order: bool = False
    drop_doubles: bool = False
    drop: tuple[str, ...] = ()
    max_repeats: int = 0

    def __post_init__(self):
        if self.max_repeats < 0:
            raise SyscallLMError(f"--max_repeats={self.max_repeats}: must be 0 (keep all) or more")

    def apply(
        self, traces: Iterable[Trace], vocabulary: Vocabulary, counts: collections.Counter[str]
    ) -> Iterator[Trace]:
        """Filters traces; one that has no calls left is dropped.

        Only `order` needs all traces in memory; `drop_doubles` keeps a digest of each.

        Args:
          traces: ids in `vocabulary`.
          vocabulary: must know the names to drop.
          counts: is filled: calls and traces that were dropped, by reason, and traces that were moved.

        Raises:
          SyscallLMError: a name that the vocabulary lacks.
        """
        unknown = [name for name in self.drop if name not in vocabulary.ids and name != UNK_NAME]
        if unknown:
            raise SyscallLMError(f"--drop={unknown[0]}: no such call in the vocabulary ({vocabulary.origin})")
        dropped = np.array([vocabulary.ids.get(name, vocabulary.unk) for name in self.drop], np.uint16)
        if self.order:
            traces = _ordered(list(traces), counts)
        seen: set[tuple[Any, ...]] = set()
        for trace in traces:
            if self.drop_doubles and trace.pid is not None and trace.start_time is not None:
                digest = hashlib.blake2b(trace.calls.tobytes(), digest_size=16).digest()
                identity = (trace.host, trace.pid, trace.start_time, digest)
                if identity in seen:
                    counts[DOUBLED_TRACE] += 1
                    continue
                seen.add(identity)
            calls = without(trace.calls, dropped) if self.drop else trace.calls
            counts[NAMED] += len(trace.calls) - len(calls)
            kept = collapse(calls, self.max_repeats) if self.max_repeats else calls
            counts[REPEATED] += len(calls) - len(kept)
            if len(kept):
                yield dataclasses.replace(trace, calls=kept)
            else:
                counts[EMPTIED] += 1

    def to_json(self) -> dict[str, Any]:
        """The filters as plain JSON values, for an archive's metadata."""
        return {**dataclasses.asdict(self), "drop": list(self.drop)}


def of_calls(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What filters did to the calls within traces, from an archive's metadata: a step each, in order.

    Ordering traces and dropping doubled ones changes no trace, and is left out.
    """
    steps = [{name: step.get(name) for name in ("drop", "max_repeats")} for step in metadata.get("filters", [])]
    return [step for step in steps if step["drop"] or step["max_repeats"]]


def told(steps: Sequence[Mapping[str, Any]]) -> str:
    """What `of_calls` returned, for people."""
    parts = []
    for step in steps:
        parts += [f"without {', '.join(step['drop'])}"] * bool(step["drop"])
        parts += [f"cut to {step['max_repeats']} of equal calls in a row"] * bool(step["max_repeats"])
    return ", then ".join(parts) or "not filtered"


def _ordered(traces: list[Trace], counts: collections.Counter[str]) -> list[Trace]:
    def key(place: int) -> tuple[Any, ...]:
        trace = traces[place]
        if trace.pid is None or trace.start_time is None:
            return (1, "", 0, 0.0)
        return (0, trace.host, trace.pid, trace.start_time)

    order = sorted(range(len(traces)), key=key)
    counts[MOVED] += sum(place != number for number, place in enumerate(order))
    return [traces[place] for place in order]
