"""t-STIDE and the locality frame count equal their definitions, and large traces take seconds."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors.stide import Stide, locality_frame_counts
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

traces = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=6)


def windows(trace, k):
    trace = [*trace, *["pad"] * (k - len(trace))]
    return [tuple(trace[i : i + k]) for i in range(len(trace) - k + 1)]


@given(traces, traces, st.integers(1, 4), st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_t_stide_counts_rare_windows_as_mismatches(normal, queries, k, rare):
    seen = collections.Counter(window for trace in normal for window in windows(trace, k))
    common = {window for window, count in seen.items() if count >= rare * seen.total()}
    expected = [np.mean([window not in common for window in windows(trace, k)]) for trace in queries]
    scores = Stide(k, rare).fit(Sequences.from_list(normal)).decision_function(Sequences.from_list(queries))
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@given(traces, traces, st.integers(1, 4), st.integers(1, 6))
def test_locality_frame_count_is_the_most_mismatches_in_a_frame(normal, queries, k, frame):
    known = {window for trace in normal for window in windows(trace, k)}
    expected = []
    for trace in queries:
        missing = [window not in known for window in windows(trace, k)]
        expected.append(max(sum(missing[max(0, end - frame) : end]) for end in range(1, len(missing) + 1)))
    detector = Stide(k, frame=frame).fit(Sequences.from_list(normal))
    assert detector.decision_function(Sequences.from_list(queries)).tolist() == expected


def test_a_normal_prefix_dilutes_the_share_but_not_the_frame():
    normal = np.tile(np.arange(7), 100)
    attack = np.random.default_rng(0).integers(0, 7, 40)
    queries = Sequences.from_list([attack, np.concatenate([normal, attack])])
    training = Sequences.from_list([normal])
    share = Stide().fit(training).decision_function(queries)
    frame = Stide(frame=20).fit(training).decision_function(queries)
    assert share[1] < share[0] / 10 and frame[1] >= frame[0] == 20


def test_a_million_calls():
    """No loop over windows: this takes about half a second."""
    rng = np.random.default_rng(0)
    sequences = Sequences.from_list([np.cumsum(rng.choice([1, 2, 5], 1_000_000, p=[0.9, 0.08, 0.02])) % 40])
    detector = Stide(rare=1e-5).fit(sequences)
    mismatches, windows = detector.mismatches(sequences)
    seen = collections.Counter(zip(*(sequences.calls[i : i - 6 or None].tolist() for i in range(6)), strict=False))
    assert windows.tolist() == [999_995]
    assert mismatches.sum() == sum(count for count in seen.values() if count < 1e-5 * seen.total())


def test_frames_of_no_traces():
    assert locality_frame_counts(np.zeros(3, bool), np.array([3]), 20).tolist() == [0]
    assert len(Stide(frame=20).fit(Sequences.from_list([[1, 2]])).decision_function(Sequences.from_list([]))) == 0


@pytest.mark.parametrize("wrong", [{"window": 0}, {"rare": 1.0}, {"rare": -0.1}, {"frame": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="STIDE cannot use"):
        Stide(**wrong)
