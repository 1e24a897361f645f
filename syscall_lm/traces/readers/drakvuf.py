"""DRAKVUF's JSON output, plugin `syscalls`, of Windows and Linux guests; one thread is one trace.

  {"Plugin":"syscall","TimeStamp":"1716999134.581449","PID":3888,"TID":368,"ProcessName":"...","Method":"NtClose",
   "Module":"nt","vCPU":0,"CR3":"0x119b1002","Syscall":15,"NArgs":1,...}

This is what has become of collecting calls through Xen and LibVMI (Soni et al. 2019). A Windows call is told by its
name: the numbers of `nt` and `win32k` overlap and change with every version. Without a name it is "Module:number".
Which vocabulary a capture gets depends on its names: Linux's table, or the names seen. Only `Plugin` = syscall counts;
`sysret` is the end of a call. Fields: DRAKVUF's documentation of the plugin; DRAKVUF's other outputs are not read.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import call_ids, json_lines
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.json_lines import BLANK
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "DRAKVUF's syscalls plugin as JSON lines (Windows and Linux guests)"

OTHER_PLUGIN, INCOMPLETE = "event of another plugin", "call without name or process"
NOISE = frozenset({OTHER_PLUGIN, BLANK})
GROUPINGS = ("thread", "process")
EVENT_TIMES = True

_FUNCTION = re.compile(r"_{0,2}(?:x64|ia32|arm64|se|do)_sys_|sys_")  # the function instead of the call: Linux guests
_FIELDS = {"Plugin", "TimeStamp", "PID"}


def recognises(name: str, head: bytes) -> bool:
    """Whether the objects are DRAKVUF's."""
    del name
    return json_lines.recognise(head, lambda record: _FIELDS <= record.keys())


def vocabulary(options: Options) -> NamesSeen:
    """The names seen: Linux's table at the end if most are from there."""
    return NamesSeen(options.abi)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file, those of threads that end by a Linux call when they do, the rest at the end of the file.

    Args:
      source: the file.
      vocabulary: grows by the calls' names.
      options: `group`, `max_gap`; label, family, split and host are handed to the traces.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
    ids: CallIds[str] = CallIds(vocabulary, counters)
    for block in json_lines.blocks(source, counters):
        for record in block:
            if record.get("Plugin") != "syscall":
                counters.skipped[OTHER_PLUGIN] += 1
                continue
            call, pid = _name(record), json_lines.integer(record.get("PID"))
            if not call or pid is None:
                counters.skipped[INCOMPLETE] += 1
                continue
            time = json_lines.seconds(record.get("TimeStamp"))
            command = re.split(r"[\\/]", json_lines.text(record.get("ProcessName")))[-1]
            grouping.call(ids[call], pid, json_lines.integer(record.get("TID")), command, time)
        yield from grouping.settle(len(block))
    yield from grouping.finish()


def _name(record: json_lines.Record) -> str:
    method = record.get("Method")
    if call_ids.is_name(method):
        found = _FUNCTION.match(method)
        return method[found.end() :] if found and len(method) > found.end() else method
    module, number = record.get("Module"), json_lines.integer(record.get("Syscall"))
    return f"{module}:{number}" if call_ids.is_name(module) and number is not None else ""
