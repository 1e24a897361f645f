"""STIDE and t-STIDE: windows of calls that normal traces never, or hardly ever, showed."""

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.windows import Text, Windows
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

RARE = 1e-5  # 0.001 %, Warrender et al. 1999
FRAME = 20  # windows in a locality frame, Warrender et al. 1999


class Stide(Detector):
    """Sequence time-delay embedding (Forrest et al. 1996).

    A window of k calls mismatches if normal traces never showed it. With `rare` above zero it also mismatches if its
    share of all training windows is below `rare`: t-STIDE (Warrender et al. 1999). The score of a trace
    with mismatches m_1 ... m_n, each 0 or 1, is

      sum_i m_i / n                          without `frame`: the share of mismatches
      max_i (m_(i-f+1) + ... + m_i)          with `frame` f: the locality frame count (Warrender et al. 1999),
                                             which a long normal part does not dilute

    A trace shorter than the window is one window, padded at its end.

    Args:
      window: k; 6 is customary (Forrest et al. 1996).
      rare: windows with a smaller share of the training windows mismatch; 0 is STIDE, `RARE` is t-STIDE.
      frame: windows in a locality frame, or None for none.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, window: int = 6, rare: float = 0.0, frame: int | None = None, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        if window < 1 or not 0 <= rare < 1 or (frame is not None and frame < 1):
            raise SyscallLMError(f"STIDE cannot use window={window}, rare={rare}, frame={frame}")
        self.window, self.rare, self.frame = window, rare, frame

    def _fit(self, normal: Sequences) -> None:
        text = Text.of(normal, at_least=self.window)
        self._windows = Windows(text, self.window)
        numbers = self._numbers(text)
        counts = np.bincount(numbers[numbers >= 0])
        self._common = counts >= self.rare * counts.sum()

    def _numbers(self, text: Text) -> np.ndarray:
        *_, numbers = self._windows.numbers(text)
        return numbers

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """The share of mismatches (0 to 1), or the largest number in a frame, float64 `[N]`."""
        if not len(traces):
            return np.zeros(0)
        mismatches, windows = self.mismatches(traces)
        if self.frame is None:
            starts = np.cumsum(windows) - windows
            return np.add.reduceat(mismatches, starts, dtype=np.float64) / windows
        return locality_frame_counts(mismatches, windows, self.frame).astype(np.float64)

    def mismatches(self, traces: Sequences) -> tuple[np.ndarray, np.ndarray]:
        """Which windows mismatch.

        Returns:
          bool `[windows]`, all traces' windows in order; int64 `[N]`, the windows of each trace.
        """
        text = Text.of(traces, at_least=self.window)
        numbers = self._numbers(text)[text.remaining >= self.window]
        return ~np.append(self._common, False)[numbers], text.lengths - self.window + 1  # -1 reads the last: unseen


def locality_frame_counts(mismatches: np.ndarray, windows: np.ndarray, frame: int) -> np.ndarray:
    """The largest number of mismatches among any `frame` consecutive windows of each trace.

    Args:
      mismatches: bool `[sum(windows)]`, all traces' windows in order.
      windows: int64 `[N]`, at least 1 each.
      frame: windows in a frame; a shorter trace is one frame.

    Returns:
      int64 `[N]`.
    """
    total = np.concatenate([[0], np.cumsum(mismatches, dtype=np.int64)])
    starts = np.cumsum(windows) - windows
    end = np.arange(1, len(total))
    begin = np.maximum(end - frame, np.repeat(starts, windows))
    return np.maximum.reduceat(total[end] - total[begin], starts)
