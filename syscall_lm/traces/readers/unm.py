"""UNM's sequences: lines of "PID CALL"; a trace is one contiguous run of one PID within a file.

Forrest et al., "A sense of self for Unix processes", IEEE S&P 1996; Warrender et al., IEEE S&P 1999. The numbers mean
what a mapping file says, which differs by program and system. The lpr data of SunOS 4.1.4 comes in two numberings:

  A  a number is a position in the mapping, from zero. Traces begin with open, read, mmap = 4 2 66.
  B  a number is SunOS's own: position + 1, so those three are 5 3 67; 0 is a call that the recorder did not know, and a
     final 1 is exit, which A leaves out. Where the mapping has a name twice (stat at 17 and 37, fstat at 27 and 58), A
     uses the first and B the second (38 and 59, where A has 17 and 27): B's number is read as the first, so that a name
     means the same call under both.

A trace of one is foreign to a model of the other in every window, for no reason that has to do with an intrusion. So a
file that contradicts the numbering is refused.
"""

import re
from collections.abc import Iterator

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import grouping, numbers
from syscall_lm.traces.grouping import Naming
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

DESCRIPTION = 'UNM: lines of "PID CALL", with a mapping file'
EXPLAINED_BY = ("mapping", "numbering")

NOT_A_PAIR, BLANK = "not a pair of numbers", "empty line"
NOISE = frozenset({BLANK})

