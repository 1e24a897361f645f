"""The context mixture equals its equations written out, is a distribution, and follows whoever knows best."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors import lanes, mixture
from syscall_lm.detectors.mixture import ContextMixture
from syscall_lm.detectors.ngram import NGram
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

V = 4
traces = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=14), min_size=1, max_size=6)


def fixed_share(probabilities, share):
    """Surprisals of one trace, `[K, T]` to `[T]`, in float64 and one call at a time."""
    weights = np.full(len(probabilities), 1 / len(probabilities))
    found = []
    for column in probabilities.T:
        total = weights @ column
        found.append(-math.log(total))
        weights = (1 - share) * weights * column / total + share / len(probabilities)
    return found


@given(traces, traces, st.integers(1, 5))
def test_a_lagged_expert_equals_its_equation(normal, queries, lag):
    model = ContextMixture(V, orders=(1,), lags=(lag,)).fit(Sequences.from_list(normal))
    unigram, lagged = model.experts(Sequences.from_list(queries))
    pairs = [(trace[t - lag] if t >= lag else "start", trace[t]) for trace in normal for t in range(len(trace))]
    asked = [(trace[t - lag] if t >= lag else "start", trace[t]) for trace in queries for t in range(len(trace))]
    for (before, call), start, found in zip(asked, unigram, lagged, strict=True):
        followers = [after for context, after in pairs if context == before]
        kinds = len(set(followers))
        expected = (followers.count(call) + kinds * start) / (len(followers) + kinds) if followers else start
        assert found == pytest.approx(expected, rel=1e-12)


@given(traces, traces)
def test_its_ngrams_are_those_of_the_ngram_detector(normal, queries):
    learned, judged = Sequences.from_list(normal), Sequences.from_list(queries)
    experts = ContextMixture(V, orders=(1, 3, 6), lags=()).fit(learned).experts(judged)
    for order, probability in zip((1, 3, 6), experts, strict=True):
        np.testing.assert_allclose(-np.log(probability), NGram(V, order).fit(learned).surprisal(judged), rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_the_mixture_equals_its_equations_whatever_the_lanes_and_tiles(share, monkeypatch):
    rng = np.random.default_rng(0)
    judged = Sequences.from_list([rng.integers(0, V, length) for length in (1, 700, 3, 40, 256, 257, 9)])
    probabilities = np.exp(rng.normal(-3, 2, (5, len(judged.calls))))
    bounds = zip(judged.offsets[:-1], judged.offsets[1:], strict=True)
    expected = np.concatenate([fixed_share(probabilities[:, start:end], share) for start, end in bounds])
    for width, steps in ((128, 256), (2, 11), (1, 5)):
        monkeypatch.setattr(lanes, "LANES", width)
        monkeypatch.setattr(lanes, "STEPS", steps)
        np.testing.assert_allclose(mixture.mixed(probabilities, judged, share), expected, rtol=1e-5, atol=1e-5)


@given(traces, st.lists(st.integers(0, V - 1), max_size=10))
def test_probabilities_of_all_next_calls_sum_to_one(normal, history):
    model = ContextMixture(V).fit(Sequences.from_list(normal))
    continued = Sequences.from_list([[*history, call] for call in range(V)])
    last = model.surprisal(continued)[continued.offsets[1:] - 1]
    np.testing.assert_allclose(np.exp(-last).sum(), 1, rtol=1e-5)


def test_it_loses_little_to_the_expert_of_each_stretch():
    """Herbster & Warmuth's bound, with one change of the best expert."""
    share, length = 0.05, 200
    good, bad = np.full(length, 0.9), np.full(length, 0.01)
    probabilities = np.array([np.concatenate([good, bad]), np.concatenate([bad, good])])
    judged = Sequences.from_list([np.zeros(2 * length, int)])
    best = -2 * length * math.log(0.9)
    stay = 1 - share / 2
    bound = math.log(2) - (2 * length - 2) * math.log(stay) - math.log(share / 2)
    lost = mixture.mixed(probabilities, judged, share).sum() - best
    assert 0 < lost <= bound * (1 + 1e-5)
    assert mixture.mixed(probabilities, judged, 0.0).sum() > best + 100  # without sharing it cannot change its mind


def test_interleaved_threads_surprise_it_less_than_an_ngram():
    rng = np.random.default_rng(1)
    loops = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]]
    normal = Sequences.from_list([np.tile(loop, 40) for loop in loops])
    woven = np.empty(400, int)
    thread = np.repeat([0, 1], 200)
    rng.shuffle(thread)
    for k, loop in enumerate(loops):
        woven[thread == k] = np.resize(loop, (thread == k).sum())
    judged = Sequences.from_list([woven])
    mixed = ContextMixture(11).fit(normal).decision_function(judged)[0]
    assert mixed < NGram(11, 8).fit(normal).decision_function(judged)[0] - 0.2


def test_probabilities_too_small_for_float32_stay_finite():
    judged = Sequences.from_list([[0, 1]])
    found = mixture.mixed(np.array([[1e-60, 0.5], [1e-50, 0.5]]), judged, 0.05)
    np.testing.assert_allclose(found, [-math.log(1e-30), math.log(2)], rtol=1e-5)


def test_no_traces_to_judge():
    model = ContextMixture(V).fit(Sequences.from_list([[0, 1, 2]]))
    assert model.decision_function(Sequences.from_list([])).shape == (0,)


@pytest.mark.parametrize(
    "settings", [{"orders": ()}, {"orders": (0,)}, {"lags": (0,)}, {"share": 1.5}, {"share": -1.0}]
)
def test_impossible_settings(settings):
    with pytest.raises(SyscallLMError, match="a mixture cannot have"):
        ContextMixture(V, **settings)
