"""The interface that all detectors share; it follows PyOD's conventions."""

import abc
import math
from typing import Self

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class Detector(abc.ABC):
    """Turns a trace into one number; higher is more abnormal.

    A subclass implements `_fit` and `decision_function`.

    Args:
      false_alarm_rate: the share of normal traces that `predict` may call abnormal.

    Attributes:
      needs_held_out: whether the scores themselves, and not only the threshold, rest on held-out traces: then `fit`
        wants some that it does not learn from.
      threshold_: after `fit`, the score above which a trace is abnormal.
    """

    needs_held_out = False
    threshold_: float

    def __init__(self, false_alarm_rate: float = 0.01):
        self.false_alarm_rate = false_alarm_rate

    def fit(self, normal: Sequences, held_out: Sequences | None = None) -> Self:
        """Learns from normal traces.

        Args:
          normal: what to learn from.
          held_out: normal traces for the threshold; without them the training traces serve, which makes it too low.

        Raises:
          SyscallLMError: no traces.
        """
        self._require_some(normal)
        self._fit(normal)
        calibration = held_out if held_out is not None and len(held_out) else normal
        self.threshold_ = conformal_threshold(self.decision_function(calibration), self.false_alarm_rate)
        return self

    def learn(self, normal: Sequences) -> Self:
        """As `fit`, for those who want scores only: the training traces are not scored for a threshold.

        Raises:
          SyscallLMError: no traces.
        """
        if self.needs_held_out:
            return self.fit(normal)
        self._require_some(normal)
        self._fit(normal)
        return self

    def _require_some(self, normal: Sequences) -> None:
        if not len(normal):
            raise SyscallLMError(f"{type(self).__name__}: cannot learn from zero traces")

    @abc.abstractmethod
    def _fit(self, normal: Sequences) -> None: ...

    @abc.abstractmethod
    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Anomaly scores, float64 `[N]`."""

    def predict(self, traces: Sequences) -> np.ndarray:
        """1 for abnormal, 0 for normal, int64 `[N]` (Kim et al., eq. 2).

        Raises:
          SyscallLMError: there is no threshold yet.
        """
        if not hasattr(self, "threshold_"):
            raise SyscallLMError(f"{type(self).__name__}: fit it before it judges")
        return (self.decision_function(traces) > self.threshold_).astype(np.int64)


def conformal_threshold(normal_scores: np.ndarray, false_alarm_rate: float) -> float:
    """The threshold that a new normal trace exceeds with at most the given probability.

    With n scores of held-out normal traces, exchangeable with new ones, it is the ceil((n + 1)(1 - rate))-th smallest
    (split conformal prediction, Papadopoulos et al. 2002). With fewer than 1/rate - 1 traces no score can promise the
    rate; then it is the largest score (see `traces_needed`).

    Raises:
      SyscallLMError: no scores, or a rate outside (0, 1).
    """
    _require_rate(false_alarm_rate)
    if not len(normal_scores):
        raise SyscallLMError("a threshold needs the scores of at least one held-out normal trace")
    rank = math.ceil((len(normal_scores) + 1) * (1 - false_alarm_rate) - 1e-9)
    return float(np.sort(normal_scores)[min(rank, len(normal_scores)) - 1])


def traces_needed(false_alarm_rate: float) -> int:
    """How many held-out normal traces `conformal_threshold` needs to keep its promise.

    Raises:
      SyscallLMError: a rate outside (0, 1).
    """
    _require_rate(false_alarm_rate)
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1


def _require_rate(false_alarm_rate: float) -> None:
    if not 1e-12 <= false_alarm_rate < 1:
        raise SyscallLMError(f"--far={false_alarm_rate}: a false alarm rate lies between 0 and 1")
