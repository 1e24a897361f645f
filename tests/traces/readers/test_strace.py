import collections
import dataclasses
import io
import pathlib
import re
import shutil
import subprocess
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.traces import grouping, sources, strace_lines
from syscall_lm.traces.readers import Counters, Options, strace
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream

VOCABULARY = strace.vocabulary(Options())


def read(data, name="run.strace"):
    counters = Counters()
    source = Source(name, ByteStream(io.BytesIO(data).read))
    return list(strace.read(source, VOCABULARY, Options(), counters)), counters


def names(trace):
    return [VOCABULARY.name(call) for call in trace.calls]


def by_pid(data, name="run.strace"):
    """Pid -> the call names of its traces, one list a trace."""
    found = collections.defaultdict(list)
    traces, counters = read(data, name)
    for trace in traces:
        found[trace.pid].append(names(trace))
    assert counters.calls == sum(len(trace.calls) for trace in traces)
    assert counters.traces == len(traces) == len({trace.id for trace in traces})
    return dict(found), counters


# ---------------------------------------------------------------- lines that strace 6.1 was seen to write


@pytest.mark.parametrize(
    ("line", "pid", "name"),
    [
        ('7853  05:26:37.313095 execve("/usr/bin/true", ["true"], 0x7ffe /* 35 vars */) = 0', 7853, "execve"),
        ("7853  05:26:37.326879 rt_sigprocmask(SIG_SETMASK, [],  <unfinished ...>", 7853, "rt_sigprocmask"),
        ('7904  [  59] execve("/bin/true", ["true"], 0x7ffe /* 35 vars */) = 0', 7904, "execve"),
        ("[pid  7974] brk(NULL <unfinished ...>", 7974, "brk"),
        ("7979       0.000159 brk(NULL)           = 0x559dbd75c000 <0.000003>", 7979, "brk"),
        ("     0.000159 brk(NULL)           = 0x559dbd75c000 <0.000003>", None, "brk"),
        ("7984  1795411597.902596 [00007fae18b75ad7] brk(NULL) = 0x5", 7984, "brk"),
        ("3678  [  58] [00007fe44f9053b8] vfork( <unfinished ...>", 3678, "vfork"),
        ("7984 [????????????????] brk(NULL) = 0x5", 7984, "brk"),
        ("3855  1795456922.149544 (+     0.000000) brk(NULL) = 0x5", 3855, "brk"),
        ("1795456922 brk(NULL) = 0x5", None, "brk"),
        ("18:02:02 brk(NULL) = 0x5", None, "brk"),
        ("15827<u> exit_group(3)                  = ?", 15827, "exit_group"),
        (r"3800<a\76 brk(> getppid()               = 3797<strace>", 3800, "getppid"),
        ("3800<sp ace(1)> getppid()               = 3797<strace>", 3800, "getppid"),
        ("3800<a>b> getppid() = 3797", 3800, "getppid"),
        ("[pid 3800<sp ace(1)>] getppid() = 3797", 3800, "getppid"),
        ("15827<u> /* 3 in strace's PID NS */ getppid() = 1", 15827, "getppid"),
        ("15795 pause()                           = ? ERESTARTNOHAND (To be restarted)", 15795, "pause"),
        (r'15795 write(1, "\n\"(\1\377) = 0 +++ x +++\n\0", 22) = 22', 15795, "write"),
        ('15795 read(3, "truncated recor', 15795, "read"),
        ('15795 <... read resumed>"x", 8) = 1', 15795, "read"),
    ],
)
def test_one_line_is_one_call(line, pid, name):
    assert by_pid(line.encode() + b"\n")[0] == {pid: [[name]]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER} ---", strace.SIGNAL),
        ("7853  --- stopped by SIGSTOP ---", strace.SIGNAL),
        ("+++ killed by SIGSEGV (core dumped) +++", strace.EXIT),
        ("7904  [ 231] +++ exited with 0 +++", strace.EXIT),
        ("7973 +++ superseded by execve in pid 7974 +++", strace.EXIT),
        ("strace: Process 7974 attached", strace.MESSAGE),
        ("strace: Process 7974 attached with 3 threads", strace.MESSAGE),
        ("[ Process PID=7974 runs in 32 bit mode. ]", strace.MESSAGE),
        (" > /usr/lib/ld-linux-x86-64.so.2(_dl_catch_error+0x26f0) [0x1ab70]", strace.STACK),
        (", child_tidptr=0x7f6cc9f69a10) = 3876", strace.REST),
        ("7904 ????( <unfinished ...>", strace.NAMELESS),
        ("7904 <... ??? resumed>) = ?", strace.NAMELESS),
        ("hello, world", strace.NOT_A_CALL),
        ("7 +++ exited with 0 +++ and more", strace.NOT_A_CALL),
        ("main(argc) {", strace.NOT_A_CALL),
        ("", strace.BLANK),
    ],
)
def test_one_line_is_no_call(line, reason):
    found, counters = by_pid(line.encode() + b"\n")
    assert found == {} and counters.skipped == {reason: 1}


