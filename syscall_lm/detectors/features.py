"""Traces as vectors of one length: what the distance-based detectors measure distances between."""

from typing import Protocol, Self

import numpy as np
import scipy.sparse

from syscall_lm.traces.trace import Sequences

Matrix = np.ndarray | scipy.sparse.csr_array


class Features(Protocol):
    """Turns traces into vectors."""

    def fit(self, normal: Sequences) -> Self:
        """Learns what it needs from normal traces."""
        ...

    def transform(self, traces: Sequences) -> Matrix:
        """One row a trace, `[N, F]`."""
        ...


class StateSource(Protocol):
    """What has read a whole trace and holds a state then: a trained language model."""

    def final_states(self, traces: Sequences) -> np.ndarray:
        """The state after each trace, `[N, H]`."""
        ...


class FinalState:
    """lstm(x): the last layer's h after all calls of a trace (Kim et al., section 2.3; see `Scorer.final_states`).

    Args:
      source: a trained language model.
    """

    def __init__(self, source: StateSource):
        self._source = source

    def fit(self, normal: Sequences) -> Self:
        """Nothing to learn: the model is trained."""
        del normal
        return self

    def transform(self, traces: Sequences) -> np.ndarray:
        """float32 `[N, H]`."""
        return self._source.final_states(traces)


def call_counts(traces: Sequences, vocabulary_size: int) -> scipy.sparse.csr_array:
    """How often each call occurs in each trace, float64 `[N, V]`, sparse."""
    rows = np.repeat(np.arange(len(traces), dtype=np.int32), traces.lengths)  # scikit-learn's k-means wants 32 bits
    where = (rows, traces.calls.astype(np.int32))
    return scipy.sparse.csr_array((np.ones(len(traces.calls)), where), shape=(len(traces), vocabulary_size))


class Frequency:
    """Normalised frequency: f_j = (how often call j occurs) / (calls of the trace) (Xie et al. 2014).

    Args:
      vocabulary_size: V.
    """

    def __init__(self, vocabulary_size: int):
        self._size = vocabulary_size

    def fit(self, normal: Sequences) -> Self:
        """Nothing to learn."""
        del normal
        return self

    def transform(self, traces: Sequences) -> scipy.sparse.csr_array:
        """`[N, V]`, rows sum to one."""
        counts = call_counts(traces, self._size)
        return counts.multiply(1 / traces.lengths[:, None]).tocsr()


class TfIdf:
    """Term frequency times inverse document frequency, a call as a word, a trace as a document (Liao & Vemuri 2002).

    a_j = f_j (ln((1 + N) / (1 + n_j)) + 1), scaled to unit length, where n_j of N normal traces hold call j. The ones
    are scikit-learn's smoothing: Liao and Vemuri's own ln(N / n_j) is not defined for a call that normal traces never
    made, which they declare an intrusion outright.

    Args:
      vocabulary_size: V.
    """

    def __init__(self, vocabulary_size: int):
        from sklearn.feature_extraction.text import TfidfTransformer  # slow to load

        self._size = vocabulary_size
        self._transformer = TfidfTransformer(norm="l2", smooth_idf=True)

    def fit(self, normal: Sequences) -> Self:
        """Counts the traces that hold each call."""
        self._transformer.fit(call_counts(normal, self._size))
        return self

    def transform(self, traces: Sequences) -> scipy.sparse.csr_array:
        """`[N, V]`, rows of unit Euclidean length."""
        return scipy.sparse.csr_array(self._transformer.transform(call_counts(traces, self._size)))
