"""Windows: the last L calls, and the adjacent next L (Soni et al. 2019, section V).

A window is a number, the position of its first call; what it holds is looked up when a minibatch is gathered, so the
calls are stored once and not L times.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import HostArray


class Batch(NamedTuple):
    """B windows with what stands before them, each `[L, B]`.

    Attributes:
      before: int32, the L calls before the window; GO where the trace had not begun.
      calls: int32, the window's own calls; GO where the trace has ended.
      mask: bool, false where the trace has ended; or int32, how often a call counts where equal windows are merged.
    """

    before: HostArray
    calls: HostArray
    mask: HostArray


class Windows:
    """All windows of some traces: one begins at every `stride`-th call of each trace, from its first call on.

    Windows near a trace's end are shorter than L (masked), so that with stride L every call of every trace, however
    short, lies in exactly one window.

    Args:
      sequences: N traces.
      length: L.
      stride: calls from one window's beginning to the next one's.
      go: the id that stands for "no call".

    Attributes:
      starts: int64 `[W]`, positions in `sequences.calls`, trace by trace.
      trace: int64 `[W]`, the number of each window's trace.
      sizes: int64 `[W]`, calls in each window: L, or fewer at a trace's end.

    Raises:
      SyscallLMError: a length or stride that is not positive.
    """

    def __init__(self, sequences: Sequences, length: int, stride: int, go: int):
        if length < 1 or stride < 1:
            raise SyscallLMError(f"windows need a length and a stride of at least 1, not {length} and {stride}")
        self.length, self.stride, self._go = length, stride, go
        per_trace = -(-sequences.lengths // stride)
        self.trace = np.repeat(np.arange(len(sequences)), per_trace)
        number = np.arange(len(self.trace)) - np.repeat(np.cumsum(per_trace) - per_trace, per_trace)
        self.starts = sequences.offsets[:-1][self.trace] + stride * number
        self._begins, self._ends = sequences.offsets[:-1], sequences.offsets[1:]
        self.sizes = np.minimum(self._ends[self.trace] - self.starts, length)
        self._calls = np.append(sequences.calls, 0).astype(np.int32)  # the last entry is read for every padded position

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def whole(self) -> np.ndarray:
        """Which windows have L calls, bool `[W]`."""
        return self.sizes == self.length

    def gather(self, numbers: np.ndarray) -> Batch:
        """The windows with these numbers `[B]`; -1 is an empty one."""
        numbers = np.asarray(numbers)
        trace = self.trace[numbers]
        positions = self.starts[numbers] + np.arange(self.length)[:, None]  # [L, B]
        mask = (positions < self._ends[trace]) & (numbers >= 0)
        earlier = positions - self.length
        known = (earlier >= self._begins[trace]) & (numbers >= 0)
        return Batch(self._read(earlier, known), self._read(positions, mask), mask)

    def _read(self, positions: np.ndarray, exists: np.ndarray) -> np.ndarray:
        return np.where(exists, self._calls[np.where(exists, positions, -1)], np.int32(self._go))

    def merged(self, numbers: np.ndarray, multiple: int) -> np.ndarray:
        """Of equal windows one, and how often it occurs: what a minibatch says of them is the same, so it is said once.

        Args:
          numbers: int `[B]`, of windows; -1 is an empty one.
          multiple: of how many windows the result is, so that few numbers of them occur.

        Returns:
          int `[2, B']`: numbers of windows that differ, in the order in which they first came, and how often each
          occurs; then -1 and 0.
        """
        numbers = np.asarray(numbers)
        numbers = numbers[numbers >= 0]
        _, first, times = np.unique(self._keys[numbers], return_index=True, return_counts=True)
        order = np.argsort(first)
        found = np.stack([numbers[first[order]], times[order]])
        padding = max(multiple, -(-found.shape[1] // multiple) * multiple) - found.shape[1]
        return np.concatenate([found, np.tile([[-1], [0]], padding)], axis=1)

    def shuffled(self, rng: np.random.Generator, together: int) -> np.ndarray:
        """All windows' numbers, int `[W]`, in random order, but equal windows side by side, `together` at a time."""
        if together == 1:
            return rng.permutation(len(self))
        keys = self._keys[self._by_key]
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))[: len(self)]
        rank = np.arange(len(self)) - np.repeat(first, np.diff(np.append(first, len(self))))  # among equal ones
        begins = rank % together == 0
        return self._by_key[np.argsort(rng.permutation(begins.sum())[np.cumsum(begins) - 1], kind="stable")]

    @functools.cached_property
    def _by_key(self) -> np.ndarray:
        return np.argsort(self._keys, kind="stable")

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """uint64 `[W]`, equal for equal windows, and hardly ever (2^-50 or less) for two that differ."""
        weights = np.random.default_rng(0).integers(0, 2**64, (3 * self.length, 1), np.uint64)
        keys = [np.zeros(0, np.uint64)]
        for some in np.array_split(np.arange(len(self)), -(-len(self) // 2**14) or 1):
            keys.append((np.concatenate(self.gather(some)).astype(np.uint64) * weights).sum(0, np.uint64))
        return np.concatenate(keys)

    def gather_merged(self, plan: np.ndarray) -> Batch:
        """The windows of what `merged` gives, or of some of its columns; their mask tells how often they count."""
        batch = self.gather(plan[0])
        return batch._replace(mask=np.where(batch.mask, plan[1], 0).astype(np.int32))


def in_batches(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Numbers `[n]` in batches of one size; the last one is filled up with -1."""
    filled = np.append(numbers, np.full(-len(numbers) % size, -1))
    yield from filled.reshape(-1, size)
