"""Figures of merit equal their definitions, ties included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm import evaluation
from syscall_lm.errors import SyscallLMError

scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30).map(np.array)


@given(scores, scores)
def test_auc_is_the_chance_that_an_attack_scores_higher(normal, attack):
    wins = [(a > n) + 0.5 * (a == n) for a in attack for n in normal]
    assert evaluation.curve(normal, attack).auc == pytest.approx(np.mean(wins), abs=1e-12)


@given(scores, scores, st.floats(0.01, 1))
def test_rates_at_an_operating_point_by_brute_force(normal, attack, rate):
    roc = evaluation.curve(normal, attack)
    thresholds = [np.inf, *normal, *attack]
    points = [((normal >= t).mean(), (attack >= t).mean()) for t in thresholds]
    assert roc.false_alarms_at(rate) == pytest.approx(min(f for f, d in points if d >= rate - 1e-12))
    assert roc.detection_at(rate) == pytest.approx(max(d for f, d in points if f <= rate + 1e-12))


def test_the_bootstrap_interval_covers_the_auc_and_narrows_with_more_traces():
    rng = np.random.default_rng(0)
    widths = []
    for size in (50, 800):
        normal, attack = rng.normal(size=size), rng.normal(1, size=size)
        low, high = evaluation.auc_interval(normal, attack)
        assert low < evaluation.curve(normal, attack).auc < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5  # about a quarter, by the square root of 16
    assert evaluation.auc_interval(normal, attack) == (low, high)


def test_the_bootstrap_equals_scikit_learn_on_the_same_resamples():
    normal, attack = np.array([0.0, 1, 1, 2]), np.array([1.0, 2, 3])
    rng = np.random.default_rng(0)
    _, group = np.unique(np.concatenate([normal, attack]), return_inverse=True)
    areas = []
    for _ in range(200):
        n, a = rng.choice(group[:4], 4), rng.choice(group[4:], 3)
        areas.append(evaluation.curve(n.astype(float), a.astype(float)).auc)
    np.testing.assert_allclose(evaluation.bootstrap_aucs(normal, attack, samples=200), areas, atol=1e-12)


def test_two_detectors_share_their_bootstrap_samples():
    rng = np.random.default_rng(0)
    normal, attack = rng.normal(size=50), rng.normal(1, size=40)
    one = evaluation.bootstrap_aucs(normal, attack)
    other = evaluation.bootstrap_aucs(2 * normal.round(2) - 1, 2 * attack.round(2) - 1)
    assert np.abs(one - other).max() < 0.01 < one.std()


def test_a_summary_holds_every_family():
    result = evaluation.summary(np.arange(10.0), np.array([3.0, 20, 21]), ["b", "a", "a"])
    assert result["attacks"] == 3 and result["normal"] == 10
    assert result["families"]["a"] == {"attacks": 2, "auc": 1.0, "detection_at_5_percent_false_alarms": 1.0}
    assert result["families"]["b"]["auc"] == pytest.approx(0.35)
    assert set(result["false_alarms_at_detection"]) == {"0.9", "0.95", "0.99"}


@pytest.mark.parametrize(("normal", "attack"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])])
def test_what_cannot_be_evaluated_is_refused(normal, attack):
    with pytest.raises(SyscallLMError):
        evaluation.curve(np.array(normal), np.array(attack))
