"""`perf trace`; one thread is one trace.

       ? (         ): true/23036  ... [continued]: execve())                          = 0
     0.054 ( 0.012 ms): true/23036 brk()                                              = 0x55c9327bf000
     9.626 (         ): bash/25781 wait4(upid: -1, stat_addr: 0x7fff83397bf0)         ...

A call counts at the line that opens it, or where it continues if that was not recorded. perf trace drops calls whose
number it does not know, silently. Its summary (`-s`) is a table of counts and not read. Checked against perf 6.1.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import lost_events, recognition
from syscall_lm.traces.call_ids import CallIds, abi_vocabulary
from syscall_lm.traces.grouping import CHILD, END_OF_CALL, Grouping
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "perf trace's output"

NOT_A_CALL, BLANK = "not a call", "empty line"
NOISE = frozenset({END_OF_CALL, CHILD, BLANK})
GROUPINGS = ("thread",)
GAPS = True

# A command has at most 15 bytes, which may hold anything: what it pretends lies before the columns that follow it.
_TIME = rb" *(\?|\d{1,12}\.\d{1,9}) \( *(?:\d{1,9}\.\d{1,9} ms)? *\): "
_WHO = rb"(?:(.{0,15}?)/(\d{1,7}) +)?"
_CALL = re.compile(_TIME + _WHO + rb"(\.\.\. \[continued\]: )?([a-zA-Z_]\w{0,63})\(", re.DOTALL)
_NAMED = re.compile(_TIME + rb"(.{0,15})/(\d{1,7}) +(\.\.\. \[continued\]: )?([a-zA-Z_]\w{0,63})\(", re.DOTALL)
_OPEN_END = re.compile(rb"\) +\.\.\.$")
_ZERO = re.compile(rb"\) += 0$")

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are calls as perf trace shows them."""
    del name
    return recognition.mostly(head, _CALL.match)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: label, family, split and host are handed to the traces; `max_gap`.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, "thread", vocabulary.ids)
    ids: CallIds[bytes] = CallIds(vocabulary, counters)
    for block in line_blocks(source.stream, counters):
        for line in block:
            found = _NAMED.match(line) or _CALL.match(line)
            if found is None:
                if not lost_events.count(line, counters):
                    counters.skipped[NOT_A_CALL if line.strip() else BLANK] += 1
                continue
            time, command, tid, continued, name = found.groups()
            thread = int(tid) if tid else None
            shown = (command or b"").decode("utf-8", "replace")
            milliseconds = None if time == b"?" else float(time) / 1000
            if continued:
                grouping.leave(name, ids, None, thread, bool(_ZERO.search(line[-80:])), shown, milliseconds)
            elif _OPEN_END.search(line[-80:]):
                grouping.enter(name, ids, None, thread, shown, milliseconds)
            else:
                grouping.call(ids[name], None, thread, shown, milliseconds)
        yield from grouping.settle(len(block))
    yield from grouping.finish()
