"""Several detectors that must agree: a trace is as abnormal as the detector that knows it best says."""

from collections.abc import Callable, Sequence

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import call_counts
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

FLOOR = 0.05  # added to a score before its logarithm, so that differences among entirely normal traces do not matter


class Agreement(Detector):
    """The lowest of several members' standardised scores.

    With f_m the members' scores, not negative,

      score = min_m (ln(f_m + 0.05) - mean_m) / deviation_m

    where mean_m and deviation_m are those of ln(f_m + 0.05) on *programs that member m has not seen*. These come from
    the training traces alone: they are clustered into pseudo-programs (`pseudo_programs`), and each tenth of these is
    scored by a member that learned from the others. The lowest score alarms only when every member does, as the
    unanimous vote of an ensemble, and as the rule "min" of combining classifiers (Kittler et al. 1998) on
    calibrated scores: a normal program that training never saw need be familiar in one respect only. What one member
    can be talked into, all are: it is as open to padding as the weakest member.

    Args:
      members: make unfitted detectors.
      folds: into how many parts pseudo-programs are dealt.
      at_most: training traces, spread evenly, that calibration looks at; clustering takes the square of it.
      false_alarm_rate: see `Detector`.
    """

    def __init__(
        self,
        members: Sequence[Callable[[], Detector]],
        folds: int = 10,
        at_most: int = 2000,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if not members or folds < 2 or at_most < 2:
            raise SyscallLMError(f"an agreement cannot have {len(members)} members, folds={folds}, at_most={at_most}")
        self.members, self.folds, self.at_most = tuple(members), folds, at_most

    def _fit(self, normal: Sequences) -> None:
        self._fitted = [make().learn(normal) for make in self.members]
        self.calibrate(normal)

    def calibrate(self, normal: Sequences) -> None:
        """Finds what `lowest` standardises by, and nothing else that `fit` does."""
        every = -(-len(normal) // self.at_most)
        sample = normal.take(np.arange(0, len(normal), every))
        fold = pseudo_programs(sample) % self.folds
        self._means, self._deviations = np.zeros(len(self.members)), np.ones(len(self.members))
        if len(np.unique(fold)) < 2:
            return  # a single program: nothing tells how an unseen one scores
        for number, make in enumerate(self.members):
            unseen = np.empty(len(sample))
            for k in np.unique(fold):
                unseen[fold == k] = make().learn(sample.take(fold != k)).decision_function(sample.take(fold == k))
            logarithms = np.log(unseen + FLOOR)
            self._means[number], self._deviations[number] = logarithms.mean(), max(logarithms.std(), 1e-6)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Deviations above the average unseen normal program, float64 `[N]`."""
        return self.lowest(np.array([member.decision_function(traces) for member in self._fitted]))

    def lowest(self, scores: np.ndarray) -> np.ndarray:
        """The same of the members' scores `[M, N]`, for those who have members of their own."""
        return ((np.log(scores + FLOOR) - self._means[:, None]) / self._deviations[:, None]).min(axis=0)


def pseudo_programs(traces: Sequences, distance: float = 0.4) -> np.ndarray:
    """Clusters of traces that make the same calls about as often: what stands in for programs where no name is known.

    Average linkage of the Hellinger distance, sqrt(sum_j (sqrt p_j - sqrt q_j)^2), between frequencies of calls.

    Args:
      traces: N traces; takes N^2 memory.
      distance: clusters join up to this average distance; it ranges from 0 to sqrt 2.

    Returns:
      int64 `[N]`, cluster numbers from 0.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to load

    if len(traces) < 2:
        return np.zeros(len(traces), np.int64)
    counts = call_counts(traces, int(traces.calls.max()) + 1).toarray()
    tree = linkage(np.sqrt(counts / traces.lengths[:, None]), "average")
    return fcluster(tree, distance, "distance").astype(np.int64) - 1