def test_calls_outside_the_table_become_unk_and_are_counted():
    found, counters = by_pid(b"1 syscall_0x270f(0x1, 0x2) = -1 ENOSYS (x)\n1 new_call(3 <unfinished ...>\n")
    assert found == {1: [["<unknown>", "<unknown>"]]}
    assert counters.unknown == {"syscall_0x270f": 1, "new_call": 1}


def test_messages_that_split_a_line_on_standard_error():
    data = b"""execve("/usr/bin/sh", ["sh"], 0x7f /* 9 vars */) = 0
clone(child_stack=NULL, flags=SIGCHLDstrace: Process 3876 attached
, child_tidptr=0x7f6cc9f69a10) = 3876
[pid  3875] vfork(strace: Process 3877 attached
 <unfinished ...>
[pid  3877] execve("/bin/true", ["true"], 0x55 /* 9 vars */ <unfinished ...>
[pid  3875] <... vfork resumed>)        = 3877
[pid  3877] <... execve resumed>)       = 0
[pid  3875] exit_group(0)               = ?
[pid  3875] +++ exited with 0 +++
[pid  3877] exit_group(0)               = ?
[pid  3877] +++ exited with 0 +++
getpid() = 3876
--- SIGCHLD {si_signo=SIGCHLD} ---
+++ exited with 0 +++
"""
    found, _ = by_pid(data)
    assert found == {
        3875: [["execve", "clone", "vfork", "exit_group"]],
        3877: [["execve", "exit_group"]],
        3876: [["getpid"]],
    }


def test_quiet_standard_error_tells_the_first_process_from_its_child():
    data = b"""execve("/usr/bin/sh", ["sh"], 0x7f /* 9 vars */) = 0
vfork( <unfinished ...>
[pid  3862] execve("/bin/true", ["true"], 0x55 /* 9 vars */ <unfinished ...>
[pid  3861] <... vfork resumed>)        = 3862
[pid  3862] <... execve resumed>)       = 0
[pid  3862] +++ exited with 0 +++
clone(child_stack=NULL, flags=SIGCHLD)  = 3863
[pid  3863] getpid()                    = 3863
[pid  3863] +++ exited with 0 +++
getppid()                               = 1
+++ exited with 0 +++
"""
    assert by_pid(data)[0] == {3861: [["execve", "vfork", "clone", "getppid"]], 3862: [["execve"]], 3863: [["getpid"]]}


def test_attaching_to_one_process_names_it():
    assert by_pid(b'strace: Process 77 attached\nread(3, "", 9) = 0\n')[0] == {77: [["read"]]}


def test_a_thread_that_calls_execve_takes_over_the_leader():
    data = b"""3882  clock_nanosleep(CLOCK_REALTIME, 0,  <unfinished ...>
3923  execve("/bin/true", ["true"], 0x7f /* 42 vars */ <unfinished ...>
3882  <... clock_nanosleep resumed> <unfinished ...>) = ?
3882  +++ superseded by execve in pid 3923 +++
3882  <... execve resumed>)             = 0
3882  brk(NULL)                         = 0x55
3882  +++ exited with 0 +++
"""
    traces, _ = read(data)
    assert [names(trace) for trace in traces] == [["clock_nanosleep"], ["execve", "brk"]]
    assert traces[1].command == "true"


def test_a_resumed_call_counts_only_where_its_beginning_is_missing():
    data = b"1 <... read resumed>) = 0\n1 write(1 <unfinished ...>\n1 <... write resumed>) = 1\n"
    data += b"1 read(0 <unfinished ...>\n2 <... read resumed>) = 0\n1 <... futex resumed>) = 0\n"
    assert by_pid(data)[0] == {1: [["read", "write", "read", "futex"]], 2: [["read"]]}


def test_a_call_that_never_ended_hides_no_later_one():
    assert by_pid(b"1 read(0 <unfinished ...>\n1 write(1) = 1\n1 <... read resumed>) = 0\n")[0] == {
        1: [["read", "write", "read"]]
    }
    data = b"[pid 1] clone(0strace: Process 5 attached\n, x) = 5\n[pid 1] <... clone resumed>) = 5\n"
    assert by_pid(data)[0] == {1: [["clone", "clone"]]}


