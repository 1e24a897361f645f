"""The extreme learning machine: phrases by counting, the readout by its equation, and determinism."""

import collections

import numpy as np
import pytest

from syscall_lm.detectors.extreme_learning import ExtremeLearning, Phrases
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


@pytest.fixture(scope="module")
def normal():
    rng = np.random.default_rng(0)
    return Sequences.from_list([np.cumsum(rng.choice([1, 2], n)) % 7 for n in rng.integers(2, 60, 25)])


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(1)
    return Sequences.from_list([rng.choice(9, n) for n in (1, 2, 5, 40, 80)])


def phrases_of(calls, length):
    return collections.Counter(tuple(calls[i : i + length]) for i in range(len(calls) - length + 1))


def test_phrases_are_counted_per_length(normal, queries):
    longest, least = 3, 4
    seen = {n: sum((phrases_of(calls.tolist(), n) for calls in normal), collections.Counter()) for n in (1, 2, 3)}
    frequent = {phrase for n in seen for phrase, count in seen[n].items() if count >= least}
    phrases = Phrases(longest, least).fit(normal)
    assert phrases.features == len(frequent) + longest
    rows = phrases.transform(queries).toarray()
    for calls, row in zip(queries, rows, strict=True):
        expected = []
        for n in range(1, min(longest, len(calls)) + 1):
            counts = phrases_of(calls.tolist(), n)
            known = [count for phrase, count in counts.items() if phrase in frequent]
            expected += [count / counts.total() for count in [*known, counts.total() - sum(known)] if count]
        expected = np.sort(expected) / np.linalg.norm(expected)
        np.testing.assert_allclose(np.sort(row[row > 0]), expected, rtol=1e-12)


def test_the_readout_minimises_the_penalised_error(normal):
    detector = ExtremeLearning(3, 2, hidden=12, ridge=0.01, seed=5).fit(normal)
    x = detector.phrases.transform(normal)
    h = detector._activations(x)
    # The gradient of |X - H beta|^2 + ridge N |beta|^2 vanishes.
    gradient = h.T @ (h @ detector._readout - x.toarray()) + 0.01 * len(normal) * detector._readout
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    errors = np.linalg.norm(x.toarray() - h @ detector._readout, axis=1)
    np.testing.assert_allclose(detector.decision_function(normal), errors, rtol=1e-12)


def test_the_seed_decides(normal, queries):
    scores = [ExtremeLearning(hidden=20, least=2, seed=s).fit(normal).decision_function(queries) for s in (1, 1, 2)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])


def test_new_phrases_score_higher_than_known_ones(normal):
    detector = ExtremeLearning(hidden=20, least=2).fit(normal)
    usual = np.cumsum(np.random.default_rng(2).choice([1, 2], 50)) % 7
    scores = detector.decision_function(Sequences.from_list([usual, usual[::-1]]))
    assert scores[1] > 2 * scores[0]


@pytest.mark.parametrize(
    "make", [lambda: ExtremeLearning(hidden=0), lambda: ExtremeLearning(ridge=0), lambda: Phrases(0)]
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(SyscallLMError, match="cannot have"):
        make()
