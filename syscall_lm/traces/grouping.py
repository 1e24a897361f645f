"""Calls of many processes that alternate in a capture, gathered into one trace a process or thread.

Memory is bounded whatever the capture holds: when too many processes are open, or too many calls are held, those that
have been silent longest are taken to have ended; that is counted.

Filters of single events (filters.py) order a trace's calls by time before it is handed on. Its end may then be recorded
before its last calls; so a trace that has ended stays open for calls that happened before its end, until its process id
comes back, the capture ends, or there are too many.
"""

import array
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from syscall_lm.traces.call_ids import CallIds, Word
from syscall_lm.traces.filters import DOUBLED_EVENT, LATE_EVENT, Events
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace

CROWD = "trace cut: too many processes at once"
LONG = "trace cut: too many calls held at once"
CHILD = "child's side of a clone"
END_OF_CALL = "end of a call"
NO_TIME = "call without a time"

MAX_LIVE = 2**16  # processes that are open at once
MAX_HELD = 2**26  # calls that are held at once; a trace of so many takes some 2 GB to write
TIMED = 7  # a call that is held with its time and thread takes so many times the memory
MAX_KEYS = 2**18  # processes whose reuse is told by counting

_EPOCH = 1e8  # seconds; less is a time since the boot or of the day
_ENDS_PROCESS = "exit_group"
_ENDS_THREAD = "exit"
_CLONES = frozenset({"clone", "clone2", "clone3", "fork", "vfork"})
_NOT_SEEN = -1
_MAX_PENDING = 2**12  # threads of one process whose calls have not ended


class Naming:
    """Distinct ids for the traces of a file whose process ids come back: "run.log:7", "run.log:7#2", ..."""

    def __init__(self, source: str):
        self._source = source
        self._times: dict[str, int] = {}
        self._number = 0

    def __call__(self, shown: str) -> str:
        """The id of a trace of the process that is shown so ("" for the only one of the file)."""
        self._number += 1
        base = f"{self._source}:{shown}" if shown else self._source
        if shown not in self._times and len(self._times) >= MAX_KEYS:
            return f"{base}@{self._number}"  # a number of its own instead of a count that would have to be kept
        times = self._times[shown] = self._times.get(shown, 0) + 1
        return base if times == 1 else f"{base}#{times}"


class _Open:
    """A trace that is being gathered."""

    __slots__ = (
        "append",
        "attack",
        "calls",
        "command",
        "ended",
        "host",
        "key",
        "last",
        "number",
        "pending",
        "pid",
        "session",
        "start",
        "threads",
        "tid",
        "time",
        "times",
    )

    def __init__(
        self,
        key: Hashable,
        number: int,
        pid: int | None,
        tid: int | None,
        host: str,
        session: str,
        time: float | None,
    ):
        self.key, self.number, self.pid, self.tid, self.host, self.session = key, number, pid, tid, host, session
        self.calls = array.array("H")
        self.append = self.calls.append
        self.start = self.time = time
        self.last = 0  # the block in which it was seen last
        self.pending: dict[int | None, str | bytes | int] = {}  # the calls whose end is outstanding, by thread
        self.command = ""
        self.attack: bool | None = None
        # Of calls that are to be filtered as single events:
        self.times, self.threads = array.array("d"), array.array("I")
        self.ended: float | None = None


