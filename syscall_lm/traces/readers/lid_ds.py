"""LID-DS (Leipzig Intrusion Detection Data Set): the recordings of 2019 (text) and 2021 (`.sc`), zipped or not.

  2019  51156 01:47:31.305898142 3 33 apache2 29915 > close fd=12(...)       number, time, cpu, user, process, thread
  2021  1631610000123456789 0 1587 python 35377 getpid > arg0=...            time, user, pid, process, thread

Grimmer et al., "A modern and sophisticated host based intrusion detection data set", 2019; LID-DS 2021. The folders of
the 2021 edition tell split and label: training and validation are normal, test/normal too; a recording in
test/normal_and_attack holds both, so its traces stay unlabelled unless --label says otherwise. One thread is one trace;
in the 2021 edition a process can be.
"""

import dataclasses
import re
from collections.abc import Iterator

from syscall_lm.traces import recognition
from syscall_lm.traces.call_ids import abi_vocabulary
from syscall_lm.traces.grouping import CHILD, END_OF_CALL
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.sysdig_events import LONG_NAME, NAME, NOT_A_CALL, Events, clock
from syscall_lm.traces.trace import NORMAL, Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "LID-DS: recordings of 2019 (text) and 2021 (.sc)"

NOT_AN_EVENT, BLANK = "not an event", "empty line"
NOISE = frozenset({NOT_A_CALL, END_OF_CALL, CHILD, BLANK})
GROUPINGS = ("thread", "process")
GAPS = True

_2021 = rb"(\d{9,20}) -?\d{1,10} (\d{1,10}) %s (\d{1,10}) ([a-zA-Z_]\w{0,63}) ([<>])(?: (.*))?$"
_2019 = rb"\d{1,19} ([\d:.]{8,32}) \d{1,5} -?\d{1,10} %s (\d{1,10}) ([<>]) ([a-zA-Z_]\w{0,63})(?: (.*))?$"
_NEW, _NEW_LONG = (re.compile(_2021 % name, re.DOTALL) for name in (NAME, LONG_NAME))
_OLD, _OLD_LONG = (re.compile(_2019 % name, re.DOTALL) for name in (NAME, LONG_NAME))

_FOLDER = re.compile(r"(?:^|[/!])(training|validation|test)/(?:(normal|normal_and_attack)/)?")
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are events of either edition."""
    del name
    return recognition.mostly(head, lambda line: _NEW.match(line) or _OLD.match(line))


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one recording: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the recording; its folder may tell split and label.
      vocabulary: the calls' ids.
      options: `group` (thread, process; the 2019 edition tells threads only), `max_gap`; label, family, split and host
        are handed to the traces.
      counters: is filled.
    """
    options = _protocol(source.name, options)
    events = Events(source, vocabulary, options, counters, options.group or GROUPINGS[0])
    new, old, add, timed = _NEW.match, _OLD.match, events.add, bool(options.max_gap)
    for block in line_blocks(source.stream, counters):
        for line in block:
            if (found := new(line)) is not None:
                time, pid, command, tid, call, direction, arguments = found.groups()
                add(direction, call, arguments or b"", int(pid), int(tid), command, int(time) / 1e9)
            elif (found := old(line) or _OLD_LONG.match(line)) is not None:
                time, command, tid, direction, call, arguments = found.groups()
                add(direction, call, arguments or b"", None, int(tid), command, clock(time) if timed else None)
            elif (found := _NEW_LONG.match(line)) is not None:
                time, pid, command, tid, call, direction, arguments = found.groups()
                add(direction, call, arguments or b"", int(pid), int(tid), command, int(time) / 1e9)
            else:
                counters.skipped[NOT_AN_EVENT if line.strip() else BLANK] += 1
        yield from events.grouping.settle(len(block))
    yield from events.grouping.finish()


def _protocol(name: str, options: Options) -> Options:
    """The options with what the recording's folder tells."""
    *_, found = None, *_FOLDER.finditer(name)  # the last: where the recordings lie is nobody's protocol
    if found is None:
        return options
    split = options.split or _SPLITS[found[1]]
    label = options.label or (
        "" if found[2] == "normal_and_attack" or (found[1], found[2]) == ("test", None) else NORMAL
    )
    return dataclasses.replace(options, split=split, label=label)
