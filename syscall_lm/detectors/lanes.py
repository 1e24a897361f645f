"""Traces side by side through a scan over time whose state is carried from one tile to the next."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import HostArray

LANES = 128
STEPS = 256  # of a tile

Carry = TypeVar("Carry")


def scan(
    traces: Sequences,
    initial: Callable[[int], Carry],
    forward: Callable[[Carry, np.ndarray], tuple[Carry, HostArray]],
) -> np.ndarray:
    """A number for every call, by a function that carries something along each trace.

    Args:
      traces: of any lengths.
      initial: makes what is carried, for so many lanes.
      forward: from what is carried and a plan `[T, B]` (positions in `traces.calls`, -1 for padding) to what is carried
        on, and the numbers `[T, B]`.

    Returns:
      float32 `[total]`, laid out like `traces.calls`.
    """
    scores = np.empty(len(traces.calls), np.float32)
    if not len(traces):
        return scores
    lanes = min(LANES, 1 << (len(traces) - 1).bit_length())
    carry = initial(lanes)
    for plan in packing.lane_plans(traces, lanes, STEPS):
        carry, values = forward(carry, plan)
        scores[plan[plan >= 0]] = np.asarray(values)[plan >= 0]
    return scores
