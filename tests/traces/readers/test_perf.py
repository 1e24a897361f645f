"""perf trace, perf script, ftrace, bpftrace; lines as perf 6.1 and Linux 6.1 write them unless a comment says else."""

import pytest

from syscall_lm.traces import grouping
from syscall_lm.traces.lost_events import LOST
from syscall_lm.traces.readers import Options, bpftrace, perf_script, perf_trace

PERF_TRACE = b"""\
         ? (         ): bash/25785  ... [continued]: clone())                                        = 0
    20.841 (         ): bash/25785 execve(filename: 0x24379510, argv: 0x563524379dc0, envp: 0x563524375e60) ...
    21.588 ( 0.012 ms): a/1 open(/25785 brk()                                                                 = 0x55c9
    20.841 ( 0.742 ms): ls/25785  ... [continued]: execve())                                         = 0
    22.165 ( 0.011 ms): ls/25785 openat(dfd: CWD, filename: 0x41b030b1, flags: RDONLY|CLOEXEC) ...)  = 4
  1003.809 (         ): ls/25785 exit_group()                                                        = ?
LOST 3 events!
"""


def test_perf_trace_counts_a_call_where_it_opens(read):
    traces, counters, names = read("perf_trace", PERF_TRACE)
    assert names == [["execve", "brk", "openat", "exit_group"]]
    assert counters.skipped == {grouping.CHILD: 1, grouping.END_OF_CALL: 1, LOST: 3}
    assert (traces[0].pid, traces[0].command) == (25785, "ls")


def test_perf_trace_of_a_single_process_names_none(read):
    data = b"     0.054 ( 0.012 ms): brk() = 0x55c9\n     0.267 ( 0.024 ms): mmap(len: 8192) = 0x7f7f\n"
    traces, _, names = read("perf_trace", data)
    assert names == [["brk", "mmap"]] and traces[0].pid is None and traces[0].id == "capture"


def test_perf_trace_s_summary_is_refused(read):
    data = b" Summary of events:\n\n true (7989), 58 events, 96.7%\n\n   syscall  calls  errors\n   mmap      8    0\n"
    _, counters, names = read("perf_trace", data)
    assert names == [] and counters.skipped[perf_trace.NOT_A_CALL] == 4
    assert not perf_trace.recognises("x", data)


PERF_SCRIPT = b"""\
# ========
            bash 25794 [001]  3858.268195:     raw_syscalls:sys_exit: NR 59 = 0
            bash 25794 [001]  3858.268196:    raw_syscalls:sys_enter: NR 257 (ffffff9c, 55867aedc530, 80000, 0, 7, 5)
            bash 25794 [001]  3858.268196: syscalls:sys_enter_openat: dfd: 0xffffff9c, filename: 0x55867aedc530
            bash 25794 [001]  3858.268197:     raw_syscalls:sys_exit: NR 257 = -2
            bash 25795 [000]  3858.268199:     raw_syscalls:sys_exit: NR 56 = 0
   x 1 [0] 1.2:  25795 [000]  3858.268200:    raw_syscalls:sys_enter: NR 39 (0, 0, 0, 0, 0, 0)
            bash 25794 [001]  3858.268201:     raw_syscalls:sys_exit: NR -1 = 0
            bash 25794 [001]  3858.268202:           sched:sched_switch: prev_comm=bash prev_pid=25794
"""


def test_perf_script_counts_raw_events_once(read):
    _, counters, names = read("perf_script", PERF_SCRIPT)
    assert names == [["execve", "openat"], ["getpid"]]
    assert counters.skipped == {
        perf_script.HEADER: 1,
        perf_script.TWICE: 1,
        perf_script.OTHER: 2,
        grouping.END_OF_CALL: 1,
        grouping.CHILD: 1,
    }


def test_perf_script_reads_single_events_where_there_are_no_raw_ones(read):
    data = b"a 7 [001]  3858.2: syscalls:sys_enter_openat: dfd: 0x1\na 7 [001]  3858.3: syscalls:sys_exit_openat: 0x3\n"
    assert read("perf_script", data)[2] == [["openat"]]


@pytest.mark.parametrize(
    ("line", "pid", "tid"),
    [
        (b"true 23089/23090 [001]  3826.606678: raw_syscalls:sys_enter: NR 12 (0, 0, 0, 0, 0, 0)", 23089, 23090),
        (b"  true-23090 [001] d..1.  3826.606678: sys_enter: NR 12 (0, 0, 0, 0, 0, 0)", 23090, 23090),
        (b"  true-23090 (  23089) [001] .....  3826.606678: sys_enter: NR 12 (0, 0, 0)", 23089, 23090),
        (b"  true-23090 (-------) [001] .....  3826.606678: sys_enter: NR 12 (0, 0, 0)", 23090, 23090),
        # trace-cmd report, from its documentation
        (b"            true-23090 [001]  3826.606678: sys_enter:            NR 12 (0, 0, 0)", 23090, 23090),
    ],
)
def test_who_made_the_call(read, line, pid, tid):
    for group, expected in (("thread", tid), ("process", pid)):
        traces, _, names = read("perf_script", line, Options(group=group))
        assert (traces[0].pid, traces[0].command, names) == (expected, "true", [["brk"]])


def test_numbers_follow_the_abi(read):
    data = b"true 7 [001]  3858.2: raw_syscalls:sys_enter: NR 56 (0, 0)\n"
    assert read("perf_script", data, Options(abi="arm64"))[2] == [["openat"]]
    data = b"12345678 7 7 true 56\n"
    assert read("bpftrace", data, Options(abi="arm64"))[2] == [["openat"]]


@pytest.mark.parametrize("line", [b"CPU:0 [LOST 17 EVENTS]", b"PERF_RECORD_LOST lost 17"])  # from their documentation
def test_lost_events_are_counted(read, line):
    assert read("perf_script", line)[1].skipped == {LOST: 17}


def test_bpftrace_s_messages_are_told_from_calls(read):
    data = b"Attaching 1 probe...\n12345678 7 8 Web Content 9 1\nLost 17 events\n12345679 7 8 x 99999\nhello\n\n"
    traces, counters, names = read("bpftrace", data)
    assert names == [["write", "?"]] and (traces[0].pid, traces[0].command) == (8, "x")
    assert counters.skipped == {bpftrace.MESSAGE: 1, LOST: 17, bpftrace.NOT_A_CALL: 1, bpftrace.BLANK: 1}