NUMBERINGS = ["A", "B"]
_LOADER = {4: "open", 2: "read", 66: "mmap"}  # SunOS 4's dynamic loader; a number is a position in its mapping
_BEGINNINGS = {"A": tuple(_LOADER), "B": tuple(number + 1 for number in _LOADER)}
_PAIR = re.compile(rb"[ \t]*0*\d{1,9}[ \t]+0*\d{1,9}[ \t]*", re.ASCII)


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are pairs of numbers."""
    del name
    head_lines = [line.rstrip(b"\r") for line in head.split(b"\n")[:200]]
    if len(head_lines) > 1:
        head_lines.pop()  # may be cut
    head_lines = [line for line in head_lines if line.strip()]
    pairs = sum(_PAIR.fullmatch(line) is not None for line in head_lines)
    return pairs > 0 and pairs >= 0.9 * len(head_lines)


def vocabulary(options: Options) -> Vocabulary:
    """The names of the mapping file.

    Raises:
      SyscallLMError: there is none, or it cannot be read.
    """
    if not options.mapping:
        raise SyscallLMError(
            "UNM's numbers need their list of call names (for lpr: syscallMap.txt); name it by --mapping"
        )
    return Vocabulary.from_mapping_file(options.mapping)


def numbering(options: Options) -> str:
    """A or B; A unless the options say otherwise.

    Raises:
      SyscallLMError: it is neither.
    """
    if options.numbering not in ["", *NUMBERINGS]:
        raise SyscallLMError(f"--numbering={options.numbering}: expected A (from zero) or B (SunOS's own numbers)")
    return options.numbering or "A"


def number_table(vocabulary: Vocabulary, numbering: str) -> np.ndarray:
    """What each number means.

    Args:
      vocabulary: of the mapping file.
      numbering: "A" or "B".

    Returns:
      uint16 `[k]`: the id of call number i.
    """
    if numbering == "A":
        return np.arange(len(vocabulary.names), dtype=np.uint16)
    firsts = [vocabulary.ids.get(name.partition("#")[0], i) for i, name in enumerate(vocabulary.names)]
    return np.array([vocabulary.unk, *firsts], np.uint16)


def read(source: Source, vocabulary: Vocabulary, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file, in order.

    Args:
      source: the file.
      vocabulary: of the mapping file.
      options: the numbering; label, family, split and host are handed to the traces.
      counters: is filled.

    Raises:
      SyscallLMError: the file's traces begin as those of the other numbering do.
    """
    runs = _Runs(source, vocabulary, options, counters)
    for block in line_blocks(source.stream, counters):
        values = _pairs(block, counters)
        values = values[numbers.drop_large(values[:, 1], counters)]
        if len(values) == 0:
            continue
        starts = np.flatnonzero(np.diff(values[:, 0], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
            yield from runs.extend(int(values[start, 0]), values[start:end, 1])
    yield from runs.finish()


def _pairs(block: list[bytes], counters: Counters) -> np.ndarray:
    """int64 `[n, 2]`: the lines that are pairs; the others are counted as skipped."""
    text = b"\n".join(block)
    if _all_pairs(text):
        found = numbers.integers(text)[0]
        if len(found) == 2 * len(block):  # none had too many digits
            return found.reshape(-1, 2)
    pairs = list(filter(_PAIR.fullmatch, block))
    if len(pairs) < len(block):
        blank = sum(not line.strip() for line in block)
        counters.skipped[BLANK] += blank
        counters.skipped[NOT_A_PAIR] += len(block) - len(pairs) - blank
    return numbers.integers(b"\n".join(pairs))[0].reshape(-1, 2)


def _all_pairs(text: bytes) -> bool:
    """Whether each line is two numbers and blanks, found for all lines together."""
    if text.translate(None, numbers.DIGITS + b" \t\n"):
        return False
    characters = np.frombuffer(text + b"\n", np.uint8)
    digit = characters > ord(" ")
    starts = np.flatnonzero(digit & ~np.append(False, digit[:-1]))
    ends = np.flatnonzero(characters == ord("\n"))
    if len(starts) != 2 * len(ends):
        return False
    return bool((starts[1::2] < ends).all() and (ends[:-1] < starts[2::2]).all())


class _Runs:
    """Joins the runs that a block of lines cuts, and makes traces of them."""

    def __init__(self, source: Source, vocabulary: Vocabulary, options: Options, counters: Counters):
        self._source, self._vocabulary, self._options, self._counters = source, vocabulary, options, counters
        self._numbering = numbering(options)
        self._table = number_table(vocabulary, self._numbering)
        self._pid: int | None = None
        self._parts: list[np.ndarray] = []  # its calls' ids
        self._held = 0
        self._beginning: tuple[int, ...] = ()
        self._naming = Naming(source.name)
        self._evidence: dict[str, int] = dict.fromkeys(NUMBERINGS, 0)
        # Under another mapping these numbers are other calls, and tell nothing.
        self._telling = all(vocabulary.name(number) == name for number, name in _LOADER.items())

    def extend(self, pid: int, found: np.ndarray) -> Iterator[Trace]:
        """Takes calls of one PID; yields the trace that another PID ends."""
        if pid != self._pid:
            yield from self.finish()
            self._pid = pid
        elif self._held > grouping.MAX_HELD:
            self._counters.skipped[grouping.LONG] += 1
            yield from self.finish()
            self._pid = pid
        self._beginning = (*self._beginning, *found[:3].tolist())[:3]
        self._parts.append(numbers.encode(found, self._table, self._vocabulary, self._counters))
        self._held += len(found)

    def finish(self) -> Iterator[Trace]:
        """The trace that was being read."""
        if self._pid is None:
            return
        calls, pid, beginning = np.concatenate(self._parts), self._pid, self._beginning
        self._pid, self._parts, self._held, self._beginning = None, [], 0, ()
        if self._telling:
            self._weigh(beginning)
        self._counters.traces += 1
        self._counters.calls += len(calls)
        options = self._options
        yield Trace(
            calls=calls,
            id=self._naming(str(pid)),
            source=self._source.name,
            pid=pid,
            host=options.host,
            label=options.label,
            family=options.family,
            split=options.split,
        )

    def _weigh(self, beginning: tuple[int, ...]) -> None:
        for which, expected in _BEGINNINGS.items():
            self._evidence[which] += beginning == expected
        other = "B" if self._numbering == "A" else "A"
        if self._evidence[other] > self._evidence[self._numbering]:
            shown = " ".join(map(str, beginning))
            raise SyscallLMError(
                f"{self._source.name}: a trace begins with {shown}, which is open, read, mmap in numbering {other}, "
                f"but it is read in numbering {self._numbering}; give --numbering={other}, and never mix the two"
            )
