"""The n-gram language model: a Markov chain of any order, smoothed (the alternative of Kim et al., section 2.1)."""

from collections.abc import Iterator

import numpy as np

from syscall_lm.detectors.surprisal import SurprisalDetector
from syscall_lm.detectors.windows import PAD, Text, Windows
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class NGram(SurprisalDetector):
    """Average negative log-likelihood under an interpolated n-gram model, Witten-Bell (Witten & Bell 1991, method C).

    With h the k - 1 calls before w, h' the same without its first, c(h w) how often w followed h in training, c(h) the
    sum over all w, and t(h) how many different calls followed h,

      P_k(w | h) = (c(h w) + t(h) P_(k-1)(w | h')) / (c(h) + t(h)),    P_0(w) = 1 / V

    and P_k = P_(k-1) where h never occurred. Before a trace stand as many start symbols as the context is long; they
    are never predicted. Order 2 is the Markov chain of the literature, with smoothing.

    Args:
      vocabulary_size: V, ids that can be predicted.
      order: calls in an n-gram, at least 1.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, vocabulary_size: int, order: int = 8, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        if order < 1 or vocabulary_size < 1:
            raise SyscallLMError(f"an n-gram model cannot have order {order} and {vocabulary_size} calls")
        self.vocabulary_size, self.order = vocabulary_size, order

    def _fit(self, normal: Sequences) -> None:
        text = Text.of(normal, before=self.order - 1)
        self._windows = Windows(text, self.order)
        self._counts: list[np.ndarray] = []  # of each n-gram; those that end in a start symbol count nothing
        self._totals: list[np.ndarray] = []  # of each context: c(h)
        self._types: list[np.ndarray] = []  # t(h)
        contexts = 1
        for length, numbers in enumerate(self._windows.numbers(text), start=1):
            parents = self._windows.parents[length - 1]
            counts = np.bincount(numbers[_predicted(text, length)], minlength=len(parents))
            self._counts.append(counts)
            self._totals.append(np.bincount(parents, counts, minlength=contexts))
            self._types.append(np.bincount(parents, counts > 0, minlength=contexts))
            contexts = len(parents)

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-log P(call | the calls before it) in nats, float64 `[total]`, laid out like `traces.calls`."""
        *_, longest = self.probabilities(traces)
        return -np.log(longest)

    def probabilities(self, traces: Sequences) -> Iterator[np.ndarray]:
        """P_k(call | the k - 1 calls before it) for k = 1 to `order`, float64 `[total]` each."""
        text = Text.of(traces, before=self.order - 1)
        probability = np.full(len(traces.calls), 1 / self.vocabulary_size)
        contexts = np.zeros(len(text.calls), np.int64)
        for length, numbers in enumerate(self._windows.numbers(text), start=1):
            starts = _predicted(text, length)
            # An unseen n-gram or context is -1 and reads the zero at the end.
            count = np.append(self._counts[length - 1], 0)[numbers[starts]]
            total = np.append(self._totals[length - 1], 0)[contexts[starts]]
            types = np.append(self._types[length - 1], 0)[contexts[starts]]
            known = types > 0
            interpolated = (count + types * probability) / np.where(known, total + types, 1)
            probability = np.where(known, interpolated, probability)
            contexts = numbers
            yield probability


def _predicted(text: Text, length: int) -> np.ndarray:
    """Where the n-grams start whose last call is a real one, in the order of those calls."""
    return np.flatnonzero(text.calls != PAD) - (length - 1)
