"""Captures of every format, made for measuring: the same calls of a few threads, as each tool writes them."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm.traces.vocabulary import abi_table

THREADS = 8
_CALLS = "read write openat close mmap fstat futex epoll_wait poll recvfrom sendto ioctl lseek brk".split()
_NUMBERS = {name: number for number, name in abi_table("x86_64").items()}


class Event(NamedTuple):
    """One call."""

    i: int
    pid: int
    tid: int
    call: str
    number: int


def events(count: int) -> Iterator[Event]:
    """Calls of `THREADS` threads that alternate every few calls."""
    rng = random.Random(0)
    tid = 4000
    for i in range(count):
        if rng.random() < 0.2:
            tid = 4000 + rng.randrange(THREADS)
        call = rng.choice(_CALLS)
        yield Event(i, 4000, tid, call, _NUMBERS[call])


LINES = {
    "strace": '{tid} 1700000000.{i:06} {call}(3, "x"..., 4096) = 64\n',
    "strace, with calls that others interrupt": "{tid} {call}(3,  <unfinished ...>\n{tid} <... {call} resumed>) = 64\n",
    "sysdig": "{i} 11:54:08.{i:09} 0 sh ({tid}) > {call} fd=3(<f>/etc/passwd) \n"
    "{i} 11:54:08.{i:09} 0 sh ({tid}) < {call} res=0 \n",
    "lid_ds": "17000000{i:011} 33 {pid} sh {tid} {call} > fd=3\n17000000{i:011} 33 {pid} sh {tid} {call} < res=0\n",
    "tracee": '{{"timestamp":17000000{i:011},"processId":1,"hostProcessId":{pid},"hostThreadId":{tid},"processName":'
    '"sh","hostName":"h","eventId":"{number}","eventName":"{call}","returnValue":0,"args":[]}}\n',
    "falco": '{{"output":"x","priority":"Notice","rule":"all","time":"2024-05-01T10:00:00.000000001Z","output_'
    'fields":{{"evt.type":"{call}","proc.pid":{pid},"thread.tid":{tid},"proc.name":"sh"}}}}\n',
    "tetragon": '{{"process_tracepoint":{{"process":{{"exec_id":"x","pid":{pid},"tid":{tid},"binary":"/bin/sh"}},"sub'
    'sys":"raw_syscalls","event":"sys_enter","args":[{{"long_arg":"{number}"}}]}},"time":"2024-05-01T10:00:00.5Z"}}\n',
    "auditd": "type=SYSCALL msg=audit(1700000000.123:{i}): arch=c000003e syscall={number} success=yes exit=0 a0=3 "
    'items=1 ppid=1 pid={pid} auid=1000 comm="sh" exe="/bin/sh" key=(null)\n',
    "perf_trace": "     0.{i:03} ( 0.012 ms): sh/{tid} {call}(fd: 3)      = 3\n",
    "perf_script": "              sh {tid} [001]  3826.{i:06}: raw_syscalls:sys_enter: NR {number} (3, 0, 0, 0, 0, 0)\n"
    "              sh {tid} [001]  3826.{i:06}:  raw_syscalls:sys_exit: NR {number} = 0\n",
    "bpftrace": "1{i:012} {pid} {tid} sh {number}\n",
    "drakvuf": '{{"Plugin":"syscall","TimeStamp":"1716999134.581449","PID":{pid},"TID":{tid},"ProcessName":"sh","Me'
    'thod":"{call}","Module":"nt","NArgs":0}}\n',
    "csv": "{pid},{tid},sh,{call}\n",
    "jsonl": '{{"pid":{pid},"tid":{tid},"command":"sh","syscall":"{call}"}}\n',
}
HEADS = {"csv": "pid,tid,command,syscall\n", "bpftrace": "Attaching 1 probe...\n"}


def _numbers(separator: str, end: str) -> Callable[[Sequence[Event]], bytes]:
    """Traces of a thousand numbers a line."""

    def write(chosen: Sequence[Event]) -> bytes:
        numbers = [str(event.number) for event in chosen]
        rows = (separator.join(numbers[i : i + 1000]) + end for i in range(0, len(numbers), 1000))
        return "".join(rows).encode()

    return write


def _unm(chosen: Sequence[Event]) -> bytes:
    return "".join(f"{event.i // 1000} {event.number}  \n" for event in chosen).encode()


def _bsm(chosen: Sequence[Event]) -> bytes:
    rows = []
    for event in chosen:
        subject = struct.pack(">B9I", 0x24, 1, 2, 3, 4, 5, event.tid, 7, 8, 9)
        body = subject + struct.pack(">BBI", 0x27, 0, 0)
        size = 18 + len(body) + 7
        header = struct.pack(">BIBHHII", 0x14, size, 2, 72 + event.number % 9, 0, 1_700_000_000, 1)
        rows.append(header + body + struct.pack(">BHI", 0x13, 0xB105, size))
    return b"".join(rows)


def _parquet(chosen: Sequence[Event]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"pid": [e.pid for e in chosen], "tid": [e.tid for e in chosen], "call": [e.call for e in chosen]}),
        sink,
    )
    return sink.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[Sequence[Event]], bytes]] = {
    "adfa_ld": _numbers(" ", " "),
    "awsctd": _numbers(",", ",Clean\n"),
    "text_lines": _numbers(" ", "\n"),
    "unm": _unm,
    "bsm": _bsm,
    "parquet": _parquet,
}
SAMPLES = sorted([*LINES, *WRITERS])


def sample(name: str, calls: int) -> bytes:
    """A capture of so many calls.

    Args:
      name: one of `SAMPLES`: a format, perhaps with a comma and what is special.
      calls: how many.
    """
    if name in WRITERS:
        return WRITERS[name](list(events(calls)))
    line = LINES[name]
    return (HEADS.get(name, "") + "".join(line.format(**event._asdict()) for event in events(calls))).encode()
