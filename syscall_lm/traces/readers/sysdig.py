"""sysdig's default text output, and its JSON lines (`sysdig -j`); one thread is one trace.

  5352242 11:54:08.853533065 0 ssh-agent (13314) > stat

Read are the default format, the one with containers (`-pc`) and any form of the time (`-t`). A call counts where it is
entered; where that was not recorded, as in captures of newer versions, where it is left. The default format does not
tell which threads are one process's. Format: sysdig(8); the events that are no calls: draios/sysdig, issue 2162.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import json_lines, recognition
from syscall_lm.traces.call_ids import abi_vocabulary
from syscall_lm.traces.grouping import CHILD, END_OF_CALL
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.sysdig_events import LONG_NAME, NAME, NOT_A_CALL, Events, clock
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "sysdig's text output in its default format, with or without containers, or as JSON lines"

NOT_AN_EVENT, BLANK = "not an event", "empty line"
NOISE = frozenset({NOT_A_CALL, END_OF_CALL, CHILD, BLANK})
GROUPINGS = ("thread",)
GAPS = True

_BEFORE = rb"\d{1,19} ([\d:.]{1,32}) \d{1,5} (?:\S{1,128} \((?:[0-9a-f]{12}|host)\) )?"
_AFTER = rb" \((\d{1,10})(?::\d{1,10})?\) (?:([<>]) )?([a-zA-Z_]\w{0,63})(?: (.*))?$"
_EVENT = re.compile(_BEFORE + NAME + _AFTER, re.DOTALL)
_LONG = re.compile(_BEFORE + LONG_NAME + _AFTER, re.DOTALL)

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are events."""
    del name
    return recognition.mostly(head, _EVENT.match) or json_lines.recognise(
        head, lambda record: "evt.type" in record and "evt.dir" in record
    )


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: label, family, split and host are handed to the traces; `max_gap`.
      counters: is filled.
    """
    events = Events(source, vocabulary, options, counters, "thread")
    match, add, timed = _EVENT.match, events.add, bool(options.max_gap)
    for block in line_blocks(source.stream, counters):
        for line in block:
            found = match(line) or _LONG.match(line)
            if found is not None:
                time, command, tid, direction, call, arguments = found.groups()
                add(direction, call, arguments or b"", None, int(tid), command, clock(time) if timed else None)
            elif (record := json_lines.parse(line)) is not None:
                _add(record, events, counters)
            else:
                counters.skipped[NOT_AN_EVENT if line.strip() else BLANK] += 1
        yield from events.grouping.settle(len(block))
    yield from events.grouping.finish()


def _add(record: json_lines.Record, events: Events, counters: Counters) -> None:
    tid, call = json_lines.integer(record.get("thread.tid")), json_lines.text(record.get("evt.type"))
    if tid is None or not call:
        counters.skipped[NOT_AN_EVENT] += 1
        return
    time = json_lines.seconds(record.get("evt.outputtime"))
    command, direction = (json_lines.text(record.get(key)).encode() for key in ("proc.name", "evt.dir"))
    arguments = json_lines.text(record.get("evt.info")).encode()
    events.add(direction, call.encode(), arguments, None, tid, command, time)
