"""Identical beginnings are scored once.

Programs begin alike: a trace often says for hundreds of calls what another one has said. Of traces in sorted order each
has the longest beginning in common with a neighbour. Families of neighbours lie in one lane, trace after trace; where
one leaves another, it goes on from the state that the lane had there, which a slot has kept.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences

SLOTS = 4  # states that a lane keeps; ADFA-LD and strace's captures are not told 1 % fewer calls with more
SHORTEST = 8  # calls; beginnings that are shorter are computed anew
LEAST = 0.05  # of all calls; if no more can be saved, all are computed
FEWEST_EVENTS = 4  # that a step has room for; more are a power of two


class Branches(NamedTuple):
    """Where lanes of one device go on from kept states, and keep some: int32 `[T, E]` each.

    Attributes:
      load_lane, load_slot: before a step; nothing where the lane does not exist.
      keep_lane, keep_slot: after a step; nothing where the slot does not exist.
    """

    load_lane: np.ndarray
    load_slot: np.ndarray
    keep_lane: np.ndarray
    keep_slot: np.ndarray


@dataclasses.dataclass(frozen=True)
class Families:
    """What is computed of each trace, and from which state on.

    Attributes:
      order: int64 `[N]`, the traces' numbers, in sorted order; all below is in this order.
      starts: int64 `[N]`, how many calls a trace has from the one before it.
      lengths: int64 `[N]`, how many are left to compute.
      family: int64 `[N]`, ascending.
      loads: int64 `[L, 2]`, states to go on from: whose trace, and the slot.
      keeps: int64 `[K, 3]`, states to keep: of which trace, after how many of its calls, and the slot.
    """

    order: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    family: np.ndarray
    loads: np.ndarray
    keeps: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Calls to compute of each family."""
        return np.bincount(self.family, self.lengths).astype(np.int64)

    def complete(self, scores: np.ndarray, sequences: Sequences) -> None:
        """Gives traces the scores that they have from others; `scores` are `[..., total or more]`, as `calls` are."""
        begins = sequences.offsets[self.order]
        for place in np.flatnonzero(self.starts).tolist():
            before, own, count = begins[place - 1], begins[place], self.starts[place]
            scores[..., own : own + count] = scores[..., before : before + count]


def families(sequences: Sequences, most: int) -> Families:
    """Finds which traces go on from which.

    Args:
      sequences: N different traces.
      most: calls to compute of a family, as long as slots suffice: what is longer is not joined.
    """
    order = np.array(sorted(range(len(sequences)), key=_sortable(sequences).__getitem__), np.int64)
    lengths = sequences.lengths[order]
    common = _common(sequences, order)
    family = _joined(lengths, common, most)
    starts = np.zeros_like(lengths)
    loads: list[tuple[int, int]] = []
    keeps: list[tuple[int, int, int]] = []
    together = np.diff(family, prepend=-1) == 0  # with the trace before
    if common[together].sum() < LEAST * lengths.sum():
        together[:], family = False, np.arange(len(order))
    lane = _Lane()
    for place in np.flatnonzero(together | np.append(together[1:], False)).tolist():
        start, state = 0, None
        if together[place]:
            start, state = lane.state_for(int(common[place]))
        else:
            lane = _Lane()
        if state is not None:
            starts[place] = start
            loads.append((place, state.slot))
            if state.is_new:
                keeps.append((state.place, start, state.slot))
        lane.append(_Piece(place, start, lane.time, state), int(lengths[place]))
    found = np.array(loads, np.int64).reshape(-1, 2), np.array(keeps, np.int64).reshape(-1, 3)
    return Families(order, starts, lengths - starts, family, *found)


def _sortable(sequences: Sequences) -> list[bytes]:
    calls = sequences.calls.astype(">u4")
    return [calls[begin:end].tobytes() for begin, end in zip(sequences.offsets, sequences.offsets[1:], strict=False)]


def _common(sequences: Sequences, order: np.ndarray) -> np.ndarray:
    """With how many of its calls each trace of `order` begins as the one before it does; 0 if few."""
    begins, lengths = sequences.offsets[order], sequences.lengths[order]
    sizes = np.minimum(lengths[1:], lengths[:-1])
    before = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum())
    one, other = (sequences.calls[within + np.repeat(begin - before, sizes)] for begin in (begins[:-1], begins[1:]))
    differs = np.append(np.flatnonzero(one != other), len(within))
    equal = np.minimum(differs[np.searchsorted(differs, before)] - before, sizes)
    return np.append(0, np.where(equal < SHORTEST, 0, equal))


def _joined(lengths: np.ndarray, common: np.ndarray, most: int) -> np.ndarray:
    """Families of neighbours: those with most in common first."""
    first, last = np.arange(len(lengths)), np.arange(len(lengths))  # of the family that ends, or begins, at a place
    calls = lengths.copy()  # of the family that begins at a place
    together = np.zeros(len(lengths), bool)  # with the one before
    for place in np.argsort(-common, kind="stable")[: np.count_nonzero(common)].tolist():
        begin, end = first[place - 1], last[place]
        total = calls[begin] + calls[place] - common[place]
        if total <= most:
            together[place] = True
            calls[begin], last[begin], first[end] = total, end, begin
    return np.cumsum(~together) - 1