def test_a_pid_that_comes_back_is_another_trace():
    data = b"5 read(0) = 0\n5 +++ exited with 0 +++\n5 write(1) = 1\n5 +++ killed by SIGKILL +++\n5 getpid() = 5\n"
    traces, _ = read(data)
    assert [names(t) for t in traces] == [["read"], ["write"], ["getpid"]]
    assert [t.id for t in traces] == ["run.strace:5", "run.strace:5#2", "run.strace:5#3"]


def test_the_file_name_tells_the_pid_with_ff():
    assert by_pid(b"read(0) = 0\n", "x.zip!out.4711")[0] == {4711: [["read"]]}
    assert by_pid(b"read(0) = 0\n", "out.4711.gz")[0] == {4711: [["read"]]}


def test_command_and_start_time():
    data = b"""7 1795411597.902596 execve("/no/ls", ["ls"], 0x7f) = -1 ENOENT (No such file or directory)
7 1795411597.902597 execve("/bin/\\"a b\\"", ["ls"], 0x7f) = 0 <0.000228>
7 1795411597.902598 execve("/bin/later", ["ls"], 0x7f) = 0
8<some one> 1795411598 getpid() = 8
9 execve("/bin/tried", ["ls"], 0x7f) = -1 ENOENT (No such file or directory)
"""
    traces, _ = read(data)
    assert [t.command for t in traces] == [r"\"a b\"", "some one", "tried"]
    assert [t.start_time for t in traces] == [1795411597.902596, 1795411598, None]


def test_finished_processes_are_given_at_once_and_take_no_memory():
    block = b"".join(b"%d getpid() = 1\n%d +++ exited with 0 +++\n" % (pid, pid) for pid in range(1, 1001))
    left = 40

    def more(size):
        nonlocal left
        left -= 1
        return block if left >= 0 else b""

    tracemalloc.start()
    try:
        source = Source("x", ByteStream(more))
        assert sum(1 for _ in strace.read(source, VOCABULARY, Options(), Counters())) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_too_many_processes_at_once_cut_the_oldest(monkeypatch):
    monkeypatch.setattr(strace, "MAX_LIVE", 3)
    traces, counters = read(b"".join(b"%d getpid() = 1\n" % pid for pid in range(10)))
    assert [t.pid for t in traces] == list(range(10)) and counters.skipped == {strace.CROWD: 7}


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    b"<... read resumed>",
                    b"[pid 1] ",
                    b"+++ exited with 0 +++",
                    b"strace: Process 3 attached",
                    b"1 ",
                    b"read(",
                    b" <unfinished ...>",
                    b"superseded by execve in pid 1 +++",
                    b"\n",
                    b"+++ ",
                    b") = 3",
                ]
            ),
        )
    )
)
def test_arbitrary_bytes_are_counted_and_never_raise(parts):
    data = b"".join(parts)
    found, counters = by_pid(data)
    resumed = data.count(b" resumed>")
    assert counters.lines <= counters.calls + counters.skipped.total() + resumed
    strace.recognises("x", data)


# ---------------------------------------------------------------- random recordings, rendered as strace does


HOSTILE = [
    "<unfinished ...>", " <unfinished ...>", ") = 0", "+++ exited with 0 +++", "--- SIGTERM {} ---", "[pid  77] read(",
    '", 3) = 7', "strace: Process 3 attached", "<... read resumed>", "\33[31mred\33[0m", "\n12 read(3) = 0\n", "]",
]  # fmt: skip


def quoted(text):
    """A string as strace prints it: quotes, backslashes and what is not printable are escaped."""
    escaped = (f"\\{c}" if c in '"\\' else c if " " <= c <= "~" else f"\\{ord(c) % 256:o}" for c in text)
    return '"' + "".join(escaped) + '"'


@dataclasses.dataclass(frozen=True)
class Form:
    """How a line is printed."""

    pid: str  # "column", "comm", "none", "stderr"
    stamp: str
    bracket: str
    duration: bool


forms = st.builds(
    Form,
    st.sampled_from(["column", "comm", "none", "stderr"]),
    st.sampled_from(
        ["", "05:26:37 ", "05:26:37.313095 ", "1795411597.902596 ", "     0.000159 ", "05:26:37 (+     0.1) "]
    ),
    st.sampled_from(["", "[  59] ", "[00007fae18b75ad7] ", "[  59] [00007fae18b75ad7] ", "[????????????????] "]),
    st.booleans(),
)
call_names = st.sampled_from(
    ["read", "write", "openat", "futex", "execve", "exit_group", "rt_sigprocmask", "epoll_pwait2"]
)
strings = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), min_size=1, max_size=3).map("".join)
events = st.tuples(st.integers(0, 3), st.sampled_from(["whole", "begin", "signal", "end"]), call_names, strings)


