"""The hidden Markov model equals hmmlearn's, and sums over all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM

from syscall_lm.detectors import hmm, lanes
from syscall_lm.detectors.hmm import HiddenMarkov, Parameters
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

S, V = 3, 5


@pytest.fixture(scope="module")
def parameters():
    rng = np.random.default_rng(1)
    rows = (rng.dirichlet(np.ones(S)), rng.dirichlet(np.ones(S), S), rng.dirichlet(np.ones(V), S))
    return Parameters(*(jnp.asarray(part, jnp.float32) for part in rows))


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(2)
    steps = [rng.choice([1, 2], n, p=[0.8, 0.2]) for n in (1, 50, 3, 120, 2, 20, 300)]
    return Sequences.from_list([np.cumsum(part) % V for part in steps])


def reference(parameters, iterations=1):
    model = CategoricalHMM(S, n_features=V, n_iter=iterations, tol=-np.inf, init_params="", params="ste")
    model.startprob_, model.transmat_, model.emissionprob_ = (np.asarray(part, np.float64) for part in parameters)
    for name in ("startprob_", "transmat_", "emissionprob_"):  # float32 rows sum to one only so far
        rows = getattr(model, name)
        setattr(model, name, rows / rows.sum(axis=-1, keepdims=True))
    return model


def test_likelihood_equals_the_sum_over_all_paths(parameters):
    start, transition, emission = (np.asarray(part, np.float64) for part in parameters)
    calls = [0, 3, 3, 1, 4]
    total = 0.0
    for path in itertools.product(range(S), repeat=len(calls)):
        p = start[path[0]] * emission[path[0], calls[0]]
        for (i, j), call in zip(itertools.pairwise(path), calls[1:], strict=True):
            p *= transition[i, j] * emission[j, call]
        total += p
    surprisal = hmm.surprisal(parameters, Sequences.from_list([calls]))
    np.testing.assert_allclose(surprisal.sum(), -np.log(total), rtol=1e-5)


def test_likelihood_equals_hmmlearn(parameters, traces):
    surprisal = hmm.surprisal(parameters, traces)
    model = reference(parameters)
    expected = [-model.score(calls[:, None].astype(int)) for calls in traces]
    np.testing.assert_allclose(np.add.reduceat(surprisal, traces.offsets[:-1]), expected, rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 4])
def test_baum_welch_equals_hmmlearn(parameters, traces, iterations):
    model = reference(parameters, iterations)
    model.fit(traces.calls[:, None].astype(int), traces.lengths)
    tiles = hmm.training_tiles(traces)
    ours = parameters
    for _ in range(iterations):
        ours = hmm.maximised(hmm.expected(ours, tiles), ours)
    for name, part in zip(("startprob_", "transmat_", "emissionprob_"), ours, strict=True):
        np.testing.assert_allclose(part, getattr(model, name), rtol=1e-4, atol=1e-6)  # 1e-5 times 4 iterations' growth


def test_tiles_and_passes_do_not_change_the_counts(parameters, traces, monkeypatch):
    whole = hmm.expected(parameters, hmm.training_tiles(traces))
    monkeypatch.setattr(hmm, "CALLS_PER_PASS", 100)
    monkeypatch.setattr(lanes, "STEPS", 7)
    tiles = hmm.training_tiles(traces)
    assert len(tiles) > 2 and len({tile.targets.shape for tile in tiles}) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), hmm.expected(parameters, tiles), whole)
    np.testing.assert_allclose(whole.emission.sum(), len(traces.calls), rtol=1e-5)
    np.testing.assert_allclose(whole.start.sum(), len(traces), rtol=1e-5)


def test_a_long_trace_among_short_ones_is_little_padding():
    traces = Sequences.from_list([np.zeros(20_000), *[np.zeros(10)] * 1000])
    (tile,) = hmm.training_tiles(traces)
    assert tile.mask.sum() == len(traces.calls) and tile.mask.size < 2 * len(traces.calls)


def test_scores_do_not_depend_on_lanes_and_tiles(parameters, traces, monkeypatch):
    expected = hmm.surprisal(parameters, traces)
    monkeypatch.setattr(lanes, "STEPS", 11)
    monkeypatch.setattr(lanes, "LANES", 2)
    np.testing.assert_allclose(hmm.surprisal(parameters, traces), expected, rtol=1e-5, atol=1e-6)


def test_training_raises_the_likelihood_and_is_deterministic(traces):
    detector = HiddenMarkov(V, states=4, pseudocount=0, tolerance=0, iterations=20, seed=3).fit(traces)
    gains = np.diff(detector.history_)
    assert len(gains) > 5 and (gains[:-1] > -1e-6).all() and detector.history_[-1] > detector.history_[0] + 0.1
    again = HiddenMarkov(V, states=4, pseudocount=0, tolerance=0, iterations=20, seed=3).fit(traces)
    np.testing.assert_array_equal(again.decision_function(traces), detector.decision_function(traces))


def test_an_unseen_call_is_surprising_but_possible(traces):
    detector = HiddenMarkov(V + 1, states=2, iterations=3).fit(traces)
    usual, unusual = detector.decision_function(Sequences.from_list([[0, 1, 2, 3], [0, 1, V, 3]]))
    assert usual < unusual < np.inf


def test_an_impossible_call_scores_infinity_and_spoils_nothing_else(parameters):
    impossible = parameters._replace(emission=parameters.emission.at[:, 0].set(0))
    surprisal = hmm.surprisal(impossible, Sequences.from_list([[0, 1], [1, 2]]))
    assert np.isinf(surprisal[:2]).all() and np.isfinite(surprisal[2:]).all()
    counts = hmm.expected(impossible, hmm.training_tiles(Sequences.from_list([[1, 2], [1, 2, 3, 4]])))
    assert all(np.isfinite(part).all() for part in counts)


@pytest.mark.parametrize("wrong", [{"states": 0}, {"iterations": 0}, {"pseudocount": -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="an HMM cannot have"):
        HiddenMarkov(V, **wrong)
