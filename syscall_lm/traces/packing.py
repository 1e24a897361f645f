"""Packing: traces of any lengths into arrays of one shape.

A plan says which call stands where: an int64 array `[T, B]` of positions in `Sequences.calls`, -1 for padding. From a
plan, `gather` makes what a model reads. Two kinds of plan exist: `lane_plans` (lanes hold traces back to back, state is
carried from one plan to the next; for scoring and for truncated back-propagation) and `minibatch_plans` (a lane holds
one trace; minibatches of similar lengths, as in Kim et al., section 3.2).
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from syscall_lm.traces.trace import Sequences
from syscall_lm.types import HostArray


class Tile(NamedTuple):
    """What a model reads, each `[T, B]`.

    Attributes:
      inputs: int32, the call before each position, GO where a trace starts.
      targets: int32, the calls themselves.
      reset: bool, true where a trace starts.
      mask: bool, false at padding.
    """

    inputs: HostArray
    targets: HostArray
    reset: HostArray
    mask: HostArray


class Packer:
    """Turns plans over one set of traces into tiles."""

    def __init__(self, sequences: Sequences, go: int):
        self._go = go
        starts = sequences.offsets[:-1]
        # One padding entry at the end, which index -1 reads.
        self._targets = np.append(sequences.calls, 0).astype(np.int32)
        self._inputs = np.append(np.roll(sequences.calls, 1), 0).astype(np.int32)
        self._inputs[starts] = go
        self._inputs[-1] = go
        self._reset = np.zeros(len(self._targets), bool)
        self._reset[starts] = True
        self._reset[-1] = True

    def gather(self, plan: np.ndarray) -> Tile:
        """The tile of a plan `[T, B]`."""
        return Tile(self._inputs[plan], self._targets[plan], self._reset[plan], plan >= 0)


def lane_plans(
    sequences: Sequences, lanes: int, steps: int, rng: np.random.Generator | None = None
) -> Iterator[np.ndarray]:
    """Fills lanes with traces back to back.

    The longest trace is placed first, each next one in the lane that holds least: that leaves the least padding, and
    only at the very end.

    Args:
      sequences: N traces.
      lanes: B.
      steps: T of every plan.
      rng: shuffles equally long traces among the lanes, and the order within each lane; None keeps both.

    Yields:
      plans `[steps, lanes]`; together they hold every call once, and a lane goes on in the next plan.
    """
    order = np.arange(len(sequences)) if rng is None else rng.permutation(len(sequences))
    lengths = sequences.lengths
    contents, sizes = shared_out(lengths, order, lanes)
    if rng is not None:
        for traces in contents:
            rng.shuffle(traces)
    placed = np.array([trace for traces in contents for trace in traces], np.int64)
    return lane_tiles(sequences.offsets[placed], lengths[placed], sizes, steps)


def shared_out(lengths: np.ndarray, order: np.ndarray, lanes: int) -> tuple[list[list[int]], np.ndarray]:
    """Shares things of some lengths out to lanes, the longest first; in `order` where they are equally long.

    Returns:
      each lane's things, and int64 `[lanes]`, the sum of their lengths.
    """
    order = order[np.argsort(-lengths[order], kind="stable")]
    queue = [(0, lane) for lane in range(lanes)]
    contents: list[list[int]] = [[] for _ in range(lanes)]
    for thing, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        used, lane = queue[0]
        contents[lane].append(thing)
        heapq.heapreplace(queue, (used + length, lane))
    return contents, np.array([used for used, _ in sorted(queue, key=lambda entry: entry[1])], np.int64)


def lane_tiles(begins: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """Plans `[steps, lanes]` of pieces of traces, which lie back to back in lane after lane.

    Args:
      begins, lengths: `[P]`, the position of each piece's first call, and how many calls it has.
      sizes: `[lanes]`, the calls in each lane.
      steps: T of every plan.
    """
    before = np.cumsum(lengths) - lengths
    positions = np.append(np.arange(lengths.sum()) + np.repeat(begins - before, lengths), -1)  # the last is padding
    ends = np.cumsum(sizes)
    for start in range(0, int(sizes.max()), steps):
        places = (ends - sizes + start) + np.arange(steps)[:, None]
        yield positions[np.where(places < ends, places, -1)]


def minibatch_plans(
    sequences: Sequences, calls: int, max_steps: int, rng: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Groups traces of similar length into minibatches of about `calls` calls.

    T is rounded up to a grid with two sizes an octave, so that few shapes are compiled, and B is `calls // T`. What
    does not fill a minibatch moves up to the next size; only the last minibatch has empty lanes. A trace longer than
    `max_steps` is trained in pieces: each knows the call before it, but starts from the zero state.

    Args:
      sequences: N traces.
      calls: of a minibatch, padding included.
      max_steps: the longest piece that gradients flow through.
      rng: draws which traces meet, and the order of the minibatches; None keeps both as they are.

    Returns:
      plans of different `[T, B]`; their number depends on the traces' lengths alone.
    """
    pieces = [
        (start, min(start + max_steps, end))
        for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
        for start in range(int(begin), int(end), max_steps)
    ]
    if rng is not None:
        rng.shuffle(pieces)
    pieces.sort(key=lambda piece: piece[1] - piece[0])
    plans: list[np.ndarray] = []
    while pieces:
        steps = _grid(pieces[0][1] - pieces[0][0])
        lanes = max(1, calls // steps)
        chosen = pieces[:lanes]
        longest = chosen[-1][1] - chosen[-1][0]
        if longest > steps:  # too few traces of this size: make them part of a longer minibatch
            steps = _grid(longest)
            lanes = max(1, calls // steps)
            chosen = pieces[:lanes]
        plan = np.full((steps, lanes), -1, np.int64)
        for lane, (start, end) in enumerate(chosen):
            plan[: end - start, lane] = np.arange(start, end)
        plans.append(plan)
        pieces = pieces[len(chosen) :]
    if rng is not None:
        rng.shuffle(plans)
    return plans


def _grid(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, ... that is at least `length`."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
