"""A call that traces begin alike with is computed once, and each goes on from the right state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.traces import beginnings
from syscall_lm.traces.trace import Sequences

LONG = beginnings.SHORTEST


@st.composite
def alike(draw):
    """Different traces, many of which begin as others do."""
    traces = {tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=40)))}
    for _ in range(draw(st.integers(0, 15))):
        other = draw(st.sampled_from(sorted(traces)))
        rest = draw(st.lists(st.integers(0, 2), min_size=1, max_size=25))
        traces.add((*other[: draw(st.integers(0, len(other)))], *rest))
    return Sequences.from_list([np.array(calls, np.uint16) for calls in draw(st.permutations(sorted(traces)))])


@given(alike(), st.sampled_from([1, 40, 10**6]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 17))
def test_every_call_is_computed_once_from_the_state_that_all_calls_before_it_make(traces, most, share, devices, steps):
    """A state is here what it has read."""
    found = beginnings.families(traces, most)
    trace_of = np.repeat(np.arange(len(traces)), traces.lengths)
    known = np.full(len(traces.calls), -1)  # the number of what a call and all before it are
    names: dict[bytes, int] = {}
    states = [b""] * (share * devices)
    slots = [[b"nothing was kept here"] * (share * beginnings.SLOTS) for _ in range(devices)]
    for plan, of_devices in beginnings.branching_plans(traces, found, share * devices, steps, devices):
        assert plan.shape == (steps, share * devices) and len(of_devices) == devices
        for step, positions in enumerate(plan):
            for device, branches in enumerate(of_devices):
                for lane, slot in zip(branches.load_lane[step], branches.load_slot[step], strict=True):
                    if lane < share:
                        states[device * share + lane] = slots[device][slot]
            for lane, position in enumerate(positions):
                if position < 0:
                    continue
                begin = traces.offsets[trace_of[position]]
                before = b"" if position == begin else states[lane]
                assert before == traces.calls[begin:position].tobytes()
                states[lane] = traces.calls[begin : position + 1].tobytes()
                assert known[position] == -1
                known[position] = names.setdefault(states[lane], len(names))
            for device, branches in enumerate(of_devices):
                for lane, slot in zip(branches.keep_lane[step], branches.keep_slot[step], strict=True):
                    if slot < share * beginnings.SLOTS:
                        slots[device][slot] = states[device * share + lane]
    assert np.count_nonzero(known >= 0) == found.lengths.sum()
    found.complete(known, traces)
    for position, number in enumerate(known):
        assert names[traces.calls[traces.offsets[trace_of[position]] : position + 1].tobytes()] == number
    assert found.sizes.sum() == found.lengths.sum()


def test_a_tree_of_beginnings_is_computed_once():
    """Two programs; traces of each leave its longest one after 10, 20, 30 and 40 calls, in any order."""
    rng = np.random.default_rng(0)
    traces = []
    for program in (0, 100):
        longest = np.arange(60) % 50 + program
        traces.append(longest)
        for shared in (10, 20, 30, 40, 40):
            traces.append(np.concatenate([longest[:shared], [program + 60 + len(traces)], [0] * 5]))
    rng.shuffle(traces)
    sequences = Sequences.from_list([np.array(calls, np.uint16) for calls in traces])
    found = beginnings.families(sequences, 10**6)
    assert found.lengths.sum() == 2 * (60 + 5 * 6) and found.family[-1] == 1
    assert len(found.loads) == 10 and len(found.keeps) == 8  # two leave at the same place
    limited = beginnings.families(sequences, 70)
    assert limited.sizes.max() <= 70 and found.lengths.sum() < limited.lengths.sum() < sequences.lengths.sum()


@pytest.mark.parametrize("traces", [[[1]], [[1], [2]], [[1] * LONG, [1] * (LONG - 1)], [[2] * 9, [1] * 9]])
def test_what_has_little_in_common_is_left_alone(traces):
    found = beginnings.families(Sequences.from_list([np.array(calls, np.uint16) for calls in traces]), 10**6)
    assert not found.starts.any() and len(found.loads) == len(found.keeps) == 0
    assert found.family.tolist() == list(range(len(traces)))


def test_slots_are_as_few_as_they_are():
    """Where a trace is left at more places than a lane has slots, what cannot be kept is computed anew."""
    longest = np.arange(200, dtype=np.uint16)
    places = range(20, 180, 10)
    # The one that leaves last sorts first, so that all states are needed after the longest trace has gone by.
    traces = Sequences.from_list([longest, *(np.append(longest[:place], 500) for place in places)])
    found = beginnings.families(traces, 10**6)
    assert sorted(set(found.loads[:, 1].tolist())) == list(range(beginnings.SLOTS))
    assert 200 + len(places) < found.lengths.sum() < traces.lengths.sum() / 2


def test_traces_of_one_call_and_prefixes_of_others_are_traces_too():
    calls = [np.arange(n, dtype=np.uint16) for n in (1, 9, 10, 30)]
    found = beginnings.families(Sequences.from_list(calls), 10**6)
    assert found.starts.tolist() == [0, 0, 9, 10] and found.lengths.tolist() == [1, 9, 1, 20]
