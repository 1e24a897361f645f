"""Every detector of the catalogue keeps the shared interface's promises."""

import jax
import numpy as np
import pytest

from syscall_lm import scoring
from syscall_lm.detectors import catalogue, ensemble
from syscall_lm.detectors.taught import Examples
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences

V = 12


@pytest.fixture(scope="module")
def members():
    shape = lstm.Shape(V, 3)
    return [Member(name, shape, language_model.initialise(jax.random.key(i), shape)) for i, name in enumerate("ab")]


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(0)
    return Sequences.from_list([np.cumsum(rng.choice([1, 2], n)) % (V - 2) for n in rng.integers(1, 120, 30)])


@pytest.mark.parametrize("name", [*catalogue.NAMES, *catalogue.TAUGHT])
def test_fit_score_and_predict(name, members, traces):
    examples = Examples(traces.take(np.arange(20)), np.arange(20) % 2 == 0)
    made = catalogue.build([name], V, members if name in catalogue.ON_MEMBERS else members[:1], examples=examples)
    (detector,) = made.values()
    held_out = traces.take(np.arange(20, 30))
    assert detector.fit(traces.take(np.arange(20)), held_out) is detector
    queries = Sequences.from_list([[V - 1] * 30, *traces, [0]])  # an unseen call, known traces, a single call
    scores = detector.decision_function(queries)
    assert scores.shape == (32,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    assert detector.threshold_ == detector.decision_function(held_out).max()  # 10 traces cannot promise 1 %
    np.testing.assert_array_equal(detector.predict(queries), (scores > detector.threshold_).astype(np.int64))
    one_by_one = [detector.decision_function(Sequences.from_list([trace]))[0] for trace in list(queries)[:3]]
    np.testing.assert_allclose(one_by_one, scores[:3], rtol=1e-5, atol=1e-6)
    assert detector.decision_function(Sequences.from_list([])).shape == (0,)


@pytest.mark.parametrize("name", [name for name in catalogue.ALONE if not name.startswith(("frequency", "tfidf"))])
def test_an_unseen_program_scores_above_normal_traces(name, traces):
    (detector,) = catalogue.build([name], V).values()
    train = traces.take(np.arange(20))  # of the same sizes as above, so that programs are compiled once
    detector.fit(train, traces.take(np.arange(20, 30)))
    foreign = np.random.default_rng(1).choice(V, 100)
    scores = detector.decision_function(Sequences.from_list([foreign, *(t for t in train if len(t) > 80)]))
    assert scores[0] > scores[1:].max()


def test_every_detector_says_what_it_was_chosen_on():
    assert set(catalogue.CHOSEN_ON) <= {*catalogue.NAMES, *catalogue.TAUGHT}
    assert catalogue.chosen_on("stide") == "nothing" and catalogue.chosen_on("lstm 1x200") == "nothing"
    assert catalogue.chosen_on("sets-and-calmest") == "development half of the attacks"
    # Order 8 and 75 calls had been seen to do well on all attacks.
    assert {catalogue.chosen_on(name) for name in ("ngram", "ngram-calmest", "lstm-calmest 1x200.1")} == {
        "known beforehand"
    }


def test_a_detector_on_a_member_is_made_for_each(members):
    names = ["stide", "state-knn", "vote"]
    assert list(catalogue.build(names, V, members)) == ["stide", "state-knn a", "state-knn b", "vote"]


@pytest.mark.parametrize("method", ensemble.METHODS)
def test_an_ensemble_combines_its_members_by_medians_of_the_normal_traces(method, members, traces):
    normal, queries = traces.take(np.arange(20)), traces.take(np.arange(20, 30))
    detector = catalogue.build([method], V, members)[method].fit(normal)
    scorer = scoring.Scorer(members)
    known, scores = (scoring.means(scorer.surprisal(part), part) for part in (normal, queries))
    expected = ensemble.Calibration.from_scores(known, known).combine(scores, method)
    np.testing.assert_allclose(detector.decision_function(queries), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [("strde", "no detector is called 'strde'"), ("state-knn", "none was given"), ("vote", "none was given")],
)
def test_unknown_names_and_missing_models_are_refused(name, message):
    with pytest.raises(SyscallLMError, match=message):
        catalogue.build([name], V)
