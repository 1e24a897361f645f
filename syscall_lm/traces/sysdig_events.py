"""The events of sysdig, whose engine Falco and the LID-DS recordings share: `>` enters a call, `<` leaves it."""

import re

from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.lost_events import LOST
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

NOT_A_CALL = "event that is no call"
NAMELESS = "call without a name"

_PROCESS_EXIT, _DROP, _GENERIC = b"procexit", b"drop", b"syscall"
_OTHER_EVENTS = frozenset(
    b"switch scapevent signaldeliver procinfo cpu_hotplug k8s tracer mesos notification infra page_fault "
    b"page_fault_user page_fault_kernel pluginevent container container_json useradded userdeleted groupadded "
    b"groupdeleted user_added user_deleted group_added group_deleted asyncevent plugin_event NA".split()
)
_ZERO = re.compile(rb"res=0(?:\(|\s|$)")
_GENERIC_NAME = re.compile(rb"(?:.{0,200} )?ID=\d{1,6}\((\w{1,64})\)")

# sysdig shows at most 15 bytes of a process's name, which may hold anything, columns of its own included. Columns that
# follow it are therefore looked for from the end of those 15 bytes backwards: what a name pretends lies before them.
NAME = rb"(.{0,15})"
LONG_NAME = rb"(.{0,255}?)"  # of sandboxes and other collectors; tried second


class Events:
    """Makes traces of sysdig's events: one call counts once, where it is entered if that was recorded.

    Attributes:
      grouping: where the calls go.
    """

    def __init__(
        self, source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters, by: str
    ):
        self.grouping = Grouping(source, options, counters, by, vocabulary.ids)
        self._ids: CallIds[bytes] = CallIds(vocabulary, counters)
        self._skipped = counters.skipped

    def add(
        self,
        direction: bytes | None,
        name: bytes,
        arguments: bytes,
        pid: int | None,
        tid: int | None,
        command: bytes,
        time: float | None = None,
    ) -> None:
        """Takes one event; `direction` is `>`, `<` or nothing where each call has one event."""
        if name in _OTHER_EVENTS:
            self._skipped[NOT_A_CALL] += 1
            return
        if name == _PROCESS_EXIT:
            self._skipped[NOT_A_CALL] += 1
            self.grouping.exit(pid, tid)
            return
        if name == _DROP:
            if direction != b"<":
                self._skipped[LOST] += 1
            return
        if name == _GENERIC:
            found = _GENERIC_NAME.match(arguments)
            if found is None:
                self._skipped[NAMELESS] += 1
                return
            name = found[1]
        shown = command.decode("utf-8", "replace")
        if direction == b">":
            self.grouping.enter(name, self._ids, pid, tid, shown, time)
        elif direction == b"<" or _ZERO.match(arguments):
            self.grouping.leave(name, self._ids, pid, tid, _ZERO.match(arguments) is not None, shown, time)
        else:
            self.grouping.call(self._ids[name], pid, tid, shown, time)


def clock(text: bytes) -> float | None:
    """Seconds: of the day ("11:54:08.853533065"), or what a plain number says."""
    try:
        hours, minutes, seconds = text.split(b":") if b":" in text else (b"0", b"0", text)
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
