"""Which calls a trace makes at all, whatever their order and number: distance to the nearest training trace's set."""

from collections.abc import Iterator

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import call_counts
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

_ROWS = 2048  # traces, or training sets, at a time


class CallSets(Detector):
    """One minus the similarity of a trace's set of calls to the most similar training trace's set.

    With X the calls that occur in the trace, Y those of a training trace, and w(S) the weight of the calls in S,

      score = 1 - max_Y  w(X and Y) / (w(X and Y) + extra w(X without Y) + w(Y without X))

    which is Tversky's ratio model (Tversky 1977; extra = 1 is Jaccard's index), with inverse document
    frequencies as weights (Sparck Jones 1972): w_j = (ln((1 + n) / (1 + n_j)) + 0.1)^2, where n_j of the n training
    traces hold call j. As each distinct call counts once, a recording that lost calls, or whose threads interleave,
    keeps its score where n-grams are torn apart. With a small `extra`, a trace is normal if it makes all the calls that
    set some training trace apart; what else it does hardly matters. An attacker can therefore buy a low score with one
    whole normal trace: the detector is meant to stand beside others.

    Args:
      vocabulary_size: V.
      extra: what a call that the training trace lacks costs, in relation to one that the trace lacks.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, vocabulary_size: int, extra: float = 0.1, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        if vocabulary_size < 1 or extra < 0:
            raise SyscallLMError(f"call sets cannot have {vocabulary_size} calls, extra={extra}")
        self.vocabulary_size, self.extra = vocabulary_size, extra

    def _fit(self, normal: Sequences) -> None:
        holding = np.zeros(self.vocabulary_size)
        packed = []
        for occurs in self._sets(normal):
            holding += occurs.sum(axis=0)
            packed.append(np.unique(np.packbits(occurs, axis=1), axis=0))
        self._weights = np.square(np.log((1 + len(normal)) / (1 + holding)) + 0.1)
        self._known = np.unique(np.concatenate(packed), axis=0)  # a bit a call

    def _sets(self, traces: Sequences) -> Iterator[np.ndarray]:
        """Whether each call occurs in each trace, bool `[_ROWS or fewer, V]`."""
        for start in range(0, len(traces), _ROWS):
            some = traces.take(np.arange(start, min(start + _ROWS, len(traces))))
            yield call_counts(some, self.vocabulary_size).toarray() > 0

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """0 (a training trace's set) to 1 (nothing in common), float64 `[N]`."""
        scores = [np.zeros(0)]
        for occurs in self._sets(traces):
            own = occurs * self._weights
            highest = np.zeros(len(own))
            for start in range(0, len(self._known), _ROWS):
                known = np.unpackbits(self._known[start : start + _ROWS], axis=1, count=self.vocabulary_size)
                both = own @ known.T
                known_only = known @ self._weights - both
                similarity = both / (both + self.extra * (own.sum(axis=1, keepdims=True) - both) + known_only)
                highest = np.maximum(highest, similarity.max(axis=1))
            scores.append(1 - highest)
        return np.maximum(np.concatenate(scores), 0)
