"""Falco's alerts, as JSON lines (`json_output`) or as text.

  {"output":..,"priority":..,"rule":..,"time":..,"output_fields":{"evt.type":"openat","proc.pid":7,"thread.tid":7,..}}
  11:54:08.853533065: Notice A shell was spawned ... (... evt_type=execve ... pid=7 ...)

Which fields an alert has is up to its rule: those without a call or without a process cannot be used. In text, fields
are found by their names in Falco's own rules (`evt_type=`) from the end, since what a process names itself comes first.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import json_lines, recognition
from syscall_lm.traces.call_ids import abi_vocabulary
from syscall_lm.traces.grouping import CHILD, END_OF_CALL
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.sysdig_events import NOT_A_CALL, Events, clock
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "Falco's alerts as JSON lines or text"

NOT_AN_ALERT, NO_CALL, NO_PROCESS = "not an alert", "alert without a call", "alert without a process"
BLANK = "empty line"
NOISE = frozenset({NOT_A_CALL, END_OF_CALL, CHILD, BLANK})
GROUPINGS = ("thread", "process")
GAPS = True
WARNING = (
    "Falco tells the events that its rules match, unless its rules match all (and it runs with -A): traces have gaps"
)

_TEXT = re.compile(
    rb"([\d:.T+-]{8,40}Z?): (?:Emergency|Alert|Critical|Error|Warning|Notice|Informational|Debug) ", re.DOTALL
)
_CALL = re.compile(rb".*\bevt[._]type=(\w{1,64})", re.DOTALL)
_PID = re.compile(rb".*\b(?:proc[._])?pid=(\d{1,10})\b", re.DOTALL)
_TID = re.compile(rb".*\b(?:thread[._])?tid=(\d{1,10})\b", re.DOTALL)

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are alerts."""
    del name
    return json_lines.recognise(head, lambda record: {"rule", "priority", "output"} <= record.keys()) or (
        recognition.mostly(head, _TEXT.match)
    )


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: `group`, `max_gap`; label, family, split and host are handed to the traces.
      counters: is filled.
    """
    events = Events(source, vocabulary, options, counters, options.group or GROUPINGS[0])
    for block in line_blocks(source.stream, counters):
        for line in block:
            record = json_lines.parse(line)
            if record is not None:
                _add_object(record, events, counters)
            elif found := _TEXT.match(line):
                _add_text(line, found[1], events, counters)
            else:
                counters.skipped[NOT_AN_ALERT if line.strip() else BLANK] += 1
        yield from events.grouping.settle(len(block))
    yield from events.grouping.finish()


def _add_object(record: json_lines.Record, events: Events, counters: Counters) -> None:
    fields = json_lines.child(record, "output_fields")
    call = json_lines.text(fields.get("evt.type")).encode()
    pid, tid = json_lines.integer(fields.get("proc.pid")), json_lines.integer(fields.get("thread.tid"))
    time = json_lines.seconds(fields.get("evt.time", record.get("time")))
    command, direction, arguments = (
        json_lines.text(fields.get(key)).encode() for key in ("proc.name", "evt.dir", "evt.info")
    )
    _add(direction, call, arguments, pid, tid, command, time, events, counters)


def _add_text(line: bytes, time: bytes, events: Events, counters: Counters) -> None:
    call, pid, tid = (pattern.match(line) for pattern in (_CALL, _PID, _TID))
    seconds = json_lines.seconds(time.decode()) or clock(time)
    numbers = [int(found[1]) if found else None for found in (pid, tid)]
    _add(b"", call[1] if call else b"", b"", numbers[0], numbers[1], b"", seconds, events, counters)


def _add(
    direction: bytes,
    call: bytes,
    arguments: bytes,
    pid: int | None,
    tid: int | None,
    command: bytes,
    time: float | None,
    events: Events,
    counters: Counters,
) -> None:
    if not call:
        counters.skipped[NO_CALL] += 1
    elif pid is None and tid is None:
        counters.skipped[NO_PROCESS] += 1
    else:
        events.add(direction, call, arguments, pid, tid, command, time)
