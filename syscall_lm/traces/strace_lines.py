"""Many lines of strace at once: finds the usual ones with array operations, and what they say.

A usual line is `[PID ][TIME ]NAME(...` or `[PID ][TIME ]<... NAME resumed>...` with a known name. All others are for
`readers/strace.py`, whose regular expression is the definition: on a usual line it finds the same pid and name.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

CALL, UNFINISHED, RESUMED = 0, 1, 2
NO_PID = 0

_LONGEST = 24  # bytes of a name, three words
_LONGEST_TIME = 24
_FRONT, _BACK = 16, 40  # bytes around the text, so that reading over a line's end reads something
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # keep the first n bytes of a word
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_IN_TIME = np.isin(np.arange(256), list(b"0123456789:."))


def _word(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text, "little"))


_HALVES, _DIGITS, _TO_NINE = (_word(bytes([byte]) * 8) for byte in (0xF0, 0x30, 0x06))
_RESUMES, _IS_RESUMED = _word(b"<... "), _word(b" resumed")
_UNFINISHED = _word(b"<unfinis"), _word(b"hed ...>")
_ATTACHED = _word(b"attached")


@dataclasses.dataclass(frozen=True)
class Lines:
    """What N lines say.

    Attributes:
      usual: bool `[N]`; the rest holds for these only.
      pid: uint64 `[N]`, a key of the pid's digits (see `pid_text`), `NO_PID` without one.
      name: int64 `[N]`, a position in `Names.names`.
      kind: int8 `[N]`, `CALL`, `UNFINISHED` or `RESUMED`.
    """

    usual: np.ndarray
    pid: np.ndarray
    name: np.ndarray
    kind: np.ndarray


def pid_text(key: int) -> bytes | None:
    """The digits that a key stands for."""
    return key.to_bytes(8, "little").rstrip(b"\0") or None


class Names:
    """The names that are known.

    Args:
      names: of calls.

    Attributes:
      names: those that can be found here; lines with others are not usual.
    """

    def __init__(self, names: Iterable[bytes]):
        found: dict[int, bytes] = {}
        for name in names:
            if len(name) <= _LONGEST:
                found.setdefault(int(_mix(_words(name))), name)
        self._hashes = np.array(sorted(found), np.uint64)
        self.names = [found[number] for number in sorted(found)]
        self._words = np.array([_words(name) for name in self.names], np.uint64).reshape(-1, 3)

    def read(self, lines: Sequence[bytes]) -> Lines:
        """What lines (without their ends) say, in a few operations on all of them."""
        lengths = np.fromiter(map(len, lines), np.int64, len(lines))
        text = b"".join((bytes(_FRONT), b"\n".join(lines), b"\n", bytes(_BACK)))
        octets = np.frombuffer(text, np.uint8)
        words = np.ndarray(len(text) - 7, "<u8", text, 0, (1,))  # the eight bytes from each position on
        starts = _FRONT + np.cumsum(lengths + 1) - lengths - 1
        ends = starts + lengths
        last = len(text) - _BACK
        spaces = np.append(np.flatnonzero(octets == ord(" ")), last)
        parentheses = np.append(np.flatnonzero(octets == ord("(")), last)

        # The pid: up to seven digits and a space, which `-o` pads to six columns.
        space = spaces[np.searchsorted(spaces, starts)]
        size = np.clip(space - starts, 0, 8)
        mask = _MASKS[size]
        pid = words[starts] & mask
        digits = _DIGITS & mask
        has_pid = (pid & _HALVES == digits) & ((pid + (_TO_NINE & mask)) & _HALVES == digits) & (size > 0) & (size < 8)
        pid = np.where(has_pid, pid, NO_PID)
        padded = has_pid & (octets[np.minimum(space + 1, last)] == ord(" "))
        after = np.where(has_pid, np.where(padded, np.minimum(starts + 6, ends), space + 1), starts)
        usual = ~padded
        if padded.any():  # between pid and column six there must be spaces only: as many as there are bytes
            between = np.searchsorted(spaces, after) - np.searchsorted(spaces, space)
            usual |= (between == after - space) & (size < 5)

        # The time: digits, colons and points, and one space.
        timed = (octets[after] >= ord("0")) & (octets[after] <= ord("9"))
        space = np.minimum(spaces[np.searchsorted(spaces, after)], ends)
        size = np.where(timed, space - after, 0)
        usual &= size <= _LONGEST_TIME
        width = min(int(size.max(initial=0)), _LONGEST_TIME)
        column = np.arange(width)
        usual &= (_IN_TIME[octets[after[:, None] + column]] | (column >= size[:, None])).all(axis=1)
        token = np.where(timed, np.minimum(space + 1, ends), after)

        # The name, and what kind of line it is.
        resumed = words[token] & _MASKS[5] == _RESUMES
        begin = np.where(resumed, token + 5, token)
        end = np.where(
            resumed, spaces[np.searchsorted(spaces, begin)], parentheses[np.searchsorted(parentheses, begin)]
        )
        usual &= ~resumed | ((words[end] == _IS_RESUMED) & (octets[end + 8] == ord(">")))
        size = end - begin
        usual &= (end < ends) & (size <= _LONGEST)
        size = np.clip(size, 0, _LONGEST)
        found = np.stack([words[begin + 8 * i] & _MASKS[np.clip(size - 8 * i, 0, 8)] for i in range(3)], axis=1)
        name = np.minimum(np.searchsorted(self._hashes, _mix(found)), len(self.names) - 1)
        usual &= (self._words[name] == found).all(axis=1)
        unfinished = (words[ends - 16] == _UNFINISHED[0]) & (words[ends - 8] == _UNFINISHED[1])
        usual &= ~((words[ends - 8] == _ATTACHED) & (octets[ends - 9] == ord(" ")))  # a message within the line
        usual &= ~(resumed & unfinished)
        kind = np.where(resumed, RESUMED, np.where(unfinished, UNFINISHED, CALL)).astype(np.int8)
        return Lines(usual, pid, name, kind)


def _words(name: bytes) -> np.ndarray:
    return np.frombuffer(name.ljust(_LONGEST, b"\0"), "<u8").astype(np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    return (words * _MIX).sum(axis=-1, dtype=np.uint64)
