"""A few lines of each format, made by hand, for the fuzzer to start from."""

import gzip
import io
import struct
import tarfile
import zipfile


def _bsm(event: int, pid: int) -> bytes:
    subject = struct.pack(">B9I", 0x24, 1, 2, 3, 4, 5, pid, 7, 8, 9)
    text = b"\x28\x00\x02a\0" + b"\x3c\x00\x00\x00\x01ls\0" + b"\x31" + bytes(24)
    size = 18 + len(text) + len(subject) + 7
    header = struct.pack(">BIBHHII", 0x14, size, 2, event, 0, 1_000_000_000, 1)
    return header + text + subject + struct.pack(">BHI", 0x13, 0xB105, size)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b", b"1 2\n")
        archive.writestr("c.gz", gzip.compress(b"3 4\n", mtime=0))
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a", "b" * 120, "é"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"1 2\n"))
    return file.getvalue()


_TRACEE = b'{"timestamp":1657290245020855990,"hostProcessId":7,"hostThreadId":8,"processName":"x","eventName":"%s"}\n'
_TETRAGON = (
    b'{"process_%s":{"process":{"pid":7,"tid":8,"binary":"/x"},%s},"node_name":"n","time":"2024-05-01T10:00:00Z"}\n'
)
_FALCO = (
    b'{"rule":"r","priority":"Notice","output":"o","time":"2024-05-01T10:00:00.1Z","output_fields":{"evt.type":"open",'
)
_DRAKVUF = b'{"Plugin":"syscall","TimeStamp":"1716999134.5","PID":7,"TID":8,"ProcessName":"a","Method":"%s",%s}\n'

SEEDS: dict[str, list[bytes]] = {
    "adfa_ld": [b"3 4 5 340 341\n"],
    "auditd": [
        b"type=SYSCALL msg=audit(1.5:2): arch=c000003e syscall=2 success=yes exit=0 a0=1 ppid=1 pid=7 comm=6C73 exe=1\n"
        b'node=h type=SYSCALL msg=audit(1.5:2): arch=x86_64 syscall=open a0=1 pid=7 comm="l s" x\n----\n'
        b"type=CWD msg=audit(1.5:2): cwd=1\naudit: audit_lost=7\n"
    ],
    "awsctd": [b"15,18,18,AdWare\n1,2,Clean\n"],
    "bpftrace": [b"Attaching 1 probe...\n12345678 7 8 a b 59\n12345679 7 8 a b 231\nLost 3 events\n"],
    "bsm": [_bsm(23, 7) + _bsm(1, 7) + _bsm(6152, 8), struct.pack(">BIIH", 0x11, 1, 2, 2) + b"f\0" + _bsm(2, 7)],
    "csv": [
        b'pid,tid,syscall,time,label\n1,2,open,1.5,0\n1,2,"re""ad",2024-05-01T10:00:00Z,1\n',
        b"id,calls\na,1 2 3\n",
    ],
    "drakvuf": [_DRAKVUF % (b"NtClose", b'"Module":"nt"') + _DRAKVUF % (b"", b'"Module":"win32k","Syscall":7')],
    "falco": [
        _FALCO + b'"proc.pid":7,"thread.tid":8,"evt.dir":"<"}}\n',
        b"11:54:08.853533065: Notice x (evt_type=execve pid=7)\n",
    ],
    "jsonl": [
        b'{"pid":1,"syscall":"open","time":1.5}\n{"pid":2,"syscall":3}\n',
        b'{"id":"a","calls":["open",1,null]}\n',
    ],
    "lid_ds": [
        b"1631610000123456789 0 7 py 8 getpid > a=1\n1631610000123456789 0 7 py 8 getpid < res=0\n",
        b"1 01:47:31.305898142 3 33 a b 8 > close fd=1\n1 01:47:31.305898142 3 33 a b 8 < clone res=0\n",
    ],
    "perf_script": [
        b"  a b 7 [001]  3858.268196: raw_syscalls:sys_enter: NR 59 (0)\n"
        b"  a b 7/8 [001]  3.2: raw_syscalls:sys_exit: NR 59 = 0\n",
        b"  a-7 (  8) [001] d..1. 3858.268196: sys_enter: NR 1 (0)\nCPU:0 [LOST 3 EVENTS]\n# x\n",
        b"a 7 [001] 3.2: syscalls:sys_enter_openat: x\na 7 [001] 3.2: syscalls:sys_exit_openat: 0x3\n",
    ],
    "perf_trace": [
        b"   ? ( ): a/7  ... [continued]: clone()) = 0\n 0.1 ( 0.02 ms): a b/7 open(x) = 1\n 9.6 ( ): wait4(1) ...\n"
    ],
    "sources": [_zip(), _tar(), gzip.compress(_tar(), mtime=0), b"1 2\n"],
    "strace": [b'7 1.5 execve("/x", [], 0) = 0\n8 <... x resumed>) = 1\n[pid 7] +++ exited with 0 +++\n'],
    "sysdig": [
        b"1 11:54:08.853533065 0 a b (7) > open x\n1 11:54:08.8 0 c (host) a (7:1) < syscall ID=3(read) n\n",
        b'{"evt.num":1,"evt.dir":">","evt.type":"procexit","thread.tid":7,"proc.name":"x","evt.outputtime":1}\n',
    ],
    "tetragon": [
        _TETRAGON % (b"tracepoint", b'"subsys":"raw_syscalls","event":"sys_enter","args":[{"long_arg":"59"}]'),
        _TETRAGON % (b"kprobe", b'"function_name":"__x64_sys_read"') + _TETRAGON % (b"exit", b'"x":1'),
    ],
    "text_lines": [b"open read close\n1 2, 3\n", b"1 2 3\n4 5 6\n"],
    "tracee": [
        _TRACEE % b"openat" + _TRACEE % b"sched_process_exit" + b'{"msg":"Lost 3 events"}\n',
        b"timestamp,processId,threadId,processName,hostName,eventName,args,evil\n1.5,7,8,x,h,openat,\"[{'a': 1}]\",1\n",
    ],
    "unm": [b"7 2\n7 3\n8 1\n"],
}
