"""Text of numbers to arrays, for the formats that hold call numbers."""

from collections.abc import Iterator

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary, abi_table

NOT_A_NUMBER = "not a number"
NOT_A_CALL_NUMBER = "number too large for a call"
_MAX_NUMBER = 2**16 - 1

DIGITS = b"0123456789"
_PLAIN = DIGITS + b" \t\n\r\v\f"
_MAX_DIGITS = 9


def integers(text: bytes) -> tuple[np.ndarray, int]:
    """The numbers in text that is separated by white space.

    Returns:
      int64 `[n]`: the numbers of at most nine digits after leading zeros, and how many other words there were (negative
      numbers, garbage).
    """
    if not text.translate(None, _PLAIN):
        found = _parse(text)
        if found.max(initial=0) < 10**_MAX_DIGITS:
            return found, 0
    words = text.split()
    numbers = [word for word in words if word.isdigit() and len(word.lstrip(b"0")) <= _MAX_DIGITS]
    return _parse(b" ".join(numbers)), len(words) - len(numbers)


def _parse(text: bytes) -> np.ndarray:
    # Numbers that do not fit become the largest that does.
    return np.fromstring(text.decode("ascii"), np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)


def encode(numbers: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary, counters: Counters) -> np.ndarray:
    """Call numbers to ids; those without one become UNK and are counted.

    Args:
      numbers: int64 `[n]`, not negative, at most 65,535.
      ids: uint16 `[k]`: the id of call number i, UNK where there is none. Numbers from k on are UNK.
      vocabulary: what the ids mean.
      counters: its `unknown` grows.

    Returns:
      uint16 `[n]`.
    """
    calls = np.append(ids, np.uint16(vocabulary.unk))[np.minimum(numbers, len(ids))]
    for number, times in _counts(numbers[calls == vocabulary.unk]):
        counters.count_unknown(f"number {number}", times)
    return calls


def _counts(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """The different numbers and how often each occurs; they may be millions, but not millions of different ones."""
    times = np.bincount(numbers)
    return ((number, int(times[number])) for number in np.flatnonzero(times).tolist())


def drop_large(numbers: np.ndarray, counters: Counters) -> np.ndarray:
    """A mask `[n]` of the numbers that may be a call's; the others are counted as skipped."""
    usable = numbers <= _MAX_NUMBER
    if dropped := int((~usable).sum()):
        counters.skipped[NOT_A_CALL_NUMBER] += dropped
    return usable


def number_names(options: Options) -> dict[int, str] | None:
    """What the numbers of a format mean whose numbers may mean anything.

    Returns:
      The positions in the file that --mapping names; the ABI's numbers with --numbering=abi; nothing without either.

    Raises:
      SyscallLMError: --numbering says something else; the mapping file or the ABI is unusable.
    """
    if options.numbering not in ("", "abi"):
        raise SyscallLMError(f"--numbering={options.numbering}: expected abi (the numbers of --abi) or nothing")
    if options.mapping:
        return dict(enumerate(Vocabulary.from_mapping_file(options.mapping).names))
    return dict(abi_table(options.abi)) if options.numbering else None


class NumberIds:
    """Call numbers to ids, an array at a time.

    Args:
      vocabulary: gives the ids; may grow.
      counters: its `unknown` grows.
      names: what numbers mean; without it a number is its own name ("number 15").
    """

    def __init__(self, vocabulary: Vocabulary | NamesSeen, counters: Counters, names: dict[int, str] | None):
        self._ids: CallIds[int] = CallIds(vocabulary, counters, names)
        self._table = np.full(_MAX_NUMBER + 1, vocabulary.unk, np.uint16)
        self._known = np.zeros(_MAX_NUMBER + 1, bool)

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """uint16 `[n]` ids of int64 `[n]` numbers from 0 to 65,535; those without one become UNK and are counted."""
        known = self._known[numbers]
        if not known.all():
            for number, times in _counts(numbers[~known]):
                self._ids.count(number, times)
                if number in self._ids:
                    self._table[number] = self._ids[number]
                    self._known[number] = True
        return self._table[numbers]
