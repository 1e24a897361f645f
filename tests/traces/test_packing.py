"""Packing loses nothing and mixes nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences

GO = 1000


def sequences_of(lengths):
    calls = iter(range(10**6))
    return Sequences.from_list([np.array([next(calls) % 1000 for _ in range(length)], np.uint16) for length in lengths])


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(lengths, st.integers(1, 5), st.integers(1, 17), st.one_of(st.none(), st.integers(0, 5)))
def test_lanes_hold_every_trace_once_and_in_one_piece(lengths, lanes, steps, seed):
    sequences = sequences_of(lengths)
    rng = None if seed is None else np.random.default_rng(seed)
    plans = list(packing.lane_plans(sequences, lanes, steps, rng))
    assert all(plan.shape == (steps, lanes) for plan in plans)
    whole = np.concatenate(plans)
    assert sorted(whole[whole >= 0]) == list(range(len(sequences.calls)))
    for lane in whole.T:
        used = lane[lane >= 0]
        assert (lane[: len(used)] >= 0).all()  # padding only at the end
        starts = np.isin(used, sequences.offsets[:-1])
        assert (starts[1:] | (np.diff(used) == 1)).all() and (not len(used) or starts[0])


@given(lengths, st.integers(1, 5))
def test_the_fullest_lane_is_as_short_as_longest_first_makes_it(lengths, lanes):
    whole = np.concatenate(list(packing.lane_plans(sequences_of(lengths), lanes, 8)))
    fullest = (whole >= 0).sum(axis=0).max()
    assert fullest <= max(max(lengths), 4 / 3 * sum(lengths) / lanes + max(lengths))  # Graham 1969


@given(lengths, st.integers(1, 100), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 5)))
def test_minibatches_hold_every_call_once_with_similar_lengths(lengths, calls, max_steps, seed):
    sequences = sequences_of(lengths)
    rng = None if seed is None else np.random.default_rng(seed)
    plans = packing.minibatch_plans(sequences, calls, max_steps, rng)
    everything = np.concatenate([plan[plan >= 0] for plan in plans])
    assert sorted(everything) == list(range(len(sequences.calls)))
    for plan in plans:
        steps, lanes = plan.shape
        assert lanes == max(1, calls // steps)
        used = (plan >= 0).sum(axis=0)
        assert used.max() <= max_steps
        for lane, length in zip(plan.T, used, strict=True):
            assert (np.diff(lane[:length]) == 1).all()
    assert len(plans) == len(packing.minibatch_plans(sequences, calls, max_steps, np.random.default_rng(9)))


@given(lengths, st.integers(1, 4), st.integers(1, 9))
def test_tiles_know_the_call_before_and_where_a_trace_starts(lengths, lanes, steps):
    sequences = sequences_of(lengths)
    packer = packing.Packer(sequences, GO)
    for plan in packing.lane_plans(sequences, lanes, steps):
        tile = packer.gather(plan)
        for t, b in np.ndindex(plan.shape):
            position = plan[t, b]
            assert tile.mask[t, b] == (position >= 0)
            if position < 0:
                assert tile.inputs[t, b] == GO and tile.reset[t, b]
                continue
            first = position in sequences.offsets[:-1]
            assert tile.targets[t, b] == sequences.calls[position]
            assert tile.reset[t, b] == first
            assert tile.inputs[t, b] == (GO if first else sequences.calls[position - 1])
