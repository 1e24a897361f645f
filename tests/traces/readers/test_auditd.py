import zipfile

import pytest

from syscall_lm.traces.lost_events import LOST
from syscall_lm.traces.readers import Options, auditd

RAW = (
    'type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 success=no exit=-13 a0=7fffd19c5592 a1=0 '
    'a2=7fffd19c4b50 a3=a items=1 ppid=2686 pid=3538 auid=1000 uid=1000 gid=1000 tty=pts0 ses=1 comm="cat" '
    'exe="/bin/cat" subj=unconfined_u key="sshd_config"'
)  # fmt: skip
INTERPRETED = (
    "type=SYSCALL msg=audit(05/11/2022 18:10:21.986:84138) : arch=x86_64 syscall=execve success=no "
    "exit=ENOENT(No such file or directory) a0=0x7fcd a1=0x7f a2=0x7f a3=0xb items=1 ppid=1340 pid=17790 auid=unset "
    "uid=tomcat comm=http-nio-8080-e exe=/usr/bin/java key=(null) "
)


@pytest.mark.parametrize(
    ("line", "pid", "command", "call", "host"),
    [
        (RAW, 3538, "cat", "open", ""),
        ("node=web1 " + RAW, 3538, "cat", "open", "web1"),
        (RAW.replace("c000003e syscall=2", "40000003 syscall=5"), 3538, "cat", "open", ""),
        (RAW.replace("c000003e syscall=2", "c00000b7 syscall=56"), 3538, "cat", "openat", ""),
        (RAW.replace('"cat"', "28612062290A"), 3538, "(a b)\n", "open", ""),
        (RAW.replace('"cat"', '"pid=9 x"'), 3538, "pid=9 x", "open", ""),
        (RAW.replace("SYSCALL", "SYSCALL") + '\x1dARCH=x86_64 SYSCALL=open AUID="u"', 3538, "cat", "open", ""),
        (INTERPRETED, 17790, "http-nio-8080-e", "execve", ""),
    ],
)
def test_one_record_is_one_call(read, line, pid, command, call, host):
    traces, _, names = read("auditd", line.encode() + b"\n")
    assert (traces[0].pid, traces[0].command, traces[0].host, names) == (pid, command, host, [[call]])
    assert traces[0].start_time == (None if line is INTERPRETED else 1364481363.243)


@pytest.mark.parametrize(
    ("line", "reason", "times"),
    [
        ('type=CWD msg=audit(1364481363.243:24287): cwd="/ pid=7 "', auditd.OTHER_RECORD, 1),
        ("type=PROCTITLE msg=audit(1364481363.243:24287): proctitle=636174", auditd.OTHER_RECORD, 1),
        ("type=UNKNOWN[1334] msg=audit(1364481363.243:24287): prog-id=5", auditd.OTHER_RECORD, 1),
        ("type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 succ", auditd.INCOMPLETE, 1),
        ("----", auditd.SEPARATOR, 1),
        ("audit: audit_lost=17 audit_rate_limit=0 audit_backlog_limit=320", LOST, 17),
        ("hello", auditd.NOT_A_RECORD, 1),
        ("", auditd.BLANK, 1),
    ],
)
def test_one_record_is_no_call(read, line, reason, times):
    assert read("auditd", line.encode() + b"\n")[1].skipped == {reason: times}


def test_a_number_of_no_known_table_is_unknown_but_counts(read):
    _, counters, names = read("auditd", RAW.replace("syscall=2", "syscall=9999").encode())
    assert names == [["?"]] and counters.unknown == {"number 9999": 1}
    # An architecture without a table is read as --abi says.
    assert read("auditd", RAW.replace("c000003e", "c0001234").encode(), Options(abi="x86_64"))[2] == [["open"]]


def test_events_recorded_in_the_wild(read, shared_data):
    for name, processes in (("sh_arp_cache", [1631, 1632]), ("sh_binary_padding_dd", [2168])):
        with zipfile.ZipFile(shared_data / f"format_samples/auditd-cloud/{name}.zip") as archive:
            data = archive.read(archive.namelist()[0])
        traces, counters, names = read("auditd", data)
        assert [trace.pid for trace in traces] == processes and names == [["execve"]] * len(processes)
        assert set(counters.skipped) <= {auditd.OTHER_RECORD, auditd.BLANK}
