"""The ensembles equal their definitions; a calibration survives its file."""

import json

import numpy as np
import pytest

from syscall_lm.detectors import ensemble
from syscall_lm.detectors.base import conformal_threshold
from syscall_lm.errors import SyscallLMError

RNG = np.random.default_rng(0)
SCORES = RNG.gamma(2, size=(3, 200))
TRAIN = RNG.gamma(2, size=(3, 101))
CALIBRATION = ensemble.Calibration.from_scores(TRAIN, RNG.gamma(2, size=(3, 40)), "test")


def test_leaky_relu_equals_equation_3():
    expected = [
        sum(max(f - b, 0.001 * (f - b)) / 3 for f, b in zip(column, np.median(TRAIN, axis=1), strict=True))
        for column in SCORES.T
    ]
    np.testing.assert_allclose(CALIBRATION.combine(SCORES, "leaky_relu"), expected, rtol=1e-12)


def test_average_is_the_mean():
    np.testing.assert_allclose(CALIBRATION.combine(SCORES, "average"), SCORES.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
def test_vote_exceeds_a_level_exactly_when_a_majority_of_members_does(members):
    scores = RNG.gamma(2, size=(members, 300))
    medians, spreads = RNG.random(members), 0.5 + RNG.random(members)
    combined = ensemble.vote(scores, medians, spreads)
    for level in (-1, 0, 0.5, 1, 2):
        votes = (scores > (medians + level * spreads)[:, None]).sum(axis=0)
        np.testing.assert_array_equal(combined > level, votes > members / 2)


@pytest.mark.parametrize("method", ensemble.METHODS)
def test_one_member_is_ranked_as_it_ranks_itself(method):
    single = ensemble.Calibration.from_scores(TRAIN[:1], TRAIN[:1, :30], "")
    order = np.argsort(single.combine(SCORES[:1], method))
    np.testing.assert_array_equal(order, np.argsort(SCORES[0]))


@pytest.mark.parametrize("method", ensemble.METHODS)
def test_the_threshold_lets_the_asked_share_of_held_out_traces_pass(method):
    combined = CALIBRATION.combine(CALIBRATION.held_out, method)
    assert (combined > CALIBRATION.threshold(method, 0.1)).sum() == 3  # the threshold is the 37th of 40: ceil(41 * 0.9)
    assert (combined > CALIBRATION.threshold(method, 0.01)).sum() == 0


def test_survives_its_file():
    names = ["a", "b", "c"]
    value = json.loads(json.dumps(CALIBRATION.to_json(names)))
    again = ensemble.Calibration.from_json(value, names, "file")
    for name in ("medians", "spreads", "held_out"):
        np.testing.assert_array_equal(getattr(again, name), getattr(CALIBRATION, name))
    assert again.source == "test" and [len(scores) for scores in again.windows] == [0, 0, 0]


def test_scores_of_windows_survive_too_and_many_are_thinned():
    many = RNG.gamma(2, size=25_003)
    made = ensemble.Calibration.from_scores(TRAIN[:2], TRAIN[:2], "", [np.zeros(0), many])
    value = json.loads(json.dumps(made.to_json(["lm", "windows"])))
    assert "windows" not in value["members"]["lm"]
    again = ensemble.Calibration.from_json(value, ["lm", "windows"], "file")
    assert len(again.windows[0]) == 0 and len(again.windows[1]) == ensemble.MOST_WINDOWS
    np.testing.assert_array_equal(again.windows[1], made.windows[1])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30, 77])
def test_a_threshold_of_thinned_scores_keeps_the_promise_of_all(count):
    scores = RNG.permutation(np.arange(count))
    kept = ensemble.thinned(scores, 8)
    assert len(kept) == min(count, 8) and kept[-1] == count - 1 and (np.diff(kept) > 0).all()
    for rate in (0.05, 0.2, 0.5, 0.9):
        threshold = conformal_threshold(kept, rate)
        assert conformal_threshold(scores, rate) <= threshold <= conformal_threshold(scores, rate) + 2 * -(-count // 8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("members"),
        lambda v: v["members"].pop("b"),
        lambda v: v["members"]["a"].update(median="x"),
        lambda v: v["members"]["a"].update(held_out=[]),
        lambda v: v["members"]["a"].update(windows=["x"]),
        lambda v: v["members"]["a"].update(windows=[float("inf")]),
        lambda v: v["members"]["a"].update(held_out=[float("nan")] * 40),
        lambda v: v.update(members=[1, 2]),
    ],
)
def test_a_damaged_file_is_refused(damage):
    value = CALIBRATION.to_json(["a", "b", "c"])
    damage(value)
    with pytest.raises(SyscallLMError, match="file: .*calibrate"):
        ensemble.Calibration.from_json(value, ["a", "b", "c"], "file")


def test_an_unknown_method_is_refused():
    with pytest.raises(SyscallLMError, match="leaky_relu, average, vote"):
        CALIBRATION.combine(SCORES, "mean")
