"""What one bpftrace program prints; one thread is one trace.

bpftrace has no format of its own, so record with this program:

  bpftrace -e 'tracepoint:raw_syscalls:sys_enter { printf("%llu %d %d %s %d\\n", nsecs, pid, tid, comm, args.id); }'

Columns: time, process, thread, command (it may hold spaces), call number of the ABI that --abi names.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import lost_events, recognition
from syscall_lm.traces.call_ids import abi_vocabulary, by_number
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "bpftrace: lines of time, process, thread, command, call number (one published program)"

NOT_A_CALL, MESSAGE, BLANK = "not a call", "bpftrace message", "empty line"
NOISE = frozenset({MESSAGE, BLANK})
GROUPINGS = ("thread", "process")
EVENT_TIMES = True

_CALL = re.compile(rb"(\d{1,20}) (\d{1,10}) (\d{1,10}) (.{0,15}) (\d{1,9})", re.DOTALL)
_RECOGNISED = re.compile(rb"\d{6,20} \d{1,10} \d{1,10} (?=.{0,14}[^\d\s]).{1,15} \d{1,4}", re.DOTALL)

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines have the five columns."""
    del name
    return recognition.mostly(head, _RECOGNISED.fullmatch)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: `abi` says what the numbers mean; `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
    ids = by_number(vocabulary, counters, options.abi)
    for block in line_blocks(source.stream, counters):
        for line in block:
            found = _CALL.fullmatch(line)
            if found is not None:
                time, pid, tid, command, number = found.groups()
                shown = command.decode("utf-8", "replace")
                # Nanoseconds since the boot: good for gaps, but no date.
                grouping.call(ids[int(number)], int(pid), int(tid), shown, int(time) / 1e9)
            elif not lost_events.count(line, counters):
                message = line.startswith((b"Attaching ", b"WARNING: "))
                counters.skipped[MESSAGE if message else NOT_A_CALL if line.strip() else BLANK] += 1
        yield from grouping.settle(len(block))
    yield from grouping.finish()
