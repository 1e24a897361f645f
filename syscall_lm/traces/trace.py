"""One trace, and many of them as flat arrays."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from syscall_lm.errors import SyscallLMError

NORMAL = "normal"
ATTACK = "attack"


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """The calls of one process (or session), in order, and what is known of it.

    Attributes:
      calls: uint16 `[T]`, ids in the vocabulary of the reader or archive.
      id: unique within its archive, readable: "corpus/ls-3.strace:4711".
      source: the file or archive member that it was read from.
      pid: the process id, where the source tells.
      command: the process name or command line, where known. Written by the traced process: never trust it.
      host: where it was recorded.
      start_time: seconds since the epoch, where known.
      label: `NORMAL`, `ATTACK`, or empty if unknown.
      family: the kind of attack, or the program of a normal trace.
      split: "train", "validation", "test", or empty.
    """

    calls: np.ndarray
    id: str
    source: str = ""
    pid: int | None = None
    command: str = ""
    host: str = ""
    start_time: float | None = None
    label: str = ""
    family: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """N traces' calls back to back: trace i is `calls[offsets[i]:offsets[i + 1]]`.

    Attributes:
      calls: integer ids `[total]`.
      offsets: int64 `[N + 1]`, from 0 to total.
    """

    calls: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_list(cls, traces: Iterable[npt.ArrayLike]) -> "Sequences":
        """Joins arrays of ids."""
        arrays = [np.asarray(trace, np.uint16) for trace in traces]
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)]).astype(np.int64)
        return cls(np.concatenate([np.zeros(0, np.uint16), *arrays]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.calls[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[N]`: calls in each trace."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Calls in the longest trace; 0 if there is none."""
        return int(self.lengths.max(initial=0))

    def take(self, indices: np.ndarray) -> "Sequences":
        """The traces at `indices` (integers, or a boolean mask of N), in that order."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return Sequences.from_list(self[int(i)] for i in indices)

    def translate(self, table: np.ndarray) -> "Sequences":
        """Every id replaced by `table[id]` (see `Vocabulary.map_from`)."""
        return Sequences(table[self.calls], self.offsets)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Finds identical traces.

        Returns:
          first: int64 `[D]`, the index of each distinct trace's first occurrence, ascending.
          inverse: int64 `[N]`, for each trace its position in `first`.
        """
        positions: dict[bytes, int] = {}
        first: list[int] = []
        inverse = np.empty(len(self), np.int64)
        for i, calls in enumerate(self):
            key = calls.tobytes()
            if key not in positions:
                positions[key] = len(first)
                first.append(i)
            inverse[i] = positions[key]
        return np.asarray(first, np.int64), inverse


def require_ids(calls: npt.ArrayLike, size: int) -> None:
    """Raises SyscallLMError if one of the calls is no id below `size`: a model would read it as some other call."""
    calls = np.asarray(calls)
    if calls.size and not 0 <= (low := calls.min()) <= (high := calls.max()) < size:
        raise SyscallLMError(f"call id {low if low < 0 else high}: this model knows ids from 0 to {size - 1}")
