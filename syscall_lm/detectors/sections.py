"""Sections of a trace: how likely any part of it is, and detectors that look at parts (Kim et al., section 4)."""

from typing import Protocol, Self

import numpy as np

from syscall_lm import scoring
from syscall_lm.detectors.base import Detector
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

STRETCH = 75  # calls


class SurprisalSource(Protocol):
    """What gives every call a surprisal: an n-gram model, an HMM, a language model."""

    def learn(self, normal: Sequences) -> object:
        """Learns from normal traces."""
        ...

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-log P(call | the calls before it) in nats, `[total]`, laid out like `traces.calls`."""
        ...


class ThresholdedSource(SurprisalSource, Protocol):
    """A source that is a detector of whole traces, too."""

    threshold_: float

    def fit(self, normal: Sequences, held_out: Sequences | None = None) -> object:
        """Learns from normal traces and sets the threshold."""
        ...


def section_means(surprisal: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The average negative log-likelihood of any sections, in constant time each.

    Args:
      surprisal: `[total]`, nats per call.
      starts: `[S]`, the first call of each section.
      ends: `[S]`, after its last call; a section holds at least one.

    Returns:
      float64 `[S]`, nats per call. Times its length and negated, it is log P(section | the calls before it).

    Raises:
      SyscallLMError: a section is empty or reaches outside.
    """
    starts, ends = np.asarray(starts), np.asarray(ends)
    if len(starts) and (starts.min() < 0 or ends.max() > len(surprisal) or (ends <= starts).any()):
        raise SyscallLMError(f"a section must hold calls among 0 to {len(surprisal)}")
    total = np.concatenate([[0.0], np.cumsum(surprisal, dtype=np.float64)])
    return (total[ends] - total[starts]) / (ends - starts)


def longest_section(surprisal: np.ndarray, level: float, above: bool = True) -> tuple[int, int]:
    """The longest section whose average surprisal is at least `level` (at most, if not `above`), in linear time.

    A section i:j qualifies if the sum of (surprisal - level) up to j is not below that up to i. With the smallest sum
    up to any place at or before i, and the largest at or after j, both of which only fall, the longest one is found by
    two pointers that only move forward.

    Args:
      surprisal: `[T]`, one trace's, nats per call.
      level: nats per call.
      above: whether the average is to lie above the level, or below it.

    Returns:
      the section's start and end (exclusive); the first one of several; (0, 0) if no call qualifies.
    """
    excess = np.asarray(surprisal, np.float64) - level
    total = np.concatenate([[0.0], np.cumsum(excess if above else -excess)])
    lowest = np.minimum.accumulate(total).tolist()
    highest = np.maximum.accumulate(total[::-1])[::-1].tolist()
    best, i, j = (0, 0), 0, 0
    while j < len(highest):
        if highest[j] >= lowest[i]:
            if j - i > best[1] - best[0]:
                best = (i, j)
            j += 1
        else:
            i += 1
    return best


class Stretch(Detector):
    """Scores a trace by its calmest, or by its most surprising, stretch of w consecutive calls.

    With s_t the surprisal of call t,

      calmest   min_t (s_t + ... + s_(t+w-1)) / w
      highest   max_t (s_t + ... + s_(t+w-1)) / w

    over all stretches; the whole trace, if it is shorter. By the calmest stretch a trace is normal as soon as some part
    of it is familiar: that forgives the new parts of normal programs, and an attacker can buy it with w normal calls.
    By the highest stretch no padding helps the attacker (Kim et al., section 4, mimicry attacks).

    Args:
      source: gives surprisals; learns with this.
      which: "calmest" or "highest".
      length: w.
      false_alarm_rate: see `Detector`.
    """

    def __init__(
        self, source: SurprisalSource, which: str = "calmest", length: int = STRETCH, false_alarm_rate: float = 0.01
    ):
        super().__init__(false_alarm_rate)
        if which not in ("calmest", "highest") or length < 1:
            raise SyscallLMError(f"which={which!r}, length={length}: must be calmest or highest, of at least one call")
        self.source, self.which, self.length = source, which, length

    def _fit(self, normal: Sequences) -> None:
        self.source.learn(normal)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Nats per call, float64 `[N]`."""
        return stretch_means(self.source.surprisal(traces), traces, self.which, self.length)


class LongestSection(Detector):
    """Scores a trace by its longest section that is as surprising as an abnormal trace (Kim et al., section 4).

      max { j - i : (s_i + ... + s_(j-1)) / (j - i) >= level },    s_t the surprisal of call t

    The level is the source's own threshold for whole traces, which needs held-out ones: by the traces that the source
    learned from it is far too low. Normal calls around an attack do not shorten the section, and may lengthen it as
    long as its mean stays above the level: padding raises the score.

    Args:
      source: gives surprisals and the threshold of their means; `fit` fits it.
      false_alarm_rate: see `Detector`.

    Attributes:
      level_: after `fit`, nats per call.
    """

    needs_held_out = True

    def __init__(self, source: ThresholdedSource, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        self.source = source

    def fit(self, normal: Sequences, held_out: Sequences | None = None) -> Self:
        """Fits the source, whose threshold is the level, then its own threshold."""
        self.source.fit(normal, held_out)
        return super().fit(normal, held_out)

    def _fit(self, normal: Sequences) -> None:
        del normal  # the source has learned already
        self.level_ = self.source.threshold_  # kept, since others may fit the source again

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Calls, float64 `[N]`."""
        surprisal = self.source.surprisal(traces)
        bounds = zip(traces.offsets[:-1], traces.offsets[1:], strict=True)
        sections = [longest_section(surprisal[begin:end], self.level_) for begin, end in bounds]
        return np.array([end - start for start, end in sections], np.float64)


def stretch_means(surprisal: np.ndarray, traces: Sequences, which: str, length: int = STRETCH) -> np.ndarray:
    """The mean of each trace's calmest or highest stretch of `length` calls, `[total]` to float64 `[N]`."""
    sign = -1 if which == "calmest" else 1
    return sign * scoring.most_surprising_stretches(sign * surprisal, traces, length)[2]
