"""Clusters of normal traces: the distance to the nearest centre."""

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import Features
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class Clusters(Detector):
    """The distance to the nearest of k means of normal traces, found by Lloyd's algorithm (Kim et al., eq. 6).

      h(x; k) = min_{i=1..k} d(f(x), mu_i),    d Euclidean

    Args:
      features: f; `fit` fits it.
      clusters: k; 1 gave the paper's best figures (section 3.2).
      seed: of the first centres; with k = 1 nothing is random.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, features: Features, clusters: int = 1, seed: int = 0, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        if clusters < 1:
            raise SyscallLMError(f"clusters={clusters}: must be at least 1")
        self.features, self.clusters, self.seed = features, clusters, seed

    def _fit(self, normal: Sequences) -> None:
        from sklearn.cluster import KMeans  # slow to load

        vectors = self.features.fit(normal).transform(normal)
        distinct = len(normal.distinct()[0])  # KMeans warns when it is asked for more centres than points
        clusters = min(self.clusters, distinct)
        means = KMeans(clusters, algorithm="lloyd", n_init=10, random_state=self.seed)  # type: ignore[arg-type]
        self._means = means.fit(vectors)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """A distance, float64 `[N]`."""
        if not len(traces):
            return np.zeros(0)
        return np.asarray(self._means.transform(self.features.transform(traces)).min(axis=1), np.float64)
