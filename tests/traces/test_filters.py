"""Filters drop what they say, count it, and leave everything else as it was."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import filters
from syscall_lm.traces.filters import Events, Filters, collapse
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("read", "write", "open"), "for tests")


def trace(calls, ident, **info):
    return Trace(np.array(calls, np.uint16), ident, **info)


def apply(chosen, traces):
    counts = collections.Counter()
    kept = list(chosen.apply(traces, VOCABULARY, counts))
    return [(t.id, t.calls.tolist()) for t in kept], {reason: n for reason, n in counts.items() if n}


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_repetitions_collapse_to_the_limit(calls, limit):
    expected = [call for call, run in itertools.groupby(calls) for call in list(run)[:limit]]
    assert collapse(np.array(calls, np.uint16), limit).tolist() == expected


def test_events_are_ordered_by_time_and_told_once():
    events = Events(
        thread=np.array([7, 3, 7, 3, 3, 7]),
        time=np.array([2.0, 1.0, 1.0, 1.0, 1.0, 2.0]),
        call=np.array([1, 0, 0, 0, 0, 2], np.uint16),
    )
    assert events.late == 4
    ordered = events.ordered()
    assert ordered.thread.tolist() == [3, 7, 3, 3, 7, 7] and ordered.late == 0  # equal times keep their order
    once = ordered.without_doubles()
    assert once.thread.tolist() == [3, 7, 7, 7] and once.call.tolist() == [0, 0, 1, 2]  # doubles interleave, too
    again = Events(np.zeros(4, int), np.ones(4), np.array([0, 1, 0, 1], np.uint16))
    assert len(again.without_doubles()) == 4  # a call that another one follows is no double
    none = Events(np.zeros(0, int), np.zeros(0), np.zeros(0, np.uint16))
    assert len(none.ordered().without_doubles()) == 0 and none.late == 0


def test_no_filter_changes_nothing():
    traces = [trace([0, 0, 1], "a", pid=1, start_time=1.0)] * 2
    assert apply(Filters(), traces) == ([("a", [0, 0, 1])] * 2, {})


def test_traces_are_ordered_and_doubles_dropped():
    traces = [
        trace([1], "unknown"),
        trace([0], "late", pid=5, start_time=9.0, host="h"),
        trace([0], "early", pid=5, start_time=1.0, host="h"),
        trace([0], "early again", pid=5, start_time=1.0, host="h"),
        trace([0], "other host", pid=5, start_time=1.0, host="g"),
        trace([1], "unknown again"),
    ]
    kept, counts = apply(Filters(order=True, drop_doubles=True), traces)
    assert [name for name, _ in kept] == ["other host", "early", "late", "unknown", "unknown again"]
    assert counts == {filters.DOUBLED_TRACE: 1, filters.MOVED: 5}


def test_calls_are_dropped_by_name_and_then_collapse():
    kept, counts = apply(
        Filters(drop=("write", "<unknown>"), max_repeats=1), [trace([0, 1, 0, 3, 2], "a"), trace([1, 1], "b")]
    )
    assert kept == [("a", [0, 2])]
    assert counts == {filters.NAMED: 4, filters.REPEATED: 1, filters.EMPTIED: 1}


def test_a_filter_that_makes_no_sense_is_refused():
    with pytest.raises(SyscallLMError, match="no such call"):
        apply(Filters(drop=("raed",)), [])
    with pytest.raises(SyscallLMError, match="max_repeats"):
        Filters(max_repeats=-1)
    with pytest.raises(SyscallLMError, match="max_repeats"):
        collapse(np.array([1]), 0)
