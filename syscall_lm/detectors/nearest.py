"""Nearest neighbours among normal traces: the radius that covers k of them, or how many lie within a radius."""

from typing import TYPE_CHECKING, Any

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import Features, Matrix
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 11  # Kim et al., section 3.2


def _search(vectors: Matrix, **options: Any) -> "NearestNeighbors":
    from sklearn.neighbors import NearestNeighbors  # slow to load

    return NearestNeighbors(**options).fit(vectors)


class Nearest(Detector):
    """The radius that covers the k nearest normal traces (Kim et al., eq. 4).

      g(x; k) = min r  such that  sum_{y in T} [d(f(x), f(y)) <= r] >= k

    With `average` the mean distance to those k instead: with cosine distances, one minus the average similarity by
    which Liao and Vemuri (2002) decide, with k = 10 in their best experiment.

    Args:
      features: f; `fit` fits it.
      neighbours: k; all normal traces, if there are fewer.
      metric: "euclidean" (Kim et al.) or "cosine" (Liao & Vemuri).
      average: see above.
      false_alarm_rate: see `Detector`.
    """

    def __init__(
        self,
        features: Features,
        neighbours: int = NEIGHBOURS,
        metric: str = "euclidean",
        average: bool = False,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if neighbours < 1:
            raise SyscallLMError(f"neighbours={neighbours}: must be at least 1")
        self.features, self.neighbours, self.metric, self.average = features, neighbours, metric, average

    def _fit(self, normal: Sequences) -> None:
        vectors = self.features.fit(normal).transform(normal)
        self._search = _search(vectors, n_neighbors=min(self.neighbours, len(normal)), metric=self.metric)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """A distance, float64 `[N]`. A training trace counts itself among its neighbours, as eq. 4 has it."""
        if not len(traces):
            return np.zeros(0)
        distances, _ = self._search.kneighbors(self.features.transform(traces))
        return np.asarray(distances.mean(axis=1) if self.average else distances[:, -1], np.float64)


class WithinRadius(Detector):
    """The share of normal traces that lie farther away than a radius (Kim et al., eq. 5).

      g(x; r) = 1 - 1/|T| sum_{y in T} [d(f(x), f(y)) <= r],    d Euclidean

    The paper does not say how it chose r. Here normal traces choose it: r is the median, over training traces, of the
    distance to the k-th nearest other training trace, so that half of them have k neighbours within r.

    Args:
      features: f; `fit` fits it.
      radius: r, or None to choose it.
      neighbours: k, for choosing r.
      false_alarm_rate: see `Detector`.

    Attributes:
      radius_: r, after `fit`.
    """

    def __init__(
        self,
        features: Features,
        radius: float | None = None,
        neighbours: int = NEIGHBOURS,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if neighbours < 1 or (radius is not None and not radius >= 0):
            raise SyscallLMError(f"radius={radius}, neighbours={neighbours}: must be at least 0, and at least 1")
        self.features, self.radius, self.neighbours = features, radius, neighbours

    def _fit(self, normal: Sequences) -> None:
        vectors = self.features.fit(normal).transform(normal)
        self._search = _search(vectors, metric="euclidean")
        self._normal = len(normal)
        if self.radius is not None:
            self.radius_ = self.radius
        elif len(normal) == 1:
            self.radius_ = 0.0
        else:  # without an argument, kneighbors leaves each trace itself out
            distances, _ = self._search.kneighbors(n_neighbors=min(self.neighbours, len(normal) - 1))
            self.radius_ = float(np.median(distances[:, -1]))

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """A share, 0 to 1, float64 `[N]`."""
        if not len(traces):
            return np.zeros(0)
        near = self._search.radius_neighbors(self.features.transform(traces), self.radius_, return_distance=False)
        return 1 - np.array([len(indices) for indices in near]) / self._normal
