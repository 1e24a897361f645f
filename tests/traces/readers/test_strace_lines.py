"""Reading many lines at once gives what reading them one by one gives."""

import dataclasses
import io
import pathlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.traces import strace_lines
from syscall_lm.traces.readers import Counters, Options, strace
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream

VOCABULARY = strace.vocabulary(Options())
PIDS = [
    "",
    "7 ",
    "7     ",
    "123   ",
    "12345 ",
    "123456 ",
    "1234567 ",
    "12345678 ",
    "007 ",
    "[pid 7] ",
    " 7 ",
    "7<sh> ",
    "8 ",
]
TIMES = [
    "",
    "",
    "1716999134.000010 ",
    "12:30:01 ",
    "12:30:01.5 ",
    "0.000159 ",
    "5 ",
    "1  ",
    ". ",
    "1x ",
    "9" * 30 + " ",
]
NAMES = [
    "read",
    "write",
    "execve",
    "clone",
    "vfork",
    "exit_group",
    "set_mempolicy_home_node",
    "no_such_call",
    "",
    "r ead",
]
BODIES = [
    "{}(3, 0x1) = 0", "{}(3) = 5 <0.000010>", "{}( <unfinished ...>", "<... {} resumed>) = 0", "{}(0 <unfinished ...>",
    "<... {} resumed> <unfinished ...>", "{}", "{}()", "{}(\"a (b) \\\" resumed>\") = -1 E (x)",
    "<... {}>", "<... {} resumed",
    "{}(1)\r", "{}(strace: Process 9 attached", "+++ exited with 0 +++", "--- SIGCHLD {{x}} ---",
    ", 1) = 0", "{}(\"\0\xff\")",
    "<... ? resumed> = ?", "????( <unfinished ...>", "{}\x85(1) = 2", "<unfinished ...>", " attached", "",
]  # fmt: skip
lines = st.builds(
    lambda pid, time, name, body: pid + time + body.format(name),
    *map(st.sampled_from, (PIDS, TIMES, NAMES, BODIES)),
)


def read(data, many, few=4):
    counters = Counters()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strace, "_MANY", many)
        patch.setattr(strace, "_FEW", few)
        source = Source("run.strace", ByteStream(io.BytesIO(data).read))
        traces = [
            dataclasses.asdict(trace) | {"calls": trace.calls.tolist()}
            for trace in strace.read(source, VOCABULARY, Options(), counters)
        ]
    return traces, counters


def assert_same(data):
    expected = read(data, 10**9)
    for many, few in ((1, 10**9), (1, 1), (3, 2)):
        assert read(data, many, few) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, min_size=1, max_size=40))
def test_unusual_and_broken_lines_among_usual_ones(chosen):
    assert_same("\n".join(chosen).encode("latin-1"))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), lines.map(str.encode)), max_size=10), st.integers(0, 255))
def test_any_bytes(parts, between):
    assert_same(bytes([between]).join(parts))


def test_a_process_whose_pid_only_some_lines_tell():
    assert_same(b"7 read(3) = 0\nread(3) = 0\n7 read(3) = 0\nwrite(3) = 0\nread(3) = 0")


@pytest.mark.parametrize(
    "line", ["1     1716999134.000010 read(3) = 1", "22    <... read resumed>) = 1", "4194304 read("]
)
def test_a_capture_that_was_cut_off_anywhere(line):
    for size in range(len(line)):
        assert_same(line[:size].encode())
        assert_same(f"{line}\n{line[:size]}".encode())


def test_long_captures_of_many_processes():
    rng = random.Random(0)
    for usual in (0.9, 0.999):
        text = []
        for _ in range(6_000):
            pid = rng.choice(["1     ", "22    ", "333   ", "55555 ", "4194304 "])
            time = rng.choice(["", "1716999134.000010 "])
            if rng.random() < usual:
                body = rng.choice(BODIES[:5]).format(rng.choice(["read", "write", "set_mempolicy_home_node"]))
            else:
                body = rng.choice(BODIES).format(rng.choice(NAMES))
            text.append(pid + time + body)
        assert_same("\n".join(text).encode("latin-1"))


def test_seeds_and_findings_of_the_fuzzer():
    folder = pathlib.Path(__file__).parents[2] / "fuzz" / "regressions"
    for path in folder.iterdir():
        assert_same(path.read_bytes())


def test_the_usual_forms_are_usual():
    names = strace_lines.Names([name.encode() for name in VOCABULARY.names])
    forms = [
        (b"7 read(0) = 0", b"7", strace_lines.CALL), (b"123   1.5 read(0) = 0", b"123", strace_lines.CALL),
        (b"read(0, ", None, strace_lines.CALL), (b"12:30:01.5 read() = 0", None, strace_lines.CALL),
        (b"12345 1716999134.000010 read(0 <unfinished ...>", b"12345", strace_lines.UNFINISHED),
        (b"12345 <... read resumed>) = 0 <0.1>", b"12345", strace_lines.RESUMED),
    ]  # fmt: skip
    told = names.read([form for form, _, _ in forms])
    assert told.usual.all()
    assert [strace_lines.pid_text(int(key)) for key in told.pid] == [pid for _, pid, _ in forms]
    assert told.kind.tolist() == [kind for _, _, kind in forms]
    assert {names.names[name] for name in told.name} == {b"read"}
