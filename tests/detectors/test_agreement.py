"""An agreement is the lowest standardised member; what it is calibrated on was never learned from."""

import numpy as np
import pytest
import scipy.spatial.distance

from syscall_lm.detectors.agreement import Agreement, pseudo_programs
from syscall_lm.detectors.base import Detector
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class Novel(Detector):
    """The share of calls that training never showed, times `factor`."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def _fit(self, normal):
        self.known = np.unique(normal.calls)

    def decision_function(self, traces):
        return np.array([self.factor * (~np.isin(calls, self.known)).mean() for calls in traces])


class Length(Detector):
    """The number of calls."""

    def _fit(self, normal):
        del normal

    def decision_function(self, traces):
        return traces.lengths.astype(np.float64)


# Three programs that share call 0 only.
PROGRAMS = [[0, 1, 1, 2], [0, 3, 3, 4], [5, 6, 6, 5]]
NORMAL = Sequences.from_list([program * n for program in PROGRAMS for n in (1, 2, 3)])


def test_equals_the_lowest_of_members_standardised_on_unseen_programs():
    queries = Sequences.from_list([[0, 9, 9, 9], [0, 1], [9] * 50])
    scores = Agreement([Novel, Length], folds=3).fit(NORMAL).decision_function(queries)
    # Left out, each program's own calls are new, and nothing else is: 3 of 4 calls, 3 of 4, all.
    unseen = {"novel": np.repeat([0.75, 0.75, 1], 3), "length": np.tile([4, 8, 12], 3)}
    logarithms = {name: np.log(values + 0.05) for name, values in unseen.items()}
    own = {"novel": np.array([0.75, 0, 1]), "length": np.array([4, 2, 50])}
    standardised = [(np.log(own[m] + 0.05) - logarithms[m].mean()) / logarithms[m].std() for m in own]
    np.testing.assert_allclose(scores, np.min(standardised, axis=0), rtol=1e-12)


def test_units_of_a_member_matter_only_near_zero():
    queries = Sequences.from_list([[9] * 5, [0, 9, 9]])
    small, large = (
        Agreement([lambda f=f: Novel(f), Length]).fit(NORMAL).decision_function(queries) for f in (1e3, 1e6)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3)


def test_calibration_looks_at_no_more_traces_than_asked_for():
    many = Sequences.from_list([PROGRAMS[i % 3] for i in range(300)])
    few = Agreement([Novel], folds=3, at_most=60).fit(many)
    fully = Agreement([Novel], folds=3).fit(many)
    query = Sequences.from_list([[0, 9, 9]])
    np.testing.assert_allclose(few.decision_function(query), fully.decision_function(query), rtol=1e-9)


def test_a_single_program_is_scored_all_the_same():
    detector = Agreement([Novel]).fit(Sequences.from_list([[1, 2], [1, 2]]))
    assert detector.decision_function(Sequences.from_list([[1, 9]])) == pytest.approx(np.log(0.55))


def test_pseudo_programs_are_the_components_of_far_apart_clusters():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 40)
    traces = Sequences.from_list([rng.permutation(np.repeat(PROGRAMS[g], rng.integers(1, 4))) for g in groups])
    clusters = pseudo_programs(traces)
    np.testing.assert_array_equal(clusters[:, None] == clusters[None], groups[:, None] == groups[None])


def test_pseudo_programs_measure_the_hellinger_distance():
    pair = Sequences.from_list([[0, 0, 1], [0, 1, 1, 1]])
    frequencies = np.array([[2 / 3, 1 / 3], [1 / 4, 3 / 4]])
    distance = scipy.spatial.distance.pdist(np.sqrt(frequencies))[0]
    assert len(set(pseudo_programs(pair, distance * 1.001))) == 1
    assert len(set(pseudo_programs(pair, distance * 0.999))) == 2


@pytest.mark.parametrize("wrong", [{"members": []}, {"folds": 1}, {"at_most": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="an agreement cannot have"):
        Agreement(**{"members": [Novel], **wrong})
