"""Tracee's events: JSON lines, or CSV as BETH has it (Highnam et al., "BETH dataset", 2021).

  {"timestamp":1657290245020855990,"hostProcessId":7,"hostThreadId":7,"eventName":"openat","syscall":"openat", ...}

An event counts if its `eventName` is a call of the ABI; others (`security_file_open`, ...) are derived, and `syscall`
is only the call around them. `sched_process_exit` ends a trace. The ids seen from the host are used where they are
told. BETH's columns `sus` and `evil` label: a trace with an evil event is an attack. One thread is one trace, or one
process.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

from syscall_lm.traces import csv_rows, json_lines, lost_events
from syscall_lm.traces.call_ids import CallIds, abi_vocabulary
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.json_lines import BLANK
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "Tracee's events as JSON lines, or as CSV (BETH)"

NOT_A_CALL, NO_PROCESS = "event that is no call", "event without a process"
NOISE = frozenset({NOT_A_CALL, BLANK})
GROUPINGS = ("thread", "process")
EVENT_TIMES = True
WARNING = "Tracee records the events that its policies choose: traces lack the other calls"

_EXIT = "sched_process_exit"
_BETH = re.compile(r"labelled_(training|validation|testing)_data")
_SPLITS = {"training": "train", "validation": "validation", "testing": "test"}
_COLUMNS = {"timestamp", "processId", "eventName"}

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the objects or the first row name Tracee's fields."""
    del name
    if _COLUMNS <= set(csv_rows.header(head)):
        return True
    return json_lines.recognise(head, lambda record: _COLUMNS <= record.keys())


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file; BETH's own names tell the split.
      vocabulary: the calls' ids.
      options: `group`, `max_gap`; label, family, split and host are handed to the traces.
      counters: is filled.
    """
    if found := _BETH.search(source.name):
        options = dataclasses.replace(options, split=options.split or _SPLITS[found[1]])
    grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
    ids: CallIds[str] = CallIds(vocabulary, counters)

    def add(get: Callable[[str], object], evil: bool | None) -> None:
        name = json_lines.text(get("eventName"))
        pid = json_lines.integer(get("hostProcessId") or get("processId"))
        if pid is None or not name:
            counters.skipped[NO_PROCESS] += 1
            return
        tid = json_lines.integer(get("hostThreadId") or get("threadId"))
        host = json_lines.text(get("hostName"))[:64]
        time = json_lines.seconds(get("timestamp"))
        call = ids[name] if name in vocabulary.ids else None
        if call is None:
            counters.skipped[NOT_A_CALL] += 1
            if name == _EXIT:
                grouping.exit(pid, tid, host, time=time)
            return
        grouping.call(call, pid, tid, json_lines.text(get("processName")), time, host, attack=evil)

    is_table = _COLUMNS <= set(csv_rows.header(source.head))
    blocks = _rows(source, counters) if is_table else json_lines.blocks(source, counters)
    for block in blocks:
        for record in block:
            if "eventName" in record:
                add(record.get, _evil(record.get("evil")))
            elif not lost_events.count(str(record.get("msg", ""))[:200].encode("utf-8", "replace"), counters):
                counters.skipped[NO_PROCESS] += 1
        yield from grouping.settle(len(block))
    yield from grouping.finish()


def _evil(value: object) -> bool | None:
    return None if value not in ("0", "1") else value == "1"


def _rows(source: Source, counters: Counters) -> Iterator[list[json_lines.Record]]:
    names = csv_rows.header(source.head)
    for block in csv_rows.blocks(source, counters, skip=1):
        yield [dict(zip(names, row, strict=False)) for row in block]
