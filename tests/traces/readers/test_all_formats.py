"""What holds for every reader, checked on files that the tests write in each format."""

import collections
import io
import itertools
import json
import re
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import readers
from syscall_lm.traces.readers import Options
from syscall_lm.traces.vocabulary import NamesSeen, abi_table

NUMBER = {name: number for number, name in abi_table("x86_64").items()}
NAMES = ["read", "write", "openat", "close", "mmap", "brk", "getpid", "futex"]
SECOND = 1_700_000_000

# One event is (pid, tid, command, call); a renderer makes a file of events in their order.


def strace(events):
    return b"".join(b"%d %s(3) = 0\n" % (tid, call) for _, tid, _, call in encoded(events))


def sysdig(events):
    rows = []
    for i, (_, tid, command, call) in enumerate(encoded(events)):
        rows.append(b"%d 11:54:08.%09d 0 %s (%d) > %s fd=3(<f>/x) \n" % (2 * i, i, command, tid, call))
        rows.append(b"%d 11:54:08.%09d 0 %s (%d) < %s res=0 \n" % (2 * i + 1, i, command, tid, call))
    return b"".join(rows)


def lid_ds(events):
    rows = []
    for i, (pid, tid, command, call) in enumerate(encoded(events)):
        for way in (b"> fd=3", b"< res=0"):
            rows.append(b"%d 33 %d %s %d %s %s\n" % (SECOND * 10**9 + i, pid, command, tid, call, way))
    return b"".join(rows)


def lid_ds_2019(events):
    rows = []
    for i, (_, tid, command, call) in enumerate(encoded(events)):
        for way in (b">", b"<"):
            rows.append(b"%d 01:47:31.%09d 3 33 %s %d %s %s fd=3 \n" % (i, i, command, tid, way, call))
    return b"".join(rows)


def tracee(events):
    return json_rows(
        {
            "timestamp": SECOND * 10**9 + i,
            "processId": 1,
            "hostProcessId": pid,
            "hostThreadId": tid,
            "processName": command,
            "eventId": str(NUMBER[call]),
            "eventName": call,
            "syscall": "futex",
        }
        for i, (pid, tid, command, call) in enumerate(events)
    )


def beth(events):
    rows = ["timestamp,processId,threadId,parentProcessId,userId,processName,hostName,eventId,eventName,args,sus,evil"]
    for i, (pid, tid, command, call) in enumerate(events):
        quoted = '"' + command.replace('"', '""') + '"'
        rows.append(f"{i}.5,{pid},{tid},1,0,{quoted},h,{NUMBER[call]},{call},\"[{{'name': 'fd, x'}}]\",0,0")
    return "\n".join(rows).encode()


def falco(events):
    return json_rows(
        {
            "output": f"evt_type={call}",
            "priority": "Notice",
            "rule": "all",
            "time": "2024-05-01T10:00:00.000000001Z",
            "output_fields": {"evt.type": call, "proc.pid": pid, "thread.tid": tid, "proc.name": command},
        }
        for pid, tid, command, call in events
    )


def falco_text(events):
    rows = "11:54:08.853533065: Notice Something (process={} evt_type={} pid={} tid={})\n"
    return "".join(rows.format(command, call, pid, tid) for pid, tid, command, call in events).encode()


def tetragon(events):
    return json_rows(
        {
            "process_tracepoint": {
                "process": {"exec_id": "x", "pid": pid, "tid": tid, "binary": f"/usr/bin/{command}"},
                "subsys": "raw_syscalls",
                "event": "sys_enter",
                "args": [{"long_arg": str(NUMBER[call])}],
            },
            "node_name": "",
            "time": "2024-05-01T10:00:00.5Z",
        }
        for pid, tid, command, call in events
    )


def tetragon_kprobe(events):
    return json_rows(
        {
            "process_kprobe": {"process": {"pid": pid, "tid": tid}, "function_name": f"__x64_sys_{call}"},
            "time": "2024-05-01T10:00:00.5Z",
        }
        for pid, tid, command, call in events
    )


