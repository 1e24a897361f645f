"""Falco, Tetragon, DRAKVUF: JSON events, in the shapes that their documentation shows."""

import json

import pytest

from syscall_lm.traces.readers import Options, drakvuf, falco, tetragon

FALCO = {
    "hostname": "h",
    "output": "10:00:00.000000001: Notice A shell was spawned (evt_type=execve pid=9)",
    "priority": "Notice",
    "rule": "Terminal shell in container",
    "source": "syscall",
    "time": "2024-05-01T10:00:00.000000001Z",
    "output_fields": {
        "evt.type": "execve",
        "proc.pid": 7,
        "thread.tid": 8,
        "proc.name": "sh",
        "evt.time": 1714557600 * 10**9,
    },
}


def lines(*records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_falco_s_alerts(read):
    without = [{**FALCO, "output_fields": fields} for fields in ({"proc.pid": 7}, {"evt.type": "open"}, None, [1])]
    ended = {**FALCO, "output_fields": {**FALCO["output_fields"], "evt.type": "procexit"}}
    traces, counters, names = read("falco", lines(FALCO, *without, FALCO, ended, FALCO))
    assert names == [["execve", "execve"], ["execve"]]
    assert (traces[0].pid, traces[0].command, traces[0].start_time) == (8, "sh", 1714557600.0)
    assert counters.skipped == {falco.NO_CALL: 3, falco.NO_PROCESS: 1, falco.NOT_A_CALL: 1}
    assert read("falco", lines(FALCO), Options(group="process"))[0][0].pid == 7


def test_falco_s_text(read):
    rows = b"""\
10:00:00.000000001: Notice Shell (user=root process=evt_type=fake evt_type=execve pid=7 tid=7)
2024-05-01T10:00:00.000000001+0000: Warning Sensitive file opened (file=/etc/shadow evt_type=openat process=cat)
10:00:00.000000001: Notice Something else
Falco initialized with configuration file /etc/falco/falco.yaml
"""
    _, counters, names = read("falco", rows)
    assert names == [["execve"]]
    assert counters.skipped == {falco.NO_PROCESS: 1, falco.NO_CALL: 1, falco.NOT_AN_ALERT: 1}


PROCESS = {"exec_id": "aDo1", "pid": 100, "tid": 101, "binary": "/usr/bin/curl"}


@pytest.mark.parametrize(
    "argument", [{"long_arg": "257"}, {"size_arg": 257}, {"id": {"id": 257, "abi": "x64"}}, {"x": None, "y": 257}, 257]
)
def test_tetragon_s_tracepoints(read, argument):
    event = {"process": PROCESS, "subsys": "raw_syscalls", "event": "sys_enter", "args": [argument, {"x": 3}]}
    record = {"process_tracepoint": event, "node_name": "n1", "time": "2024-05-01T10:00:00.5Z"}
    traces, _, names = read("tetragon", lines(record))
    assert names == [["openat"]]
    assert (traces[0].pid, traces[0].command, traces[0].host) == (101, "curl", "n1")
    assert traces[0].start_time == 1714557600.5


def test_tetragon_s_other_events(read):
    kprobes = [
        {"process_kprobe": {"process": PROCESS, "function_name": name}}
        for name in ("__x64_sys_write", "__arm64_sys_read", "sys_close", "fd_install", "__se_sys_brk", None)
    ]
    single = {"process_tracepoint": {"process": PROCESS, "subsys": "syscalls", "event": "sys_enter_mmap"}}
    ended = {"process_exit": {"process": PROCESS}}
    nobody = {"process_kprobe": {"function_name": "__x64_sys_write"}}
    _, counters, names = read("tetragon", lines(*kprobes, single, ended, single, nobody, {"x": 1}))
    assert names == [["write", "read", "close", "brk", "mmap"], ["mmap"]]
    assert counters.skipped == {tetragon.NOT_A_CALL: 4, tetragon.NO_PROCESS: 1}


WINDOWS = {
    "Plugin": "syscall",
    "TimeStamp": "1716999134.581449",
    "PID": 3888,
    "PPID": 2852,
    "TID": 368,
    "ProcessName": "\\Device\\HarddiskVolume2\\Windows\\explorer.exe",
    "Method": "NtRemoveIoCompletionEx",
    "Module": "nt",
    "Syscall": 369,
    "NArgs": 6,
}


def test_drakvuf_on_windows(read):
    records = [
        WINDOWS,
        {**WINDOWS, "Plugin": "sysret"},
        {**WINDOWS, "Module": "win32k", "Method": "NtUserGetMessage"},
        {**WINDOWS, "Module": "win32k", "Method": None},
        {**WINDOWS, "Method": "", "Module": "not a name"},
        {**WINDOWS, "PID": None},
        {"Plugin": "procmon", "TimeStamp": "1.5", "PID": 1},
    ]
    traces, counters, names = read("drakvuf", lines(*records))
    assert names == [["NtRemoveIoCompletionEx", "NtUserGetMessage", "win32k:369"]]
    assert (traces[0].pid, traces[0].command, traces[0].start_time) == (368, "explorer.exe", 1716999134.581449)
    assert counters.skipped == {drakvuf.OTHER_PLUGIN: 2, drakvuf.INCOMPLETE: 2}


def test_drakvuf_on_linux(read):
    methods = ["openat", "__x64_sys_read", "sys_write", "exit_group", "brk"]
    records = [{**WINDOWS, "ProcessName": "bash", "Module": "x64_sys_call", "Method": method} for method in methods]
    assert read("drakvuf", lines(*records))[2] == [["openat", "read", "write", "exit_group"], ["brk"]]
