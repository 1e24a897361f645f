"""Evidence: several views of how surprising a trace is, as a vector, for detectors that learn from labelled traces."""

from typing import Self

import numpy as np

from syscall_lm.detectors.agreement import FLOOR, Agreement
from syscall_lm.detectors.call_sets import CallSets
from syscall_lm.detectors.mixture import RAREST, ContextMixture, mixed
from syscall_lm.detectors.sections import Stretch, stretch_means
from syscall_lm.traces.trace import Sequences

CALMEST, HIGHEST = 150, 20  # calls
QUANTILES = (0.25, 0.9)


class Evidence:
    """The score of `sets-and-mixture`, and twelve views of what the experts of its mixture say.

    Four sources give every call a surprisal: the n-gram models of order 1 and of order 8, the lag of the mixture that
    expected the call least, and the mixture itself. Three statistics make a number of a trace's surprisals: the highest
    mean of 20 consecutive calls, the lower quartile, and the 90 % quantile; of each, ln(0.05 + x) is given. An evenly
    surprising trace and one in which a few calls are torn from their contexts have the same mean, but differ here.

    Args:
      vocabulary_size: V.
    """

    def __init__(self, vocabulary_size: int):
        self._sets, self._mixture = CallSets(vocabulary_size), ContextMixture(vocabulary_size)
        self._agreement = sets_and_mixture(vocabulary_size)

    def fit(self, normal: Sequences) -> Self:
        """Learns from normal traces."""
        self._sets.learn(normal)
        self._mixture.learn(normal)
        self._agreement.calibrate(normal)
        return self

    def transform(self, traces: Sequences) -> np.ndarray:
        """float64 `[N, 13]`: deviations above the average unseen normal program, then the views, source by source."""
        probabilities, orders = self._mixture.probabilities(traces), self._mixture.orders
        together = mixed(probabilities, traces, self._mixture.share)
        members = [self._sets.decision_function(traces), stretch_means(together, traces, "calmest", CALMEST)]
        columns = [self._agreement.lowest(np.array(members))]
        given = [probabilities[orders.index(order)] for order in (1, 8)]
        given.append(probabilities[len(orders) :].min(axis=0))
        alone = (-np.log(np.maximum(probability.astype(np.float64), RAREST)) for probability in given)
        for surprisal in (*alone, together.astype(np.float64)):
            views = [stretch_means(surprisal, traces, "highest", HIGHEST)]
            views += [quantiles(surprisal, traces, share) for share in QUANTILES]
            columns += [np.log(view + FLOOR) for view in views]
        return np.column_stack(columns)


def sets_and_mixture(vocabulary_size: int) -> Agreement:
    """The agreement of call sets and the calmest stretch under the context mixture (results/kim2017/STUDY.md)."""
    return Agreement(
        [
            lambda: CallSets(vocabulary_size),
            lambda: Stretch(ContextMixture(vocabulary_size), "calmest", CALMEST),
        ]
    )


def quantiles(surprisal: np.ndarray, traces: Sequences, share: float) -> np.ndarray:
    """The surprisal below which a share (0 to below 1) of each trace's calls lies, `[total]` to `[N]`."""
    ordered = surprisal[np.lexsort((surprisal, np.repeat(np.arange(len(traces)), traces.lengths)))]
    return ordered[traces.offsets[:-1] + (share * traces.lengths).astype(np.int64)]
