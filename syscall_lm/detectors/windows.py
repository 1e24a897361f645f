"""Windows of consecutive calls as numbers: what STIDE, n-gram models and phrase features share.

A window is numbered through its prefix: the number of k + 1 calls comes from the number of the first k and the call
that follows. That is exact for any length and any vocabulary, where packing calls into one integer is not, and every
step is one sorted search over all positions at once.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from syscall_lm.traces.trace import Sequences

PAD = np.int64(2**17 - 1)  # no call has this id
_BITS = 17


@dataclasses.dataclass(frozen=True)
class Text:
    """Traces back to back as int64 `[P]`, padded.

    Attributes:
      calls: ids, `PAD` where padded.
      lengths: int64 `[N]`, positions of each trace, padding included.
      remaining: int64 `[P]`, positions from here to the end of the trace, this one included.
    """

    calls: np.ndarray
    lengths: np.ndarray
    remaining: np.ndarray

    @classmethod
    def of(cls, traces: Sequences, before: int = 0, at_least: int = 1) -> "Text":
        """Lays out traces.

        Args:
          traces: N traces.
          before: padding in front of every trace.
          at_least: a trace shorter than this, with the padding in front of it, is filled up at its end.
        """
        lengths = np.maximum(traces.lengths + before, at_least)
        starts = np.cumsum(lengths) - lengths
        calls = np.full(lengths.sum(), PAD)
        shift = np.repeat(starts + before - traces.offsets[:-1], traces.lengths)
        calls[np.arange(len(traces.calls)) + shift] = traces.calls
        return cls(calls, lengths, np.repeat(starts + lengths, lengths) - np.arange(len(calls)))


class Windows:
    """The numbers of all windows of 1 to `longest` calls that a text holds.

    Args:
      text: what to learn from.
      longest: calls in the longest window.

    Attributes:
      parents: for each length 1 to `longest` an int64 array: the number of each window's prefix (0 for the empty one).
    """

    def __init__(self, text: Text, longest: int):
        self._known: list[np.ndarray] = []
        numbers = np.zeros(len(text.calls), np.int64)
        for length in range(1, longest + 1):
            pairs = _pairs(numbers, text, length)
            self._known.append(np.unique(pairs[pairs >= 0]))
            numbers = _find(pairs, self._known[-1])
        self.parents = [known >> _BITS for known in self._known]

    def numbers(self, text: Text) -> Iterator[np.ndarray]:
        """For each length 1 to `longest`: the number of the window that starts at each position, int64 `[P]`.

        It is -1 for a window that was never learned, and where the trace ends too soon for one.
        """
        numbers = np.zeros(len(text.calls), np.int64)
        for length, known in enumerate(self._known, start=1):
            numbers = _find(_pairs(numbers, text, length), known)
            yield numbers


def _pairs(prefixes: np.ndarray, text: Text, length: int) -> np.ndarray:
    """Joins the number of each window's prefix with its last call; -1 where either is missing."""
    last = np.roll(text.calls, 1 - length)
    return np.where((prefixes < 0) | (text.remaining < length), -1, (prefixes << _BITS) | last)


def _find(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The position of each pair among the known ones, -1 for another."""
    if not len(known):
        return np.full(len(pairs), -1, np.int64)
    position = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    return np.where(known[position] == pairs, position, -1)
