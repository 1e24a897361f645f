"""Thresholds keep their promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors import base
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class Length(base.Detector):
    def _fit(self, normal):
        self.seen = len(normal)

    def decision_function(self, traces):
        return traces.lengths.astype(float)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.001, 0.999))
def test_at_most_the_asked_share_lies_above_when_there_are_enough_traces(scores, rate):
    scores = np.array(scores)
    threshold = base.conformal_threshold(scores, rate)
    assert threshold in scores
    # Leave-one-in: among n + 1 exchangeable scores, at most a share `rate` of them exceeds the threshold of the others.
    if len(scores) >= base.traces_needed(rate):
        assert (scores > threshold).sum() <= rate * (len(scores) + 1) + 1e-6
    else:
        assert threshold == scores.max()


def test_a_new_normal_trace_exceeds_it_as_rarely_as_asked():
    rng = np.random.default_rng(0)
    trials = rng.normal(size=(20_000, 100))  # 99 held-out scores and a new one
    exceeded = [row[99] > base.conformal_threshold(row[:99], 0.05) for row in trials]
    assert abs(np.mean(exceeded) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20_000)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.001, 999), (0.5, 1)])
def test_traces_needed(rate, needed):
    assert base.traces_needed(rate) == needed
    scores = np.arange(needed, dtype=float)
    assert base.conformal_threshold(scores, rate) == scores.max()
    assert base.conformal_threshold(np.arange(2 * needed + 1, dtype=float), rate) < 2 * needed


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, float("nan")])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(SyscallLMError, match="between 0 and 1"):
        base.conformal_threshold(np.ones(3), rate)


def test_predict_calls_abnormal_what_exceeds_the_threshold():
    traces = Sequences.from_list([[0] * n for n in range(1, 101)])
    detector = Length(false_alarm_rate=0.1).fit(traces, traces.take(np.arange(50)))
    assert detector.seen == 100 and detector.threshold_ == 46
    np.testing.assert_array_equal(detector.predict(traces), traces.lengths > 46)
    for learn in (detector.fit, detector.learn):
        with pytest.raises(SyscallLMError, match="zero traces"):
            learn(Sequences.from_list([]))


def test_who_wants_scores_alone_does_not_wait_for_a_threshold(monkeypatch):
    traces = Sequences.from_list([[0] * n for n in range(1, 11)])
    monkeypatch.setattr(Length, "decision_function", lambda self, traces: pytest.fail("scored"))
    detector = Length().learn(traces)
    assert detector.seen == 10 and not hasattr(detector, "threshold_")
    with pytest.raises(SyscallLMError, match="before it judges"):
        detector.predict(traces)
    monkeypatch.setattr(Length, "needs_held_out", True)  # such a detector knows itself what to set aside
    monkeypatch.setattr(Length, "fit", lambda self, traces: "fitted")
    assert Length().learn(traces) == "fitted"
