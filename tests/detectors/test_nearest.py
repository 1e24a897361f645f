"""Distances to normal traces: equations 4 to 6, and the features that they measure between, by their definitions."""

import jax
import numpy as np
import pytest

from syscall_lm import scoring
from syscall_lm.detectors.clusters import Clusters
from syscall_lm.detectors.features import FinalState, Frequency, TfIdf
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.detectors.nearest import Nearest, WithinRadius
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences

V = 9


@pytest.fixture(scope="module")
def normal():
    rng = np.random.default_rng(0)
    return Sequences.from_list([rng.choice(6, n) for n in rng.integers(1, 40, 30)])


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(1)
    return Sequences.from_list([rng.choice(V, n) for n in rng.integers(1, 40, 12)])


def member():
    shape = lstm.Shape(V, 5)
    return Member("m", shape, jax.tree.map(lambda x: x * 8, language_model.initialise(jax.random.key(0), shape)))


MEMBER = member()


@pytest.fixture(scope="module")
def final_state():
    return FinalState(TrainedMember(MEMBER))


def frequencies(traces):
    return np.stack([np.bincount(calls, minlength=V) / len(calls) for calls in traces])


def test_normalised_frequency(queries):
    np.testing.assert_allclose(Frequency(V).transform(queries).toarray(), frequencies(queries), rtol=1e-12)


def test_tf_idf(normal, queries):
    held = np.stack([np.bincount(calls, minlength=V) > 0 for calls in normal]).sum(axis=0)
    counts = np.stack([np.bincount(calls, minlength=V) for calls in queries])
    weights = counts * (np.log((1 + len(normal)) / (1 + held)) + 1)
    expected = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(TfIdf(V).fit(normal).transform(queries).toarray(), expected, rtol=1e-12)


def test_final_state_is_the_scorers(final_state, queries):
    scorer = scoring.Scorer([MEMBER])
    for _ in range(2):  # the second time from memory
        np.testing.assert_array_equal(final_state.transform(queries), scorer.final_states(queries)[0])
    other = queries.take(np.arange(3))
    np.testing.assert_array_equal(final_state.transform(other), scorer.final_states(other)[0])


def all_distances(features, normal, queries):
    features.fit(normal)
    dense = [
        part if isinstance(part, np.ndarray) else part.toarray() for part in map(features.transform, (queries, normal))
    ]
    return np.linalg.norm(dense[0][:, None].astype(np.float64) - dense[1][None], axis=-1)


@pytest.fixture(params=["frequency", "tf-idf", "final state"])
def features(request, final_state):
    return {"frequency": Frequency(V), "tf-idf": TfIdf(V), "final state": final_state}[request.param]


@pytest.mark.parametrize("k", [1, 11, 99])
def test_smallest_radius_that_covers_k_normal_traces(features, normal, queries, k):
    distances = np.sort(all_distances(features, normal, queries), axis=1)
    scores = Nearest(features, k).fit(normal).decision_function(queries)
    np.testing.assert_allclose(scores, distances[:, min(k, 30) - 1], rtol=1e-5, atol=1e-6)


def test_mean_cosine_distance_to_k_neighbours(normal, queries):
    x, y = (TfIdf(V).fit(normal).transform(part).toarray() for part in (queries, normal))
    expected = np.sort(1 - x @ y.T, axis=1)[:, :10].mean(axis=1)
    scores = Nearest(TfIdf(V), 10, "cosine", average=True).fit(normal).decision_function(queries)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


def test_share_of_normal_traces_outside_a_radius(features, normal, queries):
    distances = all_distances(features, normal, queries)
    radius = float(np.median(distances))
    scores = WithinRadius(features, radius).fit(normal).decision_function(queries)
    np.testing.assert_allclose(scores, (distances > radius).mean(axis=1), rtol=1e-12)


def test_the_radius_is_chosen_from_normal_traces(features, normal):
    distances = all_distances(features, normal, normal)
    np.fill_diagonal(distances, np.inf)
    expected = np.median(np.sort(distances, axis=1)[:, 3])
    np.testing.assert_allclose(WithinRadius(features, neighbours=4).fit(normal).radius_, expected, rtol=1e-5)


def test_one_cluster_is_the_distance_to_the_mean(features, normal, queries):
    features.fit(normal)
    x, y = (
        np.asarray(part if isinstance(part, np.ndarray) else part.toarray())
        for part in map(features.transform, (queries, normal))
    )
    scores = Clusters(features).fit(normal).decision_function(queries)
    np.testing.assert_allclose(scores, np.linalg.norm(x - y.mean(axis=0), axis=1), rtol=1e-5, atol=1e-6)


def test_clusters_find_groups_and_are_deterministic():
    normal = Sequences.from_list([[0] * 5, [0] * 6, [0] * 4 + [1], [1] * 7, [1] * 4 + [0], [1] * 9])
    detector = Clusters(Frequency(2), clusters=2, seed=1).fit(normal)
    near, far = detector.decision_function(Sequences.from_list([[0] * 20, [0, 1]]))
    assert near < 0.2 < far
    again = Clusters(Frequency(2), clusters=2, seed=1).fit(normal)
    np.testing.assert_array_equal(again.decision_function(normal), detector.decision_function(normal))


def test_a_single_normal_trace_suffices(queries):
    one = Sequences.from_list([[0, 1, 2]])
    for detector in (Nearest(Frequency(V)), WithinRadius(Frequency(V)), Clusters(Frequency(V), clusters=3)):
        assert np.isfinite(detector.fit(one).decision_function(queries)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Nearest(Frequency(V), 0),
        lambda: WithinRadius(Frequency(V), -1.0),
        lambda: WithinRadius(Frequency(V), neighbours=0),
        lambda: Clusters(Frequency(V), 0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(SyscallLMError, match="must be at least"):
        make()