def auditd(events):
    rows = []
    for i, (pid, _, command, call) in enumerate(encoded(events)):
        shown = command.hex().upper().encode() if re.search(rb'[" ]', command) else b'"%s"' % command
        rows.append(
            b"type=SYSCALL msg=audit(%d.123:%d): arch=c000003e syscall=%d success=yes exit=0 a0=3 items=1 "
            b"ppid=1 pid=%d auid=1000 comm=%s exe=%s key=(null)\n"
            % (SECOND, i, NUMBER[call.decode()], pid, shown, shown)
        )
        rows.append(b'type=CWD msg=audit(%d.123:%d): cwd="/"\n' % (SECOND, i))
    return b"".join(rows)


def ausearch(events):
    rows = []
    for i, (pid, _, command, call) in enumerate(encoded(events)):
        rows.append(b"----\ntype=CWD msg=audit(05/11/2022 18:10:21.986:%d) : cwd=/ \n" % i)
        rows.append(
            b"type=SYSCALL msg=audit(05/11/2022 18:10:21.986:%d) : arch=x86_64 syscall=%s success=no "
            b"exit=ENOENT(No such file or directory) a0=0x3 items=1 ppid=1 pid=%d auid=u comm=%s exe=/bin/x \n"
            % (i, call, pid, command)
        )
    return b"".join(rows)


def perf_trace(events):
    rows = (
        b"     0.%03d ( 0.012 ms): %s/%d %s(fd: 3)      = 3\n" % (0, c, tid, call)
        for _, tid, c, call in encoded(events)
    )
    return b"".join(rows)


def perf_script(events):
    rows = []
    for i, (_, tid, command, call) in enumerate(encoded(events)):
        start = b"%16s %d [001]  3826.%06d: " % (command, tid, i)
        rows.append(start + b"raw_syscalls:sys_enter: NR %d (3, 0, 0, 0, 0, 0)\n" % NUMBER[call.decode()])
        rows.append(start + b" raw_syscalls:sys_exit: NR %d = 0\n" % NUMBER[call.decode()])
    return b"".join(rows)


def ftrace(events):
    rows = [b"# tracer: nop\n#\n"]
    for pid, tid, command, call in encoded(events):
        row = b"%16s-%-7d (%7d) [001] .....  3826.606678: sys_enter: NR %d (3, 0, 0, 0, 0, 0)\n"
        rows.append(row % (command, tid, pid, NUMBER[call.decode()]))
    return b"".join(rows)


def bpftrace(events):
    rows = [b"Attaching 1 probe...\n"]
    for i, (pid, tid, command, call) in enumerate(encoded(events)):
        rows.append(b"%d %d %d %s %d\n" % (10**12 + i, pid, tid, command, NUMBER[call.decode()]))
    return b"".join(rows)


def drakvuf(events):
    return json_rows(
        {
            "Plugin": plugin,
            "TimeStamp": "1716999134.581449",
            "PID": pid,
            "TID": tid,
            "ProcessName": f"\\Device\\HarddiskVolume2\\{command}",
            "Method": call,
            "Module": "nt",
            "Syscall": 3,
            "NArgs": 0,
        }
        for pid, tid, command, call in events
        for plugin in ("syscall", "sysret")
    )


def bsm(events):
    rows = []
    for pid, _, _, call in events:
        subject = struct.pack(">B9I", 0x24, 1, 2, 3, 4, 5, pid, 7, 8, 9)
        text = b"\x24\x13\xb1\x05 text\0"
        body = struct.pack(">BH", 0x28, len(text)) + text + subject + struct.pack(">BBI", 0x27, 0, 0)
        size = 18 + len(body) + 7
        header = struct.pack(">BIBHHII", 0x14, size, 2, NAMES.index(call) + 100, 0, SECOND, 1)
        rows.append(header + body + struct.pack(">BHI", 0x13, 0xB105, size))
    return b"".join(rows)


def csv(events):
    rows = (f'{pid},{tid},"{command.replace(chr(34), chr(34) * 2)}",{call}' for pid, tid, command, call in events)
    return "\n".join(["pid,tid,command,syscall", *rows]).encode()


def jsonl(events):
    return json_rows({"pid": p, "tid": t, "command": c, "syscall": call} for p, t, c, call in events)


def parquet(events):
    file = io.BytesIO()
    columns = list(zip(*events, strict=True))
    pq.write_table(pa.table(dict(zip(("pid", "tid", "command", "syscall"), map(pa.array, columns), strict=True))), file)
    return file.getvalue()


def text_lines(events):
    return "".join(" ".join(calls) + "\n" for calls in by_thread(events).values()).encode()


