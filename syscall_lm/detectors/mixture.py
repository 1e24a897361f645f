"""Context mixing: many simple models of the next call, trusted by how well they have done in the trace so far."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm.detectors import lanes
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.surprisal import SurprisalDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array

RAREST = 1e-30  # a probability


class ContextMixture(SurprisalDetector):
    """Average negative log-likelihood under a mixture of K experts, weighted anew before every call.

    Experts are n-gram models of several orders and *lagged* bigrams, which know the call d before, nothing in between:

      P_d(x_t | x_(t-d)) = (c_d(x_(t-d), x_t) + t_d(x_(t-d)) P_1(x_t)) / (c_d(x_(t-d)) + t_d(x_(t-d)))

    with counts c_d and kinds of followers t_d as in `NGram`, and P_1 its order 1. Where threads interleave or a
    recording lost calls, contexts of consecutive calls are torn apart while some lag still fits. A trace starts with
    equal weights, and

      P(x_t) = sum_k w_k(t) P_k(x_t),    w_k(t+1) = (1 - share) w_k(t) P_k(x_t) / P(x_t) + share / K

    the fixed-share rule (Herbster & Warmuth 1998): Bayes' rule for a best expert that changes with probability `share`.
    On no stretch does the mixture do much worse than the expert that suits it best.

    Args:
      vocabulary_size: V.
      orders: of the n-gram models, calls.
      lags: d, at least one.
      share: of the weights that is dealt out evenly after each call.
      false_alarm_rate: see `Detector`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        orders: Sequence[int] = (1, 2, 3, 5, 8, 12),
        lags: Sequence[int] = tuple(range(2, 13)),
        share: float = 0.05,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if not orders or min(orders) < 1 or min(lags, default=1) < 1 or not 0 <= share <= 1:
            raise SyscallLMError(f"a mixture cannot have orders={orders}, lags={lags}, share={share}")
        self.vocabulary_size, self.share = vocabulary_size, share
        self.orders, self.lags = tuple(sorted(set(orders))), tuple(lags)

    def _fit(self, normal: Sequences) -> None:
        self._ngram = NGram(self.vocabulary_size, max(self.orders)).learn(normal)
        # Tables have a row for each call that occurs, one for all others, and one for what stands before a trace.
        occurring = np.unique(normal.calls)
        self._numbers = np.full(self.vocabulary_size, len(occurring))
        self._numbers[occurring] = np.arange(len(occurring))
        self._start, size = len(occurring) + 1, len(occurring) + 2
        self._lagged: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # c_d(x, y), its sum over y, t_d(x)
        for lag in self.lags:
            calls, before = self._pairs(normal, lag)
            counts = np.bincount(before * size + calls, minlength=size**2).reshape(size, size)
            self._lagged.append((counts, counts.sum(axis=1), (counts > 0).sum(axis=1)))

    def _pairs(self, traces: Sequences, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """The number of each call, and of that `lag` places before it, the last one where the trace had not begun."""
        numbers = self._numbers[traces.calls]
        place = np.arange(len(numbers)) - np.repeat(traces.offsets[:-1], traces.lengths)
        return numbers, np.where(place < lag, self._start, np.roll(numbers, lag))

    def experts(self, traces: Sequences) -> Iterator[np.ndarray]:
        """P(call) of each expert, float64 `[total]`, the n-gram models by order, then the lagged ones."""
        unigram = np.ones(0)
        for order, probability in enumerate(self._ngram.probabilities(traces), start=1):
            if order == 1:
                unigram = probability
            if order in self.orders:
                yield probability
        for lag, (counts, totals, followers) in zip(self.lags, self._lagged, strict=True):
            calls, before = self._pairs(traces, lag)
            kinds = followers[before]
            known = np.where(kinds > 0, totals[before] + kinds, 1)
            yield np.where(kinds > 0, (counts[before, calls] + kinds * unigram) / known, unigram)

    def probabilities(self, traces: Sequences) -> np.ndarray:
        """What each of `experts` gives the call that came, float32 `[K, total]`."""
        probabilities = np.empty((len(self.orders) + len(self.lags), len(traces.calls)), np.float32)
        for number, probability in enumerate(self.experts(traces)):
            probabilities[number] = probability
        return probabilities

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-ln P(call | the calls before it) in nats, float32 `[total]`, laid out like `traces.calls`."""
        return mixed(self.probabilities(traces), traces, self.share)


def mixed(probabilities: np.ndarray, traces: Sequences, share: float) -> np.ndarray:
    """Surprisal of each call under the fixed-share mixture of experts, see `ContextMixture`.

    Args:
      probabilities: `[K, total]`, what each expert gave the call that came; less than `RAREST` counts as that.
      traces: whose calls these are.
      share: see `ContextMixture`.

    Returns:
      float32 `[total]`, nats.
    """
    experts = len(probabilities)
    packer = packing.Packer(traces, go=0)

    def forward(weights: Array, plan: np.ndarray) -> tuple[Array, Array]:
        tile = np.maximum(np.moveaxis(probabilities[:, plan], 0, -1), RAREST)  # padding reads any call's
        return _forward(weights, tile.astype(np.float32), packer.gather(plan).reset, share)

    return lanes.scan(traces, lambda width: jnp.full((width, experts), 1 / experts), forward)


@jax.jit
def _forward(weights: Array, probabilities: Array, reset: Array, share: float) -> tuple[Array, Array]:
    """One tile: weights `[B, K]`, probabilities `[T, B, K]`, reset `[T, B]` to weights, and surprisal `[T, B]`."""
    even = 1 / weights.shape[1]

    def step(weights: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        probabilities, reset = inputs
        joint = jnp.where(reset[:, None], even, weights) * probabilities
        total = joint.sum(axis=1, keepdims=True)
        return (1 - share) * joint / total + share * even, -jnp.log(total[:, 0])

    return jax.lax.scan(step, weights, (probabilities, reset))