class Renderer:
    """Writes events of several processes as strace does, and keeps what a reader is to find."""

    def __init__(self, form):
        self.form, self.out = form, []
        self.alive, self.ended, self.pending = [100], set(), {}
        self.calls = collections.defaultdict(list)

    def line(self, pid, text):
        form = self.form
        prefix = {"column": f"{pid}  ", "comm": f"{pid}<a\\76 b (1)> ", "none": ""}.get(form.pid)
        if prefix is None:
            prefix = f"[pid {pid:5}] " if len(self.alive) > 1 else ""
        self.out.append(f"{prefix}{form.stamp}{form.bracket}{text}")

    def result(self, text):
        return f") {'= ' + text:>12}{' <0.000003>' if self.form.duration else ''}"

    def start(self, pid, glued):
        """Process 100 makes a child."""
        self.calls[100].append("vfork")
        if self.form.pid != "stderr":
            self.line(100, f"vfork({self.result(str(pid))}")
            self.alive.append(pid)
            return
        if glued:
            self.line(100, f"vfork(strace: Process {pid} attached")
            self.out.append(" <unfinished ...>")
            self.alive.append(pid)
            self.line(100, f"<... vfork resumed>{self.result(str(pid))}")
        else:
            self.line(100, f"vfork({self.result(str(pid))}")
            self.out.append(f"strace: Process {pid} attached")
            self.alive.append(pid)

    def finish_call(self, pid, string):
        if name := self.pending.pop(pid, None):
            self.line(pid, f"<... {name} resumed>{quoted(string)}, 8{self.result('0')}")

    def event(self, event, glued):
        number, kind, name, string = event
        pid = 100 if self.form.pid == "none" else 100 + number
        if pid in self.ended or 100 in self.ended:
            return
        if pid not in self.alive:
            self.finish_call(100, string)
            self.start(pid, glued)
        if kind == "signal":
            self.line(pid, f"--- SIGCHLD {{si_signo=SIGCHLD, si_x={quoted(string)}}} ---")
            return
        self.finish_call(pid, string)
        if kind == "end" and pid != 100:
            self.line(pid, "+++ exited with 0 +++" if glued else "+++ killed by SIGTERM +++")
            self.alive.remove(pid)
            self.ended.add(pid)
            return
        self.calls[pid].append(name)
        if kind == "begin":
            self.line(pid, f"{name}({quoted(string)},  <unfinished ...>")
            self.pending[pid] = name
        else:
            self.line(pid, f"{name}({quoted(string)}, 3{self.result('-1 ENOENT (No such file or directory)')}")


@settings(deadline=None, max_examples=200)
@given(forms, st.lists(st.tuples(events, st.booleans()), min_size=1, max_size=40))
def test_render_and_read_gives_the_same_calls(form, happened):
    renderer = Renderer(form)
    for event, glued in happened:
        renderer.event(event, glued)
    data = "\n".join(renderer.out).encode() + b"\n"
    found, counters = by_pid(data)
    expected = {pid: [calls] for pid, calls in renderer.calls.items() if calls}
    if form.pid in ("none", "stderr"):  # the first process's pid may never be told
        found = {100 if pid is None else pid: calls for pid, calls in found.items()}
    assert found == expected
    assert not counters.unknown and not set(counters.skipped) - strace.NOISE
    if expected:
        assert strace.recognises("x", data)


# ---------------------------------------------------------------- the real strace

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
SCRIPT = "/bin/true; ls /nowhere 2>&1; (exit 3); /bin/echo '<unfinished ...> +++ exited with 0 +++'; kill -TERM $$\n"


