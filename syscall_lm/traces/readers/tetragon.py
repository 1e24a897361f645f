"""Tetragon's JSON export: system calls by tracepoint or kprobe policies.

  {"process_tracepoint":{"process":{"pid":100},"subsys":"raw_syscalls","event":"sys_enter","args":[...]},"time":...}
  {"process_kprobe":{"process":{"pid":100},"function_name":"__x64_sys_write",...},"node_name":...,"time":...}

Read are `raw_syscalls`/`sys_enter` (the first argument is the number, of the ABI that --abi names), `syscalls`/
`sys_enter_NAME`, and kprobes on the kernel's system-call functions. `process_exit` ends a trace. How the number is
wrapped differs by version and could not be checked against a recording: it is found in whatever field holds it.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import json_lines
from syscall_lm.traces.call_ids import CallIds, abi_vocabulary, by_number
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.json_lines import BLANK, Record
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "Tetragon's JSON export (tracepoints and kprobes of system calls)"

NOT_A_CALL, NO_PROCESS = "event that is no call", "event without a process"
NOISE = frozenset({NOT_A_CALL, BLANK})
GROUPINGS = ("thread", "process")
EVENT_TIMES = True
WARNING = "Tetragon records the calls that its policies choose: traces lack the others"

_KINDS = {
    "process_tracepoint": "tracepoint",
    "processTracepoint": "tracepoint",
    "process_kprobe": "kprobe",
    "processKprobe": "kprobe",
    "process_exit": "exit",
    "processExit": "exit",
    "process_exec": "other",
    "processExec": "other",
}
_FUNCTION = re.compile(r"_{0,2}(?:(?:x64|ia32|arm64|s390x|riscv|se|do|compat)_)*sys_([a-z]\w{0,62})", re.ASCII)

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the objects are Tetragon's events."""
    del name
    return json_lines.recognise(head, _kind)


def _kind(record: Record) -> str:
    key = next((key for key in record if key in _KINDS), "")
    return key if isinstance(record.get(key), dict) else ""


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: the calls' ids.
      options: `abi` says what numbers mean; `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
    names: CallIds[str] = CallIds(vocabulary, counters)
    numbers = by_number(vocabulary, counters, options.abi)
    for block in json_lines.blocks(source, counters):
        for record in block:
            key = _kind(record)
            event = json_lines.child(record, key)
            process = json_lines.child(event, "process")
            pid, tid = json_lines.integer(process.get("pid")), json_lines.integer(process.get("tid"))
            host = json_lines.text(record.get("node_name") or record.get("nodeName"))[:64]
            if pid is None or not key:  # a record may hold an event under an empty name
                counters.skipped[NO_PROCESS if key else NOT_A_CALL] += 1
                continue
            time = json_lines.seconds(record.get("time"))
            if _KINDS[key] == "exit":
                grouping.exit(pid, tid, host, whole=tid in (None, pid), time=time)
            call = _call(event, _KINDS[key])
            if call is None:
                counters.skipped[NOT_A_CALL] += 1
                continue
            call_id = numbers[call] if isinstance(call, int) else names[call]
            command = json_lines.text(process.get("binary")).rpartition("/")[2]
            grouping.call(call_id, pid, tid, command, time, host)
        yield from grouping.settle(len(block))
    yield from grouping.finish()


def _call(event: Record, kind: str) -> str | int | None:
    """The call's name or number; nothing if the event is none."""
    if kind == "kprobe":
        name = event.get("function_name") or event.get("functionName")
        found = _FUNCTION.fullmatch(name) if isinstance(name, str) else None
        return found[1] if found else None
    if kind != "tracepoint":
        return None
    point, subsystem = event.get("event"), event.get("subsys")
    if subsystem == "syscalls" and isinstance(point, str) and point.startswith("sys_enter_"):
        return point.removeprefix("sys_enter_")[:64]
    arguments = event.get("args")
    if (subsystem, point) != ("raw_syscalls", "sys_enter") or not isinstance(arguments, list) or not arguments:
        return None
    first = arguments[0] if isinstance(arguments[0], dict) else {"value": arguments[0]}
    for value in first.values():
        number = json_lines.integer(value.get("id") if isinstance(value, dict) else value)
        if number is not None:
            return number
    return None
