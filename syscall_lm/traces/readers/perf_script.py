"""System-call events as `perf script`, ftrace and trace-cmd print them; one thread is one trace.

  true 23089 [001]  3826.606678: raw_syscalls:sys_enter: NR 12 (0, 7ffd34b3ae1c, 0, 37f, 0, 0)     perf script
  true-23089 [001] .....  3826.606678: sys_enter: NR 12 (0, 7ffd34b3ae1c, 0, 37f, 0, 0)            ftrace, trace-cmd
  true 23089 [001]  3826.606678: syscalls:sys_enter_openat: dfd: 0xffffff9c, ...

Record `raw_syscalls:sys_enter` (and, if you like, sys_exit). Numbers are of the ABI that --abi names. The single events
(`sys_enter_openat`) are read where a file has no `raw_syscalls`; with both, each call would count twice, so the first
kind that appears is the one that counts. perf tells the process too with `-F comm,pid,tid,cpu,time,event,trace`, ftrace
with its option record-tgid. Checked against perf 6.1 and Linux 6.1's ftrace.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import lost_events, recognition
from syscall_lm.traces.call_ids import CallIds, abi_vocabulary, by_number
from syscall_lm.traces.grouping import CHILD, END_OF_CALL, Grouping
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "raw_syscalls events as perf script, ftrace or trace-cmd print them"

NOT_AN_EVENT, OTHER, HEADER, BLANK = "not an event", "other event", "header", "empty line"
TWICE = "event beside raw_syscalls, which has the call already"
NOISE = frozenset({OTHER, TWICE, HEADER, BLANK, END_OF_CALL, CHILD})
GROUPINGS = ("thread", "process")
GAPS = True

# A command has at most 15 bytes (kernel threads more), which may hold anything: what it pretends lies before the
# columns that follow it, so these are looked for from the end of the 15 bytes backwards.
_PERF = rb"\s*(.{0,15}) +(\d{1,7})(?:/(\d{1,7}))? +(?:\[\d{1,5}\] +)?(\d{1,12}\.\d{1,9}): +"
_FTRACE = rb"\s*(.{0,15})-(\d{1,7}) +(?:\( *([\d-]{1,7})\) +)?\[\d{1,5}\] +(?:[^\s:]{4,8} +)?(\d{1,12}\.\d{1,9}): +"
_WHAT = (
    rb"(?:raw_syscalls:)?sys_(enter|exit)(?::|\s)\s*NR (-?\d{1,9}) ?([(=] ?\S{0,20})"
    rb"|(?:syscalls:)?sys_(enter|exit)_([a-z_]\w{0,63}):(?: +(0x\w{1,16}))?"
    rb"|[a-z_]\w{0,63}(?::[a-z_]\w{0,63})?:"
)
_SPACED = re.compile(rb"\s*.{1,15} +\d{1,7}(?:/\d{1,7})? +[\[\d]", re.DOTALL)
_EVENTS = [re.compile(who + rb"(?:" + _WHAT + rb")", re.DOTALL) for who in (_PERF, _FTRACE)]

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether some of the first lines are system-call events, and most are events or comments."""
    del name
    lines = recognition.head_lines(head)
    found = [event for line in lines if (event := _match(line))]
    calls = sum(event[5] is not None or event[8] is not None for event in found)
    return calls > 0 and 2 * (len(found) + sum(line.startswith(b"#") for line in lines)) >= len(lines)


def _match(line: bytes) -> re.Match[bytes] | None:
    # Only ftrace's lines have the thread behind a dash.
    first, second = _EVENTS if _SPACED.match(line) else reversed(_EVENTS)
    return first.match(line) or second.match(line)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: `abi` says what the numbers mean; `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
    ids: CallIds[bytes] = CallIds(vocabulary, counters)
    numbers = by_number(vocabulary, counters, options.abi)
    raw: bool | None = None  # which kind of event counts
    for block in line_blocks(source.stream, counters):
        for line in block:
            found = _match(line)
            if found is None:
                _skip(line, counters)
                continue
            command, first, second, time, way, number, result, single_way, name, single_result = found.groups()
            if way is None and single_way is None:
                counters.skipped[OTHER] += 1
                continue
            if raw is None:
                raw = way is not None
            if raw != (way is not None):
                counters.skipped[TWICE] += 1
                continue
            if way is not None and number.startswith(b"-"):
                counters.skipped[OTHER] += 1  # a call that was already turned away
                continue
            pid, tid = _process(found.re is _EVENTS[0], first, second)
            shown = command.decode("utf-8", "replace").strip()
            if b"enter" in (way, single_way):
                if way is not None:
                    grouping.enter(int(number), numbers, pid, tid, shown, float(time))
                else:
                    grouping.enter(name, ids, pid, tid, shown, float(time))
            elif way is not None:
                grouping.leave(int(number), numbers, pid, tid, result == b"= 0", shown, float(time))
            else:
                grouping.leave(name, ids, pid, tid, single_result == b"0x0", shown, float(time))
        yield from grouping.settle(len(block))
    yield from grouping.finish()


def _process(perf: bool, first: bytes, second: bytes | None) -> tuple[int | None, int]:
    """Process and thread: perf shows PID/TID or the thread alone, ftrace THREAD (PROCESS)."""
    if second is None or not second.isdigit():
        return None, int(first)
    return (int(first), int(second)) if perf else (int(second), int(first))


def _skip(line: bytes, counters: Counters) -> None:
    if lost_events.count(line, counters):
        return
    if line.startswith((b"#", b"cpus=", b"version = ", b"CPU ")):
        counters.skipped[HEADER] += 1
    else:
        counters.skipped[NOT_AN_EVENT if line.strip() else BLANK] += 1