def traced(tmp_path, *options, to_file=True, script=SCRIPT):
    (tmp_path / "script").write_text(script)
    command = ["strace", *options, *(["-o", str(tmp_path / "out")] if to_file else []), "/bin/sh", tmp_path / "script"]
    run = subprocess.run(command, capture_output=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"})
    if b"ptrace" in run.stderr and b"not permitted" in run.stderr:
        pytest.skip("tracing is not permitted here")
    return run


def calls_of(paths):
    """The traces of some files, as (command, sorted call names), sorted.

    Not in order: a shell's SIGCHLD may reach it before or after its wait4, so its rt_sigreturn moves.
    """
    counters, found = Counters(), []
    for source in sources.open_sources([str(p) for p in paths], collections.Counter()):
        assert strace.recognises(source.name, source.head)
        traces = strace.read(source, VOCABULARY, Options(), counters)
        found += [(trace.command, sorted(names(trace))) for trace in traces]
    assert not counters.unknown
    return sorted(found), counters


@needs_strace
@pytest.mark.parametrize(
    "options",
    ["-ff", "-f -tt", "-f -ttt -T", "-f -r -y", "-f -n -i", "-f -n", "-f -i -yy", "-f -r -tt", "-f -v -s 9999"],
)
def test_all_forms_of_one_program_hold_the_same_calls(tmp_path, options):
    (tmp_path / "f").mkdir()
    traced(tmp_path / "f", "-f")
    expected, _ = calls_of([tmp_path / "f/out"])
    assert [command for command, _ in expected] == ["", "echo", "ls", "sh", "true"]
    traced(tmp_path, *options.split())
    found, counters = calls_of(sorted(tmp_path.glob("out*")))
    assert found == expected
    assert not set(counters.skipped) - strace.NOISE


@needs_strace
@pytest.mark.parametrize("options", ["-f", "-f -q", "-f -tt -T", "-f -n -i"])
def test_standard_error_holds_the_same_calls(tmp_path, options):
    (tmp_path / "f").mkdir()
    traced(tmp_path / "f", "-f")
    run = traced(tmp_path, *options.split(), to_file=False)
    (tmp_path / "err").write_bytes(run.stderr)
    assert calls_of([tmp_path / "err"])[0] == calls_of([tmp_path / "f/out"])[0]


@needs_strace
def test_counts_agree_with_straces_own_summary(tmp_path):
    traced(tmp_path, "-f", "-C", script="for i in 1 2 3; do ls -lR /etc/init.d | sort | wc -l; done\n")
    found, _ = calls_of([tmp_path / "out"])
    counted = collections.Counter(name for _, calls in found for name in calls)
    rows = re.findall(r"^ +[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", (tmp_path / "out").read_text(), re.M)
    summary = {name: int(times) for times, name in rows if name != "total"}
    del counted["exit_group"]  # it never returns, so strace does not count it
    assert len(summary) > 10 and counted == summary


@needs_strace
def test_hostile_file_names_change_no_count(tmp_path):
    (tmp_path / "plain").mkdir()
    script = "cat {0}/{1} > /dev/null; cat {0}/{1} 2> /dev/null; rm {0}/{1}\n"
    hostile = [
        "a <unfinished ...>",
        "b) = 0",
        "c +++ exited with 0 +++",
        '"; \x1b[31m\n12 read(3) = 0',
        "[pid 3] read(0",
    ]
    expected = None
    for name in ["plain", *hostile]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        traced(folder, "-f", "-y", script=script.format(folder, "'" + name + "'"))
        found, _ = calls_of([folder / "out"])
        expected = expected or found
        assert found == expected


@needs_strace
def test_killed_processes_and_pending_calls(tmp_path):
    traced(tmp_path, "-f", script="sleep 30 & sleep 0.2; kill -KILL $!; wait\n")
    found, counters = calls_of([tmp_path / "out"])
    sleeps = [calls for command, calls in found if command == "sleep"]
    assert sorted("exit_group" in calls for calls in sleeps) == [False, True]
    assert all("clock_nanosleep" in calls for calls in sleeps)
    assert not set(counters.skipped) - strace.NOISE


def test_sample_is_not_mistaken_for_another_format():
    assert not strace.recognises("x", b"     1.190 ( 0.023 ms): true/7989 brk()    = 0x55f7\n")
    assert not strace.recognises("x", b"4 2\n4 66\n") and not strace.recognises("x", b"")
    assert not strace.recognises("x", pathlib.Path(__file__).read_bytes()[:3000])


def test_calls_that_are_held_are_bounded(read, monkeypatch):
    monkeypatch.setattr(grouping, "MAX_HELD", 10_000)
    text = b"".join(b"%d read(3) = 0\n" % (i % 3 + 1) for i in range(60_000))
    traces, counters, _ = read("strace", text)
    assert counters.calls == 60_000 and len(traces) > 3
    assert counters.skipped[grouping.LONG] == len(traces) - 3


def test_what_is_known_of_the_names_is_made_once_for_all_files(read, monkeypatch):
    made = []
    init = strace_lines.Names.__init__
    monkeypatch.setattr(strace_lines.Names, "__init__", lambda names, found: (made.append(1), init(names, found))[1])
    for _ in range(20):
        read("strace", b"7 read(3) = 0\n")
    assert len(made) <= 1
