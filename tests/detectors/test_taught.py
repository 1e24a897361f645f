"""Evidence is what its definition says; a taught detector learns from labels what normal traces cannot tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors import catalogue
from syscall_lm.detectors.evidence import Evidence, quantiles
from syscall_lm.detectors.mixture import ContextMixture
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.taught import Examples, Judge, Taught
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

V = 6


def random_traces(rng, count, low=1, high=60):
    return Sequences.from_list([rng.integers(0, V, length) for length in rng.integers(low, high, count)])


@given(st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=9), max_size=5), st.floats(0, 0.999))
def test_a_quantile_is_the_value_that_the_share_lies_below(surprisals, share):
    traces = Sequences.from_list([np.zeros(len(values), int) for values in surprisals])
    found = quantiles(np.array([value for values in surprisals for value in values]), traces, share)
    assert found.tolist() == [sorted(values)[int(share * len(values))] for values in surprisals]


def test_evidence_equals_its_definition():
    rng = np.random.default_rng(0)
    normal, judged = random_traces(rng, 30), random_traces(rng, 9)
    found = Evidence(V).fit(normal).transform(judged)
    assert found.shape == (9, 13)
    agreement = catalogue.build(["sets-and-mixture"], V)["sets-and-mixture"].learn(normal)
    np.testing.assert_allclose(found[:, 0], agreement.decision_function(judged), rtol=1e-12)
    mixture = ContextMixture(V).learn(normal)
    lagged = list(mixture.experts(judged))[len(mixture.orders) :]
    assert len(lagged) == 11
    sources = [
        NGram(V, 1).learn(normal).surprisal(judged),
        NGram(V, 8).learn(normal).surprisal(judged),
        np.max([-np.log(probability) for probability in lagged], axis=0),
        mixture.surprisal(judged),
    ]
    bounds = list(zip(judged.offsets[:-1], judged.offsets[1:], strict=True))
    for number, (start, end) in enumerate(bounds):
        expected = []
        for source in sources:
            own = source[start:end]
            stretches = [own[t : t + 20].mean() for t in range(max(len(own) - 19, 1))]
            expected += [max(stretches), np.sort(own)[len(own) // 4], np.sort(own)[int(0.9 * len(own))]]
        np.testing.assert_allclose(found[number, 1:], np.log(np.array(expected) + 0.05), rtol=2e-6, atol=1e-6)


def test_a_judge_sums_the_odds_of_both_its_parts_and_knows_no_certainty():
    rng = np.random.default_rng(1)
    evidence = rng.normal(size=(200, 3))
    is_attack = evidence[:, 0] + 0.3 * rng.normal(size=200) > 1
    usual = rng.normal(size=(50, 3)) - 2
    judge = Judge(seed=5).fit(evidence, is_attack, usual)
    far = rng.normal(size=(500, 3)) * 9
    np.testing.assert_array_equal(judge.log_odds(far), judge.linear(far) + judge.votes(far))
    assert np.abs(judge.votes(far)).max() <= np.log(0.997 / 0.003) + 1e-12
    assert np.ptp(judge.linear(far)) > 10  # the linear part carries on where the examples end
    np.testing.assert_array_equal(judge.log_odds(far), Judge(seed=5).fit(evidence, is_attack, usual).log_odds(far))
    assert (judge.log_odds(far) != Judge(seed=6).fit(evidence, is_attack, usual).log_odds(far)).any()


def test_a_judge_weighs_kinds_of_examples_the_same_however_many_there_are():
    """Three kinds in a row, attacks in the middle: where it changes its mind does not move with their numbers."""
    rng = np.random.default_rng(2)
    line = np.linspace(-4, 4, 2001)[:, None]

    def says(alarms, attacks, usual):
        kinds = [rng.normal(place, 1, (count, 1)) for place, count in ((2, alarms), (0, attacks), (-2, usual))]
        labels = np.repeat([False, True], [alarms, attacks])
        return Judge().fit(np.concatenate(kinds[:2]), labels, kinds[2]).votes(line) > 0

    density = np.exp(-0.5 * (line - [2, 0, -2]) ** 2)
    expected = 2 * density[:, 1] > density[:, 0] + density[:, 2]
    for counts in ((2000, 2000, 2000), (6000, 600, 600), (600, 600, 6000), (600, 6000, 600)):
        assert (says(*counts) == expected).mean() > 0.88, counts
    labels = np.repeat([False, True], [300, 3])
    rare = Judge().fit(np.array([[2.0]] * 300 + [[0.0]] * 3), labels, np.array([[2.0]] * 300))
    assert rare.linear(np.array([[1.0]])) == pytest.approx(0, abs=0.1)  # undecided in the middle


def test_it_learns_from_examples_which_unusual_traces_are_attacks():
    """Training holds neither kind: torn loops, which the examples call normal, and calls out of nowhere."""
    rng = np.random.default_rng(3)

    def loops(count, torn):
        made = [np.tile([0, 1, 2], rng.integers(20, 40)) for _ in range(count)]
        return [trace[rng.random(len(trace)) > 0.4] if torn else trace for trace in made]

    def attacks(count):
        return [rng.integers(0, V, n) for n in rng.integers(60, 120, count)]

    normal = Sequences.from_list(loops(40, torn=False))
    examples = Examples(Sequences.from_list([*loops(40, torn=True), *attacks(40)]), np.repeat([False, True], 40))
    judged = Sequences.from_list([*loops(50, torn=True), *attacks(50)])
    taught = Taught(Evidence(V), examples).fit(normal)
    scores = taught.decision_function(judged)
    assert scores[:50].max() < 0 < scores[50:].min()
    reversed_ = Taught(Evidence(V), Examples(examples.traces, ~examples.is_attack)).fit(normal)
    assert (reversed_.decision_function(judged)[:50] > 0).all()  # it is the labels that say which is which
    assert taught.decision_function(Sequences.from_list([])).shape == (0,)


def test_what_is_familiar_stays_normal_whatever_the_examples_are():
    """The examples hold no usual trace, and the calmer they are, the rather they are attacks."""
    rng = np.random.default_rng(4)

    def noisy(share):
        trace = np.tile([0, 1, 2], rng.integers(20, 40))
        return np.where(rng.random(len(trace)) < share, rng.integers(0, V, len(trace)), trace)

    normal = Sequences.from_list([np.tile([0, 1, 2], n) for n in rng.integers(20, 40, 40)])
    examples = [*(noisy(0.8) for _ in range(30)), *(noisy(0.3) for _ in range(30))]
    taught = Taught(Evidence(V), Examples(Sequences.from_list(examples), np.repeat([False, True], 30))).fit(normal)
    usual = Sequences.from_list([np.tile([0, 1, 2], n) for n in (15, 33, 70)])
    assert (taught.decision_function(usual) < -1).all()
    assert (taught.decision_function(Sequences.from_list([noisy(0.3) for _ in range(9)])) > 1).all()


def test_examples_of_one_label_teach_nothing():
    traces = Sequences.from_list([[1], [2]])
    for labels, told in (
        ([True, True], "2 attacks and 0 normal"),
        ([False, False], "0 attacks and 2"),
        ([True], "1 att"),
    ):
        with pytest.raises(SyscallLMError, match=f"must hold attacks and normal traces; there are {told}"):
            Examples(traces, np.array(labels))
    with pytest.raises(SyscallLMError, match="'taught' is taught by labelled traces, but none were given"):
        catalogue.build(["taught"], V)