class Grouping:
    """Makes traces of calls that are told one by one.

    Tell `call`, or `enter` and `leave` where a format has a line for either; `exit` where it tells a process's end;
    hand on what `settle` yields after each block of input, and what `finish` yields at the end.

    Args:
      source: the file.
      options: label, family, split, host, `max_gap` and the filters of events.
      counters: is filled.
      by: "thread" or "process".
      ids: name to id, for the calls that end a process or begin one; may grow.
    """

    def __init__(self, source: Source, options: Options, counters: Counters, by: str, ids: dict[str, int]):
        self._source, self._options, self._counters = source, options, counters
        self._by_thread = by == "thread"
        self._gap = options.max_gap
        self._timed = bool(options.event_filters)
        self._open: dict[Hashable, _Open] = {}
        self._threads: dict[tuple[str, int], set[Hashable]] = {}  # of a process, by host and pid
        self._naming = Naming(source.name)
        self._done: list[_Open] = []
        self._block, self._number, self._held = 0, 0, 0
        self._ids = ids
        self._learn()

    def _learn(self) -> None:
        ids = self._ids
        self._names_known = len(ids)
        self._ends_process = ids.get(_ENDS_PROCESS, _NOT_SEEN)
        self._ends_thread = ids.get(_ENDS_THREAD, _NOT_SEEN)
        self._clones = {ids[name] for name in _CLONES if name in ids}

    def call(
        self,
        call: int,
        pid: int | None,
        tid: int | None = None,
        command: str = "",
        time: float | None = None,
        host: str = "",
        session: str = "",
        attack: bool | None = None,
    ) -> _Open | None:
        """Adds one call.

        Args:
          call: its id.
          pid: the process, if known.
          tid: the thread, if known; the other one stands in where one is not known.
          command: the process's name as far as known; the last one stays.
          time: in seconds, if known.
          host: where several hosts share the capture.
          session: what tells the trace instead of process and thread, if there is such a thing.
          attack: whether it belongs to an attack, if known; one such call makes the trace an attack.

        Returns:
          the trace that it became part of; None if it lacks the time that a filter needs.
        """
        if self._timed and time is None:
            self._counters.skipped[NO_TIME] += 1
            return None
        if len(self._ids) != self._names_known:
            self._learn()
        found = self._find(pid, tid, time, host, session)
        found.append(call)
        found.last = self._block
        if self._timed:
            found.times.append(time or 0.0)
            found.threads.append((tid or 0) % 2**32)
        if attack is not None:
            found.attack = attack or bool(found.attack)
        if command:
            found.command = command
        if call == self._ends_process:
            if session:
                self._end(found.key, time)
            else:
                self.exit(pid, tid, host, whole=True, time=time)
        elif call == self._ends_thread and not session and (self._by_thread or pid is None):
            self._end(found.key, time)
        return found

    def whole(
        self,
        calls: Sequence[int],
        pid: int | None,
        tid: int | None = None,
        command: str = "",
        time: float | None = None,
        host: str = "",
        session: str = "",
        attack: bool | None = None,
    ) -> None:
        """Adds a trace that is told at once, whatever calls it holds; see `call`. None of its calls has a time."""
        if calls:
            self._number += 1
            found = _Open(None, self._number, pid, tid, host, session, time)
            found.calls.extend(calls)
            found.command, found.attack = command, attack
            self._done.append(found)

    def enter(
        self,
        word: Word,
        ids: CallIds[Word],
        pid: int | None,
        tid: int | None,
        command: str = "",
        time: float | None = None,
    ) -> None:
        """A call begins, which `ids` has under `word`: it counts here."""
        found = self.call(ids[word], pid, tid, command, time)
        if found is None:
            return
        if len(found.pending) >= _MAX_PENDING:
            found.pending.clear()
        found.pending[tid] = word

    def leave(
        self,
        word: Word,
        ids: CallIds[Word],
        pid: int | None,
        tid: int | None,
        returned_zero: bool,
        command: str = "",
        time: float | None = None,
    ) -> None:
        """A call ends: it counts here only if its beginning was not recorded.

        A child's first event is the end of its parent's clone, which returns zero to it; that is no call of the child.
        A call that ends its caller never returns, so what claims that begins no new trace.
        """
        found = self._open.get(self._key(pid, tid, ""))
        if found is not None and found.pending.pop(tid, None) == word:
            self._counters.skipped[END_OF_CALL] += 1
            return
        call = ids[word]  # counts it if it is unknown, so only now
        if len(self._ids) != self._names_known:
            self._learn()
        if call in (self._ends_process, self._ends_thread):
            self._counters.skipped[END_OF_CALL] += 1
        elif returned_zero and call in self._clones:
            self._counters.skipped[CHILD] += 1
        else:
            self.call(call, pid, tid, command, time)

    def exit(
        self,
        pid: int | None,
        tid: int | None = None,
        host: str = "",
        whole: bool = False,
        time: float | None = None,
    ) -> None:
        """A thread ends, or with `whole` its process. A process is not over when one of its threads is."""
        if not self._by_thread:
            if whole or tid is None or tid == pid:
                self._end(self._key(pid, tid, host), time)
            return
        if whole and pid is not None:
            for key in list(self._threads.get((host, pid), ())):
                self._end(key, time)
        self._end(self._key(pid, tid, host), time)

    def _key(self, pid: int | None, tid: int | None, host: str, session: str = "") -> Hashable:
        if session:
            return (host, session)
        first, second = (tid, pid) if self._by_thread else (pid, tid)
        key = second if first is None else first
        return (host, key) if host else key

    def _find(self, pid: int | None, tid: int | None, time: float | None, host: str, session: str) -> _Open:
        key = self._key(pid, tid, host, session)
        found = self._open.get(key)
        if self._timed and found is not None and found.ended is not None and time is not None and time > found.ended:
            self._close(key)
            found = None
        if self._gap and found is not None and time is not None:
            if found.time is not None and time - found.time > self._gap:
                self._close(key)
                found = None
            elif not self._timed or found.time is None or time > found.time:
                found.time = time
        if found is None:
            self._number += 1
            found = self._open[key] = _Open(key, self._number, pid, tid, host, session, time)
            if self._by_thread and pid is not None:
                self._threads.setdefault((host, pid), set()).add(key)
        return found

    def _end(self, key: Hashable, time: float | None) -> None:
        found = self._open.get(key)
        if not self._timed or time is None or found is None:
            self._close(key)
        elif found.ended is None:
            found.ended = time

    def _close(self, key: Hashable) -> None:
        found = self._open.pop(key, None)
        if found is None:
            return
        if self._by_thread and found.pid is not None:
            threads = self._threads[found.host, found.pid]
            threads.discard(key)
            if not threads:
                del self._threads[found.host, found.pid]
        self._done.append(found)

    def settle(self, lines: int = 1) -> Iterator[Trace]:
        """The traces that have ended; call it after each block of at most `lines` calls."""
        self._block += 1
        self._held += lines
        if len(self._open) > MAX_LIVE:
            self._evict(len(self._open) - MAX_LIVE // 2, CROWD)
        most = MAX_HELD // TIMED if self._timed else MAX_HELD
        if self._held > most:
            self._held = sum(len(found.calls) for found in self._open.values())
            if self._held > most // 2:
                self._evict(max(1, len(self._open) // 2), LONG)
                self._held = sum(len(found.calls) for found in self._open.values())
        if self._done:
            yield from map(self._trace, self._done)
            self._done.clear()

    def _evict(self, how_many: int, reason: str) -> None:
        silent = sorted(self._open.values(), key=lambda found: (found.ended is None, found.last, found.number))
        for found in silent[:how_many]:
            if found.ended is None:
                self._counters.skipped[reason] += 1
            self._close(found.key)

    def finish(self) -> Iterator[Trace]:
        """All that is left, in the order in which it began."""
        yield from map(self._trace, self._done)
        yield from map(self._trace, sorted(self._open.values(), key=lambda found: found.number))
        self._done.clear()
        self._open.clear()
        self._threads.clear()

    def _trace(self, found: _Open) -> Trace:
        options = self._options
        number = found.tid if self._by_thread and found.tid is not None else found.pid
        number = found.tid if number is None else number
        shown = found.session or ("" if number is None else str(number))
        if found.host:
            shown = f"{found.host}/{shown}"
        calls, start = np.array(found.calls, np.uint16), found.start
        if self._timed:
            calls, start = self._filtered(found, calls)
        label = options.label if found.attack is None else ATTACK if found.attack else NORMAL
        self._counters.traces += 1
        self._counters.calls += len(calls)
        return Trace(
            calls=calls,
            id=self._naming(shown),
            source=self._source.name,
            pid=number,
            command=found.command,
            host=found.host or options.host,
            start_time=start if start is not None and start >= _EPOCH else None,
            label=label,
            family=options.family,
            split=options.split,
        )

    def _filtered(self, found: _Open, calls: np.ndarray) -> tuple[np.ndarray, float]:
        """The trace's calls after the filters of events, and its beginning."""
        events = Events(np.array(found.threads), np.array(found.times), calls)
        if self._options.order_events:
            self._counters.filtered[LATE_EVENT] += events.late
            events = events.ordered()
        if self._options.drop_doubled_events:
            recorded = len(events)
            events = events.without_doubles()
            self._counters.filtered[DOUBLED_EVENT] += recorded - len(events)
        return events.call, float(events.time[0])
