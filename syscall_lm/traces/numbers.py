"""Text of numbers to arrays, for the formats that hold call numbers."""

import collections
import re

import numpy as np

from syscall_lm.traces.readers import Counters
from syscall_lm.traces.vocabulary import Vocabulary

NOT_A_NUMBER = "not a number"
NOT_A_CALL_NUMBER = "number too large for a call"
_MAX_NUMBER = 2**16 - 1

_ODD = re.compile(rb"[^0-9\s]|\d{10}")


def integers(text: bytes) -> tuple[np.ndarray, int]:
    """The numbers in text that is separated by white space.

    Returns:
      int64 `[n]`: the numbers of at most nine digits, and how many other words there were (negative numbers, garbage).
    """
    others = 0
    if _ODD.search(text):
        words = text.split()
        numbers = [word for word in words if len(word) < 10 and word.isdigit()]
        others = len(words) - len(numbers)
        text = b" ".join(numbers)
    if not text.strip():
        return np.zeros(0, np.int64), others
    return np.fromstring(text.decode("ascii"), np.int64, sep=" "), others


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
    unknown = collections.Counter(numbers[calls == vocabulary.unk].tolist())
    for number, times in sorted(unknown.items()):
        counters.count_unknown(f"number {number}", times)
    return calls


def drop_large(numbers: np.ndarray, counters: Counters) -> np.ndarray:
    """A mask `[n]` of the numbers that may be a call's; the others are counted as skipped."""
    usable = numbers <= _MAX_NUMBER
    if dropped := int((~usable).sum()):
        counters.skipped[NOT_A_CALL_NUMBER] += dropped
    return usable
