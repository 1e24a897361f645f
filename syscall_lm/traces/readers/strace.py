"""strace's text output: one thread is one trace, one call counts once, at the line that opens it.

Read are `-f` (a column of pids), `-ff` (FILE.PID), `-o` and the form on standard error (`[pid 7974]`), with any of
`-t -tt -ttt -r -T -n -i -k -y -yy --decode-pids`. What a traced process can write (file names, arguments, its own name)
stands inside a line, where strace escapes line ends; so a marker counts only where strace itself puts it, at the
beginning or the end of a line, and no name can add or hide a call.

Checked against strace 6.1; see tests/traces/readers/test_strace.py.
"""

import array
import collections
import functools
import itertools
import re
from collections.abc import Iterator

import numpy as np

from syscall_lm.traces import grouping, strace_lines
from syscall_lm.traces.grouping import CROWD, LONG, Naming
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

DESCRIPTION = "strace's output, with or without -f, -ff, -o, -t, -tt, -ttt, -r, -T, -n, -i, -k, -y, --decode-pids"

SIGNAL, EXIT, MESSAGE, STACK, REST = "signal", "exit line", "strace message", "stack trace", "rest of a split line"
NOT_A_CALL, NAMELESS = "not a call", "call without a name"
BLANK = "empty line"
NOISE = frozenset({SIGNAL, EXIT, MESSAGE, STACK, REST, BLANK})

MAX_LIVE = 2**16  # processes that run at once; beyond, the first to appear is taken to have ended

_PREFIX = (
    rb" *(?:(?:\[pid +)?(\d{1,7})(?:<.{0,80}?>)?(?: /\* \d+ in strace's PID NS \*/)?\]? +)?"  # -f, --decode-pids
    rb"(?:\d[\d:.]* +)?(?:\(\+ +[\d.]+\) +)?"  # -t, -tt, -ttt, -r; -r beside another
    rb"(?:\[(?!pid )[^\]]{1,64}\] )*"  # -n, -i, --secontext
)
_CALL = re.compile(_PREFIX + rb"(?:([A-Za-z_]\w{0,63})\(|<\.\.\. ([A-Za-z_]\w{0,63}|\?+) resumed>)", re.DOTALL)
_EXIT = re.compile(_PREFIX + rb"\+\+\+ (?:exited with|killed by|superseded by execve in pid (\d{1,7})).* \+\+\+$")
_SIGNAL = re.compile(_PREFIX + rb"(?:--- .* ---|\+\+\+ .* \+\+\+)$", re.DOTALL)
_NAMELESS = re.compile(_PREFIX + rb"\?+\(")
_MESSAGE = re.compile(_PREFIX + rb"(?:strace: |\[ Process PID=)")
_ATTACHED = re.compile(rb"strace: Process (\d{1,7}) attached(?: with \d+ threads)?$")
_REST = re.compile(rb"(?:, .*)?(?: <unfinished \.\.\.>$|\)\s+= )", re.DOTALL)
_RESULT = re.compile(rb"\)\s+= (?:\?|-?\d|0x)")
_CHILD = re.compile(rb"\)\s+= (\d{1,7})(?:<.*>)?(?: <[\d.]+>)?$")
_SUCCESS = re.compile(rb"\)\s+= 0(?: <[\d.]+>)?$")
_PROGRAM = re.compile(rb'"((?:[^"\\]|\\.){0,4096})"', re.DOTALL)
_FIRST_LINE = re.compile(
    rb" *(?:(?:\[pid +)?\d{1,7}(?:<(.{0,80}?)>)?(?: /\*.{0,40}\*/)?\]? +)?(?:(\d{9,11}(?:\.\d{1,9})?) )?"
)
_FILE_PID = re.compile(r"\.(\d{1,7})(?:\.(?:gz|bz2|xz|zst|zstd))?$")

_PROGRAM_CALLS = [b"execve", b"execveat"]
_CHILD_CALLS = [b"clone", b"clone3", b"fork", b"vfork"]

_MANY = 16  # usual lines in a row that are worth reading at once
_FEW = 4  # new processes among them

_OPEN_END = (b"<unfinished ...>", b" attached")  # the second: a message that strace printed into the line
_UNNAMED = b""  # the key of the first process in the form on standard error, until a line tells its pid


def recognises(name: str, head: bytes) -> bool:
    """Whether some lines are complete strace lines, and not few of them."""
    del name
    head_lines = [line.rstrip(b"\r") for line in head.split(b"\n")[:200] if line.strip()]
    calls = sum(bool(_CALL.match(line) and (_RESULT.search(line) or line.endswith(_OPEN_END))) for line in head_lines)
    others = sum(bool(_EXIT.match(line) or _SIGNAL.match(line) or _ATTACHED.match(line)) for line in head_lines)
    return calls + others > 0 and calls + others >= len(head_lines) / 4


