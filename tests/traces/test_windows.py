"""Windows hold the calls that they should, and every call is in as many as the stride says."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.windows import Windows, in_batches

GO = 9


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, GO - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 7),
)
def test_windows_equal_slices_of_their_trace(traces, length, stride):
    windows = Windows(Sequences.from_list(traces), length, stride, GO)
    batch = windows.gather(np.arange(len(windows)))
    expected = []
    for number, calls in enumerate(traces):
        for start in range(0, len(calls), stride):
            before, own = calls[max(0, start - length) : start], calls[start : start + length]
            padding = [GO] * (length - len(own))
            expected.append((number, [GO] * (length - len(before)) + before, own + padding, len(own)))
    assert len(windows) == len(expected)
    for i, (number, before, calls, size) in enumerate(expected):
        assert windows.trace[i] == number and windows.sizes[i] == size and windows.whole[i] == (size == length)
        assert batch.before[:, i].tolist() == before and batch.calls[:, i].tolist() == calls
        assert batch.mask[:, i].tolist() == [True] * size + [False] * (length - size)


def test_windows_of_stride_l_hold_every_call_once():
    traces = Sequences.from_list([np.arange(n) % GO for n in (1, 5, 12, 7)])
    windows = Windows(traces, 5, 5, GO)
    batch = windows.gather(np.arange(len(windows)))
    assert batch.mask.sum() == len(traces.calls)
    np.testing.assert_array_equal(batch.calls.T[batch.mask.T], traces.calls)


def test_the_calls_are_stored_once():
    traces = Sequences.from_list([np.zeros(100_000, np.uint16)])
    windows = Windows(traces, 15, 100, GO)
    held = sum(value.nbytes for value in vars(windows).values() if isinstance(value, np.ndarray))
    assert held < 1.2 * 4 * 100_000  # int32 ids, and some numbers for each of 1,000 windows


def test_empty_windows_fill_the_last_batch():
    plans = list(in_batches(np.arange(5), 4))
    assert [plan.tolist() for plan in plans] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    batch = Windows(Sequences.from_list([[1, 2, 3]]), 2, 1, GO).gather(np.array([1, -1]))
    assert batch.mask.tolist() == [[True, False], [True, False]]
    assert batch.calls.tolist() == [[2, GO], [3, GO]] and batch.before.tolist() == [[GO, GO], [1, GO]]


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (1, 0), (-1, 1)])
def test_windows_without_calls_are_refused(length, stride):
    with pytest.raises(SyscallLMError, match="at least 1"):
        Windows(Sequences.from_list([[1]]), length, stride, GO)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1), st.data())
def test_merged_windows_are_the_windows_and_how_often_each_occurs(traces, data):
    windows = Windows(Sequences.from_list(traces), 2, 1, GO)
    numbers = np.array(data.draw(st.lists(st.integers(-1, len(windows) - 1), min_size=1)))
    merged = windows.merged(numbers, multiple=4)
    assert merged.shape[1] % 4 == 0 and merged.shape[1] - 4 < max(1, len(numbers))
    assert (merged[1] >= 0).all() and ((merged[0] >= 0) == (merged[1] > 0)).all()
    kept = merged[0][merged[0] >= 0]
    assert kept.tolist() == [number for number in dict.fromkeys(numbers.tolist()) if number in kept]
    columns = [np.concatenate(windows.gather(some)).T.tolist() for some in (numbers[numbers >= 0], kept)]
    assert len({tuple(column) for column in columns[1]}) == len(kept)
    assert [columns[0].count(column) for column in columns[1]] == merged[1][: len(kept)].tolist()
    assert merged[1].sum() == (numbers >= 0).sum()
    batch = windows.gather_merged(merged)
    assert (batch.mask == windows.gather(merged[0]).mask * merged[1]).all()


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1), st.integers(1, 5), st.integers(0, 9))
def test_shuffled_windows_are_all_windows_with_equal_ones_side_by_side(traces, together, seed):
    windows = Windows(Sequences.from_list(traces), 2, 1, GO)
    order = windows.shuffled(np.random.default_rng(seed), together)
    assert sorted(order.tolist()) == list(range(len(windows)))
    content = [tuple(column) for column in np.concatenate(windows.gather(order)).T.tolist()]
    for one in set(content):
        runs = [len(list(run)) for found, run in itertools.groupby(content) if found == one]
        assert len(runs) <= -(-content.count(one) // together)  # groups of one content may meet by chance
    again = windows.shuffled(np.random.default_rng(seed), together)
    np.testing.assert_array_equal(order, again)


@pytest.mark.parametrize("together", [1, 3])
def test_every_order_of_windows_is_as_likely(together):
    """Four contents, three windows each: with `together` 3 there are 4! orders of contents."""
    windows = Windows(Sequences.from_list([[call] for call in (0, 1, 2, 3) for _ in range(3)]), 1, 1, GO)
    first = collections.Counter()
    for seed in range(600):
        order = windows.shuffled(np.random.default_rng(seed), together)
        first[tuple(dict.fromkeys((order // 3).tolist()))] += 1
    assert len(first) == 24 and max(first.values()) < 50  # 25 expected; 50 are five standard deviations more