def awsctd(events):
    rows = (",".join(str(NUMBER[call]) for call in calls) + ",AdWare\n" for calls in by_thread(events).values())
    return "".join(rows).encode()


def json_rows(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def encoded(events):
    return [(pid, tid, command.encode(), call.encode()) for pid, tid, command, call in events]


def by_thread(events):
    found = collections.defaultdict(list)
    for _, tid, _, call in events:
        found[tid].append(call)
    return found


RENDERERS = {
    "strace": [strace],
    "sysdig": [sysdig],
    "lid_ds": [lid_ds, lid_ds_2019],
    "tracee": [tracee, beth],
    "falco": [falco, falco_text],
    "tetragon": [tetragon, tetragon_kprobe],
    "auditd": [auditd, ausearch],
    "perf_trace": [perf_trace],
    "perf_script": [perf_script, ftrace],
    "bpftrace": [bpftrace],
    "drakvuf": [drakvuf],
    "bsm": [bsm],
    "csv": [csv],
    "jsonl": [jsonl],
    "parquet": [parquet],
    "text_lines": [text_lines],
    "awsctd": [awsctd],
}
CASES = [
    pytest.param(name, render, id=render.__name__) for name, renderers in RENDERERS.items() for render in renderers
]
# Parquet is read by a process of its own: too slow for many examples; test_tables.py has its tests.
QUICK = [case for case in CASES if case.values[0] != "parquet"]
NEW = [name for name in RENDERERS if name != "strace"]
NO_COMMAND = {strace, tetragon_kprobe, bsm, falco_text, text_lines, awsctd}

HOSTILE = [
    "sh",
    "x (1) > open",
    "1 9 open >",
    "a/7 read(",
    "Web Content",
    "a,b",
    'q"t',
    "x=1 pid=9",
    "7 7 x 1",
    "s:0 NR 1",
    "é",
]
EVENTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from(HOSTILE), st.sampled_from(NAMES)),
    min_size=1,
    max_size=30,
).map(lambda events: [(1000 * pid, 1000 * pid + tid, command, call) for pid, tid, command, call in events])


def expected_calls(name, calls):
    if name == "bsm":
        return [f"event_{NAMES.index(call) + 100}" for call in calls]
    return [f"number {NUMBER[call]}" for call in calls] if name == "awsctd" else calls


@pytest.mark.parametrize(("name", "render"), QUICK)
@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_what_is_written_is_read(read, name, render, events):
    if render is ausearch or render is perf_trace:  # the one writes no quotes, the other would need its own padding
        events = [(pid, tid, command.replace('"', ""), call) for pid, tid, command, call in events]
    traces, counters, names = read(name, render(events))
    per_process = getattr(readers.reader(name), "GROUPINGS", ("thread",)) == ("process",)
    expected = by_thread([(pid, pid if per_process else tid, command, call) for pid, tid, command, call in events])
    if name in ("text_lines", "awsctd"):
        found = {i: calls for i, calls in enumerate(names)}
        expected = dict(enumerate(expected.values()))
    else:
        found = {trace.pid: calls for trace, calls in zip(traces, names, strict=True)}
    assert found == {key: expected_calls(name, calls) for key, calls in expected.items()}
    noise = readers.reader(name).NOISE
    assert not [reason for reason in counters.skipped if reason not in noise]
    if render not in NO_COMMAND and not per_process:
        last = {tid: command for _, tid, command, _ in events}
        for trace in traces:
            expected_name = last[trace.pid]
            if name in ("tetragon", "drakvuf"):
                expected_name = re.split(r"[/\\]", expected_name)[-1]
            assert trace.command == (expected_name.strip() if name == "perf_script" else expected_name)


