"""STIDE: sequence time-delay embedding (Forrest et al. 1996; Warrender et al. 1999)."""

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.traces.trace import Sequences


class Stide(Detector):
    """Scores a trace by the share of its windows that normal traces never showed.

    A trace shorter than the window is one window, padded at its end.

    Args:
      window: calls in a window; 6 is customary (Forrest et al. 1996).
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, window: int = 6, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        self.window = window

    def _fit(self, normal: Sequences) -> None:
        # Windows are numbered through their prefixes: the number of a window of k + 1 calls comes from the number of
        # its first k and the last call. That is exact for any length and any vocabulary, where packing calls into one
        # integer is not.
        self._levels: list[np.ndarray] = []
        calls, _ = _padded(normal, self.window)
        codes = calls
        for level in range(1, self.window):
            pairs = _pairs(codes, calls, level)
            known = np.unique(pairs[pairs >= 0])
            self._levels.append(known)
            codes = _number(pairs, known)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """The share of unseen windows, `[N]`, 0 to 1."""
        unseen, lengths = self.mismatches(traces)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return np.add.reduceat(unseen, starts, dtype=np.float64) / lengths

    def mismatches(self, traces: Sequences) -> tuple[np.ndarray, np.ndarray]:
        """Which windows were never seen.

        Returns:
          bool `[windows]`, all traces' windows in order; int64 `[N]`, the windows of each trace.
        """
        calls, lengths = _padded(traces, self.window)
        codes = calls
        for level, known in enumerate(self._levels, start=1):
            codes = _number(_pairs(codes, calls, level), known)
        windows = lengths - self.window + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        within = np.arange(len(calls)) - np.repeat(starts, lengths) < np.repeat(windows, lengths)
        return codes[within] < 0, windows


_PAD = np.int64(2**17 - 1)
_BITS = 17


def _padded(traces: Sequences, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Calls as int64, traces shorter than the window filled up; and the lengths."""
    lengths = np.maximum(traces.lengths, window)
    if (lengths == traces.lengths).all():
        return traces.calls.astype(np.int64), lengths
    calls = np.full(lengths.sum(), _PAD)
    starts = np.cumsum(lengths) - lengths
    calls[np.arange(len(traces.calls)) + np.repeat(starts - traces.offsets[:-1], traces.lengths)] = traces.calls
    return calls, lengths


def _pairs(codes: np.ndarray, calls: np.ndarray, level: int) -> np.ndarray:
    """Joins each window's number with the call that follows it; -1 where either is missing."""
    following = np.full(len(calls), -1, np.int64)
    following[: len(calls) - level] = calls[level:]
    return np.where((codes < 0) | (following < 0), -1, (codes << _BITS) | following)


def _number(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The position of each pair among the known ones, -1 for an unseen one."""
    position = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    return np.where(known[position] == pairs, position, -1)