def vocabulary(options: Options) -> Vocabulary:
    """The whole table of the ABI."""
    return Vocabulary.from_abi(options.abi)


def read(source: Source, vocabulary: Vocabulary, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its process ends, the rest at the end of the file.

    Args:
      source: the file; `-ff` tells the pid in its name.
      vocabulary: the calls' ids; a name outside it becomes UNK.
      options: label, family, split and host are handed to the traces.
      counters: is filled.
    """
    reader = _Reader(source, vocabulary, options, counters)
    for block in line_blocks(source.stream, counters):
        yield from reader.read(block)
        yield from reader.processes.hold(len(block))
    yield from reader.processes.finish_all()


@functools.lru_cache(maxsize=8)
def _known(vocabulary: Vocabulary) -> "_Known":
    return _Known(vocabulary)  # once: an archive may hold a million files


class _Known:
    """What is known of the calls' names."""

    def __init__(self, vocabulary: Vocabulary):
        self.ids = ids = {name.encode(): number for name, number in vocabulary.ids.items()}
        self.program_calls = {ids.get(name, -1) for name in _PROGRAM_CALLS}
        self.special = self.program_calls | {ids.get(name, -1) for name in _CHILD_CALLS}
        self.names = strace_lines.Names(ids)
        names = self.names.names
        self.name_ids = np.array([ids[name] for name in names], np.uint16)
        self.unusual = np.isin(names, _PROGRAM_CALLS)  # they tell more than a call
        self.unusual_alone = self.unusual | np.isin(names, _CHILD_CALLS)  # without a pid


class _Reader:
    """Reads lines: one by one, or many usual ones at once, which gives the same."""

    def __init__(self, source: Source, vocabulary: Vocabulary, options: Options, counters: Counters):
        self.processes = _Processes(source, options, counters)
        self._counters, self._unk = counters, vocabulary.unk
        known = _known(vocabulary)
        self._ids, self._names, self._name_ids = known.ids, known.names, known.name_ids
        self._program_calls, self._special = known.program_calls, known.special
        self._unusual, self._unusual_alone = known.unusual, known.unusual_alone

    def read(self, block: list[bytes]) -> Iterator[Trace]:
        """Reads some lines; yields the traces that end in them."""
        if len(block) < _MANY:
            yield from self._one_by_one(block)
            return
        told = self._names.read(block)
        alone = told.pid == strace_lines.NO_PID
        usual = told.usual & ~np.where(alone, self._unusual_alone[told.name], self._unusual[told.name])
        edges = np.flatnonzero(np.diff(usual, prepend=False, append=False)).reshape(-1, 2)
        done = 0
        for start, end in edges[edges[:, 1] - edges[:, 0] >= _MANY].tolist():
            yield from self._one_by_one(block[done:start])
            done = start
            for _ in range(_FEW):
                stop = self._at_once(told, done, end)
                done = min(stop + 1, end)
                yield from self._one_by_one(block[stop:done])  # the first line of a process
                if done == end:
                    break
        yield from self._one_by_one(block[done:])

    def _at_once(self, told: strace_lines.Lines, start: int, end: int) -> int:
        """Takes usual lines up to the first of an unknown process; returns where that is."""
        live, names = self.processes.live, self._names.names
        keys, first, group = np.unique(told.pid[start:end], return_index=True, return_inverse=True)
        processes = [live.get(strace_lines.pid_text(int(key))) for key in keys]
        unknown = [int(place) for place, process in zip(first, processes, strict=True) if process is None]
        end = start + min(unknown, default=end - start)
        group = group[: end - start]
        if keys[0] == strace_lines.NO_PID and processes[0] in processes[1:]:  # whose lines sometimes tell its pid
            group = np.where(group == 0, processes.index(processes[0], 1), group)
        order = np.argsort(group, kind="stable")
        name, kind = told.name[start:end][order], told.kind[start:end][order]
        calls = self._name_ids[name]
        # A call that was unfinished is resumed, and has been counted.
        ends_call = (
            (kind[1:] == strace_lines.RESUMED) & (kind[:-1] == strace_lines.UNFINISHED) & (name[1:] == name[:-1])
        )
        counts = np.append(True, ~ends_call)
        high = 0
        for process, size in zip(processes, np.bincount(group, minlength=len(keys)).tolist(), strict=True):
            if process is None or size == 0:
                continue
            low, high = high, high + size
            began, last = process.pending, kind[high - 1] == strace_lines.UNFINISHED
            counts[low] = kind[low] != strace_lines.RESUMED or began != names[name[low]]
            process.calls.frombytes(calls[low:high][counts[low:high]].tobytes())
            process.pending = names[name[high - 1]] if last else None
        return end

    def _one_by_one(self, lines: list[bytes]) -> Iterator[Trace]:
        """Reads lines of every kind: what this finds is what a line says."""
        processes, counters = self.processes, self._counters
        live, match, find_id, unk = processes.live, _CALL.match, self._ids.get, self._unk
        for line in lines:
            found = match(line)
            if found is None:
                yield from processes.read_other(line)
                continue
            pid, name, resumed = found.groups()
            process = live.get(pid)
            if process is None:
                process = processes.find(pid, line, resumed)
                yield from processes.overdue()
            if name is None:
                began, process.pending = process.pending, None
                if began == resumed:
                    if line.endswith(_OPEN_END):
                        process.pending = resumed
                    elif resumed == b"execve":
                        process.confirm_program(line)
                    continue
                if resumed.startswith(b"?"):
                    counters.skipped[NAMELESS] += 1
                    continue
                name = resumed  # it began before the recording did
            call = find_id(name)
            if call is None:
                if not (resumed or _RESULT.search(line) or line.endswith(_OPEN_END)):
                    counters.skipped[NOT_A_CALL] += 1
                    continue
                counters.count_unknown(name.decode())
                call = unk
            elif call in self._special:
                if call in self._program_calls:
                    process.note_program(line)
                elif pid is None:
                    processes.note_child(line)
            process.append(call)
            if line.endswith(_OPEN_END):
                process.pending = name
                if line.endswith(b" attached"):
                    processes.attach(line, process)
            else:
                process.pending = None


class _Process:
    """A thread whose trace is being gathered."""

    __slots__ = ("append", "calls", "command", "number", "pending", "pid", "start_time", "sure")

    def __init__(self, pid: bytes, number: int, first_line: bytes):
        self.pid = pid
        self.number = number  # order of appearance
        self.calls = array.array("H")
        self.append = self.calls.append
        self.pending: bytes | None = None  # the call whose end is outstanding
        self.command = ""
        self.sure = False  # whether the command's execve succeeded
        self.start_time: float | None = None
        found = _FIRST_LINE.match(first_line)
        if found:
            self.command = _text(found[1] or b"")
            self.start_time = float(found[2]) if found[2] else None

    def note_program(self, line: bytes) -> None:
        """Takes the program's name from an execve, until one is seen to succeed."""
        if not self.sure and (found := _PROGRAM.search(line)):
            self.command = _text(found[1].rpartition(b"/")[2])
            self.confirm_program(line)

    def confirm_program(self, line: bytes) -> None:
        """Keeps the name if the execve that this line ends succeeded."""
        self.sure = self.sure or _SUCCESS.search(line[-80:]) is not None


class _Processes:
    """Whose line it is: the processes that run, by pid, and the one that a line without a pid belongs to.

    On standard error strace names the pid only while several processes run. So a line without one belongs to the only
    process that runs, whose pid is unknown until a line tells it.
    """

    def __init__(self, source: Source, options: Options, counters: Counters):
        self.live: dict[bytes | None, _Process] = {}  # None: whose lines without a pid are, as far as is known
        # Ordered, since the first is asked for again and again: a dict finds it only behind all that were removed.
        self._running: collections.OrderedDict[bytes, _Process] = collections.OrderedDict()
        self._silent: collections.OrderedDict[bytes, None] = collections.OrderedDict()  # announced, no line yet
        self._split: _Process | None = None  # whose call a message interrupted
        self._naming = Naming(source.name)  # a pid that comes back is another process
        self._number, self._held = 0, 0
        self._source, self._options, self._counters = source, options, counters
        file_pid = _FILE_PID.search(source.name)
        self._file_pid = int(file_pid[1]) if file_pid else None

    def find(self, pid: bytes | None, line: bytes, resumed: bytes | None = None) -> _Process:
        """The process that a call's line belongs to, a new one if need be."""
        self.live.pop(None, None)
        process = self._alone() if pid is None else self._named(pid, resumed)
        if process is None:
            key = pid if pid is not None else next(iter(self._silent), _UNNAMED)
            self._silent.pop(key, None)
            process = self._running[key] = _Process(key, self._number, line)
            self._number += 1
        if process.pid != _UNNAMED:
            self.live[process.pid] = process
        if pid is None:
            self.live[None] = process
        return process

    def _alone(self) -> _Process | None:
        """Whose a line without a pid is; None if its process has no trace yet."""
        if _UNNAMED in self._running:
            return self._running[_UNNAMED]
        return next(iter(self._running.values()), None)  # several only where the recording lost their ends

    def _named(self, pid: bytes, resumed: bytes | None) -> _Process | None:
        if pid in self._running:
            return self._running[pid]
        first = self._running.get(_UNNAMED)
        if first is None or pid in self._silent or (first.pending and first.pending != resumed):
            return None  # a child: announced, or it speaks while the first process is within a call
        del self._running[_UNNAMED]
        first.pid = pid
        self._running[pid] = first
        return first

    def attach(self, line: bytes, interrupted: _Process | None = None) -> None:
        """Notes a process that a message announces."""
        self._split = interrupted or self._split
        found = _ATTACHED.search(line)
        if found and found[1] not in self._running and len(self._silent) < MAX_LIVE:
            self._silent[found[1]] = None
            self.live.pop(None, None)

    def note_child(self, line: bytes) -> None:
        """Notes the child that a clone or fork returns."""
        found = _CHILD.search(line[-200:])
        if found and found[1] not in self._running and len(self._silent) < MAX_LIVE:
            self._silent[found[1]] = None

    def overdue(self) -> Iterator[Trace]:
        """The process that appeared first, if too many run."""
        if len(self._running) > MAX_LIVE:
            self._counters.skipped[CROWD] += 1
            yield from self._finish(next(iter(self._running)))

    def hold(self, lines: int) -> Iterator[Trace]:
        """The processes that appeared first, if too many calls are held after so many lines more."""
        self._held += lines
        if self._held > grouping.MAX_HELD:
            self._held = sum(len(process.calls) for process in self._running.values())
            while self._held > grouping.MAX_HELD // 2:
                key, first = next(iter(self._running.items()))
                self._held -= len(first.calls)
                self._counters.skipped[LONG] += 1
                yield from self._finish(key)

    def read_other(self, line: bytes) -> Iterator[Trace]:
        """Reads a line that holds no call, and says why it was not used."""
        skipped = self._counters.skipped
        if found := _EXIT.match(line):
            skipped[EXIT] += 1
            yield from self._end(found[1], found[2])
        elif _SIGNAL.match(line):
            skipped[SIGNAL] += 1
        elif _MESSAGE.match(line):
            skipped[MESSAGE] += 1
            self.attach(line)
        elif line.startswith(b" > "):
            skipped[STACK] += 1
        elif _REST.match(line) or (self._split and (_RESULT.search(line) or line.endswith(_OPEN_END))):
            skipped[REST] += 1
            if self._split is not None and not line.endswith(_OPEN_END):
                self._split.pending = None
            self._split = None
        elif _NAMELESS.match(line):
            skipped[NAMELESS] += 1
        elif not line.strip():
            skipped[BLANK] += 1
        else:
            skipped[NOT_A_CALL] += 1

    def _end(self, pid: bytes | None, by: bytes | None) -> Iterator[Trace]:
        """A process ends; if thread `by` called execve, it goes on under this pid."""
        if pid is None:
            others = list(itertools.islice((key for key in self._running if key != by), 2))
            pid = _UNNAMED if _UNNAMED in self._running else others[0] if len(others) == 1 else None
            if pid is None:
                only = self._alone()
                pid = only.pid if only else next(iter(self._silent), _UNNAMED)
        elif pid not in self._running and pid not in self._silent:
            self._named(pid, None)
        self._silent.pop(pid, None)
        yield from self._finish(pid)
        if by is not None and by in self._running:
            thread = self._running.pop(by)
            self.live.pop(by, None)
            self.live.pop(None, None)
            if pid != _UNNAMED:
                thread.pid = pid
            self._running[thread.pid] = self.live[thread.pid] = thread

    def _finish(self, key: bytes) -> Iterator[Trace]:
        process = self._running.pop(key, None)
        self.live.pop(key, None)
        self.live.pop(None, None)
        if self._split is process:
            self._split = None
        if process is None or not process.calls:
            return
        pid = int(key) if key else self._file_pid
        self._counters.traces += 1
        self._counters.calls += len(process.calls)
        options = self._options
        yield Trace(
            calls=np.array(process.calls, np.uint16),
            id=self._naming(str(pid) if key else ""),
            source=self._source.name,
            pid=pid,
            command=process.command,
            host=options.host,
            start_time=process.start_time,
            label=options.label,
            family=options.family,
            split=options.split,
        )

    def finish_all(self) -> Iterator[Trace]:
        """The traces whose end was not recorded, in the order in which they began."""
        for process in sorted(self._running.values(), key=lambda process: process.number):
            yield from self._finish(process.pid)


def _text(name: bytes) -> str:
    return name[:256].decode("utf-8", "replace")