@pytest.mark.parametrize(("name", "render"), CASES)
def test_each_format_is_recognised_and_no_other_takes_it(name, render):
    events = [(7 * i, 7 * i + j, "Web Content", NAMES[(i + j) % 8]) for i in range(1, 5) for j in range(3)] * 3
    data = render(events)
    assert list(readers.recognise("capture", data)) == [name]
    assert list(readers.recognise("capture", data[:10])) in ([], [name])
    if name not in ("parquet", "bsm"):
        cut = data[: len(data) - len(data) // 7]
        assert list(readers.recognise("capture", cut)) == [name]
        assert list(readers.recognise("capture", data.replace(b"\n", b"\r\n"))) == [name]


@pytest.mark.parametrize("name", ["adfa_ld", *(name for name in NEW if name != "parquet")])
@settings(max_examples=20, deadline=10_000)
@given(data=st.binary(max_size=2000) | st.text(max_size=1000).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused_in_a_sentence(read, name, data):
    assert isinstance(readers.reader(name).recognises("x", data), bool)
    try:
        read(name, data)
    except SyscallLMError as error:
        assert 10 < len(str(error)) < 1000


@pytest.mark.parametrize(("name", "render"), [case for case in QUICK if case.values[0] != "strace"])
@settings(max_examples=12, deadline=10_000)
@given(events=EVENTS, seed=st.randoms(use_true_random=False), columns=st.booleans())
def test_damaged_files_lose_calls_but_nothing_else(read, name, render, events, seed, columns):
    data = bytearray(render(events))
    for _ in range(seed.randint(1, 6)):
        at = seed.randrange(len(data) + 1)
        match seed.randrange(5):
            case 0:
                del data[at : at + seed.randint(1, 40)]
            case 1:
                data[at:at] = seed.randbytes(seed.randint(1, 10))
            case 2:
                data[at:at] = data[max(0, at - 30) : at]
            case 3:
                data[at : at + 1] = seed.choice([b"\n", b'"', b"\0", b"(", b"\xff", b"-", b"9" * 30, b"{" * 50])
            case _:
                del data[at:]
    options = Options(columns="call=syscall,pid=pid" if columns and name in ("csv", "jsonl") else "")
    try:
        read(name, bytes(data), options)
    except SyscallLMError as error:
        assert 10 < len(str(error)) < 1000


@pytest.mark.parametrize("name", NEW)
def test_what_the_readers_say_of_themselves(name):
    module = readers.reader(name)
    options = Options()
    assert isinstance(module.vocabulary(options), NamesSeen) or len(module.vocabulary(options).names) > 300
    assert set(getattr(module, "GROUPINGS", ())) <= {"thread", "process"}
    for group in ("thread", "process"):
        if group not in getattr(module, "GROUPINGS", ()):
            with pytest.raises(SyscallLMError, match=f"--group={group}: {name} does not tell"):
                readers.grouping(module, Options(group=group))
        else:
            assert readers.grouping(module, Options(group=group)) == group


@pytest.mark.parametrize("render", [lid_ds, tracee, falco, tetragon, ftrace, bpftrace, drakvuf, csv, jsonl, parquet])
def test_threads_can_be_put_together(read, render):
    name = next(name for name, renderers in RENDERERS.items() if render in renderers)
    events = [(7, 7, "a", "read"), (7, 8, "a", "write"), (9, 9, "b", "brk"), (7, 7, "a", "close"), (7, 8, "a", "mmap")]
    _, _, names = read(name, render(events), Options(group="process"))
    assert sorted(names) == [["brk"], ["read", "write", "close", "mmap"]]


@pytest.mark.parametrize("render", [sysdig, lid_ds, tracee, falco, tetragon, perf_trace, perf_script, bpftrace, auditd])
def test_a_pid_that_comes_back_after_an_exit_is_another_trace(read, render):
    name = next(name for name, renderers in RENDERERS.items() if render in renderers)
    events = [(7, 7, "a", "read"), (7, 7, "a", "exit_group"), (7, 7, "b", "write"), (7, 7, "b", "exit_group")]
    traces, _, names = read(name, render(events))
    assert names == [["read", "exit_group"], ["write", "exit_group"]]
    assert [trace.id for trace in traces] == ["capture:7", "capture:7#2"]


def test_a_file_of_several_formats_is_read_as_the_one_that_is_named(read):
    events = [(7, 7, "a", "read"), (7, 8, "a", "write")] * 20
    renderers = [sysdig, auditd, tracee, perf_trace, bpftrace, text_lines]
    rows = [render(events).splitlines(keepends=True) for render in renderers]
    mixed = b"".join(row for group in itertools.zip_longest(*rows, fillvalue=b"") for row in group)
    assert list(readers.recognise("x", mixed)) == []
    for render in renderers:
        name = next(name for name, own in RENDERERS.items() if render in own)
        _, counters, names = read(name, mixed)
        if name != "text_lines":  # every line is words
            assert sorted(names) == sorted(read(name, render(events))[2])
            noise = readers.reader(name).NOISE
            assert sum(n for reason, n in counters.skipped.items() if reason not in noise) > 100
