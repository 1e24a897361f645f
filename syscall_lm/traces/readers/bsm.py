"""Solaris BSM audit trails (KDD98's host data), and OpenBSM's; one process is one trace.

Audit events stand for calls, some calls having several (72 to 83 are variants of open). --mapping names the system's
`audit_event` file, whose kernel events are then the vocabulary; without it a call is "event_23". Events of programs
(login, su, ...) are no calls. Trails of header version 2 (Solaris 2.5.1) and 11 (OpenBSM) are read.
"""

import pathlib
import re
from collections.abc import Iterator

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import bsm_records
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import MAX_NAMES, NamesSeen, Vocabulary

DESCRIPTION = "Solaris BSM audit trails (binary), with the system's audit_event file as --mapping"
EXPLAINED_BY = ("mapping",)

PROGRAM, NO_SUBJECT = "event of a program, no call", "record without a process"
NOISE = frozenset({PROGRAM, bsm_records.FILE_MARK})
GROUPINGS = ("process",)
GAPS = True
WARNING = "an audit trail holds the classes of calls that were chosen for auditing: traces lack the others"

EXIT = 1  # AUE_EXIT
_BLOCK = 2**12
_EVENT = re.compile(r"\s*(\d{1,5}):([A-Za-z_]\w{0,63}):[^:]*:")


def recognises(name: str, head: bytes) -> bool:
    """Whether the file begins with a record."""
    del name
    return bsm_records.is_record(head)


def is_call(event: int) -> bool:
    """Whether an event is of the kernel: Solaris' own range, or OpenBSM's."""
    return 0 < event < 2048 or 43000 <= event < 45000


def vocabulary(options: Options) -> Vocabulary | NamesSeen:
    """The kernel events of the `audit_event` file, or the events seen.

    Raises:
      SyscallLMError: the file cannot be read or holds no kernel event.
    """
    if not options.mapping:
        return NamesSeen(options.abi)
    names = tuple(dict.fromkeys(events(options.mapping).values()))
    return Vocabulary(names, f"mapping {pathlib.Path(options.mapping).name}")


def events(path: str) -> dict[int, str]:
    """The kernel events of an `audit_event` file, number to name; of a number that stands twice the first, Solaris'.

    Raises:
      SyscallLMError: the file cannot be read or holds no kernel event.
    """
    try:
        lines = pathlib.Path(path).read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise SyscallLMError(f"{path}: cannot be read ({error.strerror})") from error
    names: dict[int, str] = {}
    for line in lines:
        found = _EVENT.match(line)
        if found and is_call(int(found[1])) and len(names) < MAX_NAMES:
            names.setdefault(int(found[1]), found[2])
    if not names:
        raise SyscallLMError(f"{path}: holds no kernel event; expected lines such as 23:AUE_EXECVE:execve(2):pc,ex")
    return names


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one trail: each when its process exits, the rest at the end of the file.

    Args:
      source: the trail.
      vocabulary: what `vocabulary` gave.
      options: `mapping` names the events; `max_gap`; label, family, split and host are handed to the traces.
      counters: is filled; its `lines` are records.
    """
    grouping = Grouping(source, options, counters, GROUPINGS[0], {})
    names = events(options.mapping) if options.mapping else {}
    ids: CallIds[str] = CallIds(vocabulary, counters)
    for number, record in enumerate(bsm_records.records(source, counters)):
        if not is_call(record.event):
            counters.skipped[PROGRAM] += 1
        elif record.pid is None:
            counters.skipped[NO_SUBJECT] += 1
        else:
            call = ids[names.get(record.event, f"event_{record.event}")]
            grouping.call(call, record.pid, None, "", record.time)
            if record.event == EXIT:
                grouping.exit(record.pid)
        if number % _BLOCK == 0:
            yield from grouping.settle(_BLOCK)
    yield from grouping.finish()
