"""Call sets, by Python's sets; what order, number and loss of calls do to their score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors import call_sets
from syscall_lm.detectors.call_sets import CallSets
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

V = 7
traces = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=9), min_size=1, max_size=8)


@given(traces, traces, st.sampled_from([0.0, 0.1, 1.0]))
def test_equals_the_definition_on_sets(normal, queries, extra):
    known = [set(trace) for trace in normal]
    holding = [sum(call in calls for calls in known) for call in range(V)]
    weights = [(math.log((1 + len(known)) / (1 + n)) + 0.1) ** 2 for n in holding]

    def weight(calls):
        return sum(weights[call] for call in calls)

    def similarity(x, y):
        return weight(x & y) / (weight(x & y) + extra * weight(x - y) + weight(y - x))

    expected = [1 - max(similarity(set(trace), y) for y in known) for trace in queries]
    detector = CallSets(V, extra).fit(Sequences.from_list(normal))
    scores = detector.decision_function(Sequences.from_list(queries))
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


def test_many_traces_are_scored_as_few(monkeypatch):
    rng = np.random.default_rng(0)
    queries = Sequences.from_list([rng.integers(0, V, n) for n in rng.integers(1, 9, 2500)])
    detector = CallSets(V).fit(Sequences.from_list([[0, 1, 2], [3, 4], [1, 5]]))
    scores = detector.decision_function(queries)
    np.testing.assert_array_equal(scores[2040:2060], detector.decision_function(queries.take(np.arange(2040, 2060))))
    some, others = queries.take(np.arange(30)), queries.take(np.arange(30, 60))
    expected = CallSets(V).fit(some).decision_function(others)
    monkeypatch.setattr(call_sets, "_ROWS", 4)  # of traces, and of known sets
    np.testing.assert_allclose(CallSets(V).fit(some).decision_function(others), expected, rtol=1e-12, atol=1e-15)


def test_order_repetition_and_loss_change_nothing_but_a_missing_kind_of_call_does():
    rng = np.random.default_rng(0)
    trace = np.concatenate([np.arange(V - 1), rng.integers(0, V - 1, 100)])
    detector = CallSets(V).fit(Sequences.from_list([trace, trace[trace < 3]]))
    lossy = np.concatenate([np.arange(V - 1), trace[rng.random(len(trace)) < 0.3]])
    calls = [rng.permutation(trace), lossy, trace[trace != 4]]
    scores = detector.decision_function(Sequences.from_list(calls))
    assert scores[0] == scores[1] == 0 and scores[2] > 0.1


def test_a_normal_trace_in_front_hides_an_attack():
    normal, attack = [0, 1, 2, 3], [5, 6, 5]
    detector = CallSets(V).fit(Sequences.from_list([normal, [0, 4]]))
    bare, padded = detector.decision_function(Sequences.from_list([attack, normal + attack]))
    assert bare == 1 and padded < 0.5


@pytest.mark.parametrize("wrong", [(0, 0.1), (3, -1.0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="call sets cannot have"):
        CallSets(*wrong)
