"""Linux audit logs (auditd), raw or interpreted (`ausearch -i`); one process is one trace.

  type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 success=no ... pid=3538 ... comm="cat" ...
  type=SYSCALL msg=audit(05/11/2022 18:10:21.986:84138) : arch=x86_64 syscall=execve ... pid=17790 ... comm=bash ...

Only SYSCALL records are calls; CWD, PATH, PROCTITLE and others tell more of the same event. Numbers follow the record's
own `arch`. Format: Red Hat, "Security Guide", "Understanding Audit log files"; linux/audit.h, elf-em.h for `arch`.
"""

import re
from collections.abc import Iterator

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import lost_events, recognition
from syscall_lm.traces.call_ids import CallIds, abi_vocabulary, by_number
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "auditd's log, raw or interpreted (ausearch -i)"

OTHER_RECORD, SEPARATOR, BLANK = "other record of an event", "separator", "empty line"
NOT_A_RECORD, INCOMPLETE = "not a record", "SYSCALL record without call or process"
NOISE = frozenset({OTHER_RECORD, SEPARATOR, BLANK})
GROUPINGS = ("process",)
GAPS = True
WARNING = "auditd records the calls that its rules choose, and drops some under load: traces have gaps"

# From the machine number of the ELF format: +0x80000000 for 64 bits, +0x40000000 for little endian.
ABIS = {
    b"c000003e": "x86_64",
    b"40000003": "i386",
    b"c00000b7": "arm64",
    b"40000028": "arm",
    b"c0000015": "powerpc64",
    b"80000015": "powerpc64",
    b"80000016": "s390x",
    b"c00000f3": "riscv64",
}
# All that precedes `pid` are numbers and words of the tools' own; what a process names itself follows.
_SYSCALL = re.compile(
    rb"(?:node=(\S{1,256}) )?type=SYSCALL msg=audit\(([^()]{1,40}):(\d{1,20})\) ?: "
    rb"arch=(\w{1,32}) syscall=(\S{1,64}) .{0,2000}?\bpid=(\d{1,10}) "
)
_RECORD = re.compile(rb"(?:node=\S{1,256} )?type=[A-Z0-9_\[\]]{1,64} msg=audit\([^()]{1,40}:\d{1,20}\) ?:")
_COMMAND = re.compile(rb' comm=(?:"([^"]{0,64})"|([0-9A-F]{2,128})(?=\s|$)|(\S{1,64}))')
_EPOCH = re.compile(rb"\d{1,11}\.\d{1,9}")
_UNKNOWN_NUMBER = re.compile(rb"(?:unknown[ _-]syscall\()?(\d{1,9})\)?")

vocabulary = abi_vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are records of the audit system."""
    del name
    return recognition.mostly(head, _RECORD.match)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one log: each when its process ends, the rest at the end of the file.

    Args:
      source: the log.
      vocabulary: the calls' ids; a call of another architecture is found by its name.
      options: `abi` for numbers of an architecture without a known table; `max_gap`; label, family, split and host are
        handed to the traces.
      counters: is filled.
    """
    grouping = Grouping(source, options, counters, GROUPINGS[0], vocabulary.ids)
    names: CallIds[bytes] = CallIds(vocabulary, counters)
    numbers: dict[bytes, CallIds[int]] = {}
    for block in line_blocks(source.stream, counters):
        for line in block:
            found = _SYSCALL.match(line)
            if found is None:
                _skip(line, counters)
                continue
            node, time, _, arch, call, pid = found.groups()
            number = _UNKNOWN_NUMBER.fullmatch(call)
            if number is None:
                call_id = names[call]
            else:
                if arch not in numbers:
                    if len(numbers) >= 16:
                        arch = b""
                    numbers[arch] = _table(arch, vocabulary, counters, options)
                call_id = numbers[arch][int(number[1])]
            seconds = float(time) if _EPOCH.fullmatch(time) else None
            host = (node or b"").decode("utf-8", "replace")
            grouping.call(call_id, int(pid), None, _command(line, number is not None), seconds, host)
        yield from grouping.settle(len(block))
    yield from grouping.finish()


def _table(arch: bytes, vocabulary: Vocabulary | NamesSeen, counters: Counters, options: Options) -> "CallIds[int]":
    try:
        return by_number(vocabulary, counters, ABIS.get(arch.lower(), options.abi))
    except SyscallLMError:  # the table's package knows this architecture by no such name
        return by_number(vocabulary, counters, options.abi)


def _command(line: bytes, raw: bool) -> str:
    """The process's name; raw logs write an odd one in hexadecimal."""
    found = _COMMAND.search(line)
    if found is None:
        return ""
    quoted, encoded, bare = found.groups()
    if encoded is not None and (not raw or len(encoded) % 2):
        quoted = encoded
    elif encoded is not None:
        quoted = bytes.fromhex(encoded.decode())
    return (quoted if quoted is not None else bare).decode("utf-8", "replace")


def _skip(line: bytes, counters: Counters) -> None:
    if lost_events.count(line, counters):
        return
    if found := _RECORD.match(line):
        counters.skipped[INCOMPLETE if b"type=SYSCALL" in found[0] else OTHER_RECORD] += 1
    elif line == b"----":
        counters.skipped[SEPARATOR] += 1
    else:
        counters.skipped[NOT_A_RECORD if line.strip() else BLANK] += 1