@dataclasses.dataclass
class _State:
    """What a lane knows at some time."""

    place: int  # of the trace that it is computed in
    time: int  # steps from the family's beginning
    slot: int = -1
    is_new: bool = True


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What is computed of a trace."""

    place: int
    start: int
    time: int  # of its first step
    state: _State | None  # from which it goes on


class _Lane:
    """A family's pieces one after another, and what the slots hold, seen from the end of the last one."""

    def __init__(self) -> None:
        self.time = 0
        self._path: list[_Piece] = []  # that the last trace consists of
        self._holds: list[_State | None] = [None] * SLOTS
        self._needed = [0] * SLOTS  # when a slot's state was last gone on from

    def append(self, piece: _Piece, length: int) -> None:
        """Lays out the rest of a trace of that length."""
        while self._path and self._path[-1].start >= piece.start:
            self._path.pop()
        self._path.append(piece)
        self.time += length - piece.start

    def state_for(self, calls: int) -> tuple[int, _State | None]:
        """What the next trace, which begins as the last one does for so many calls, can go on from, after how many."""
        for piece in reversed(self._path):
            if piece.start > calls:
                continue
            within = _State(piece.place, piece.time + calls - piece.start)
            if piece.start < calls and self._keep(within):
                return calls, within
            calls = piece.start
            if piece.state is not None and self._keep(piece.state):
                return calls, piece.state
        return 0, None

    def _keep(self, state: _State) -> bool:
        """Sees to it that a slot holds a state until now; false if none has been free since."""
        state.is_new = state.slot < 0 or self._holds[state.slot] is not state
        if state.is_new:
            free = [slot for slot, needed in enumerate(self._needed) if needed < state.time]
            if not free:
                return False
            state.slot = free[0]
            self._holds[state.slot] = state
        self._needed[state.slot] = self.time
        return True


def branching_plans(
    sequences: Sequences, found: Families, lanes: int, steps: int, devices: int
) -> Iterator[tuple[np.ndarray, list[Branches]]]:
    """`packing.lane_plans` of families: every call that is left to compute once.

    Args:
      sequences: N traces.
      found: their families.
      lanes: B, shared by the devices.
      steps: T of every plan.
      devices: each has as many lanes as another, and SLOTS slots for each of them.

    Yields:
      plans `[steps, lanes]`, and what branches off in them on each device.
    """
    sizes = found.sizes
    contents, in_lane = packing.shared_out(sizes, np.arange(len(sizes)), lanes)
    rank, lane_of = np.empty((2, len(sizes)), np.int64)
    placed = np.array([family for families in contents for family in families], np.int64)
    rank[placed] = np.arange(len(placed))
    lane_of[placed] = np.repeat(np.arange(lanes), [len(families) for families in contents])
    pieces = np.argsort(rank[found.family], kind="stable")
    begins = sequences.offsets[found.order] + found.starts
    plans = packing.lane_tiles(begins[pieces], found.lengths[pieces], in_lane, steps)
    time, lane = np.empty_like(found.starts), lane_of[found.family]
    time[pieces] = np.cumsum(found.lengths[pieces]) - found.lengths[pieces]
    time -= (np.cumsum(in_lane) - in_lane)[lane]
    loaded, load_slot = found.loads.T
    keeper, calls, keep_slot = found.keeps.T
    share = lanes // devices
    loads = _Events(time[loaded], lane[loaded], load_slot, share)
    keeps = _Events(time[keeper] + calls - found.starts[keeper] - 1, lane[keeper], keep_slot, share)
    room = FEWEST_EVENTS
    while room < max(loads.most, keeps.most):
        room *= 2
    for number, plan in enumerate(plans):
        of_devices = []
        for device in range(devices):
            load, keep = (events.table(number * steps, steps, device, room) for events in (loads, keeps))
            of_devices.append(Branches(*load, *keep))
        yield plan, of_devices


class _Events:
    """Loads, or keeps: in order of time, for each device apart.

    A state in a lane that does not exist is not loaded, nor one kept in a slot that does not: rows end with those.
    """

    def __init__(self, time: np.ndarray, lane: np.ndarray, slot: np.ndarray, share: int):
        self._nothing = share, share * SLOTS
        device = lane // share
        order = np.lexsort((time, device))
        self._device, self._time = device[order], time[order]
        self._lane = (lane % share)[order]
        self._slot = self._lane * SLOTS + slot[order]
        new = np.append(True, (np.diff(self._time) != 0) | (np.diff(self._device) != 0))[: len(order)]
        number = np.cumsum(new) - 1
        self._rank = np.arange(len(order)) - np.flatnonzero(new)[number]  # among those of its step
        self.most = int(self._rank.max(initial=-1)) + 1

    def table(self, begin: int, steps: int, device: int, room: int) -> np.ndarray:
        """Lanes and slots of the events of some steps, int32 `[2, steps, room]`."""
        chosen = (self._device == device) & (self._time >= begin) & (self._time < begin + steps)
        table = np.empty((2, steps, room), np.int32)
        table[0], table[1] = self._nothing
        places = self._time[chosen] - begin, self._rank[chosen]
        table[0][places], table[1][places] = self._lane[chosen], self._slot[chosen]
        return table
