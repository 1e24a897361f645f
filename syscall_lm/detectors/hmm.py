"""Hidden Markov model: Baum-Welch and forward likelihood in JAX, many traces side by side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm.detectors import lanes
from syscall_lm.detectors.surprisal import SurprisalDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array

CALLS_PER_PASS = 2**19  # training keeps the forward vectors of about so many calls at a time


class Parameters(NamedTuple):
    """A discrete HMM with S hidden states; every row is a distribution.

    Attributes:
      start: `[S]`, of a trace's first state.
      transition: `[S, S]`, from a state to the next.
      emission: `[S, V]`, of the call that a state makes.
    """

    start: Array
    transition: Array
    emission: Array


class Counts(NamedTuple):
    """Expected counts under the present parameters: what Baum-Welch's second half divides.

    Attributes:
      start, transition, emission: as in `Parameters`, but counts.
      log_likelihood: of the calls, natural logarithm.
    """

    start: Array
    transition: Array
    emission: Array
    log_likelihood: Array


class HiddenMarkov(SurprisalDetector):
    """Average negative log-likelihood under a hidden Markov model (Warrender et al. 1999; Hoang et al. 2003).

    Baum-Welch (Rabiner 1989, section III) finds the parameters, the forward algorithm gives

      P(x_t | x_1 ... x_(t-1)) = sum_j (sum_i a_(t-1)(i) A_ij) B_j(x_t),    a_t(j) proportional to its term, sum 1

    and the score is -1/T sum_t ln P. Warrender et al. take about as many states as a program makes different calls
    (20 to 60) and judge single calls by their most likely transition; a whole trace's likelihood compares with the
    other detectors. A call that training never saw would be impossible, so `pseudocount` is shared out among
    all V calls of each state.

    Args:
      vocabulary_size: V.
      states: S.
      iterations: of Baum-Welch, at most.
      tolerance: stop when an iteration gains less, in nats per call.
      pseudocount: expected calls that each state is given in advance, spread evenly over V; a Dirichlet prior.
      seed: of the first parameters.
      false_alarm_rate: see `Detector`.

    Attributes:
      parameters_: after `fit`.
      history_: training log-likelihood before each iteration, nats per call.
    """

    def __init__(
        self,
        vocabulary_size: int,
        states: int = 40,
        iterations: int = 60,
        tolerance: float = 1e-3,
        pseudocount: float = 1.0,
        seed: int = 0,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if states < 1 or iterations < 1 or not pseudocount >= 0:
            raise SyscallLMError(
                f"an HMM cannot have states={states}, iterations={iterations}, pseudocount={pseudocount}"
            )
        self.vocabulary_size, self.states = vocabulary_size, states
        self.iterations, self.tolerance, self.pseudocount, self.seed = iterations, tolerance, pseudocount, seed

    def _fit(self, normal: Sequences) -> None:
        tiles = training_tiles(normal)
        parameters = initial(normal, self.vocabulary_size, self.states, self.seed)
        prior = self.pseudocount / self.vocabulary_size
        self.history_: list[float] = []
        for _ in range(self.iterations):
            counts = expected(parameters, tiles)
            self.history_.append(float(counts.log_likelihood) / len(normal.calls))
            parameters = maximised(counts._replace(emission=counts.emission + prior), parameters)
            if len(self.history_) > 1 and self.history_[-1] - self.history_[-2] < self.tolerance:
                break
        self.parameters_ = parameters

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-ln P(call | the calls before it) in nats, float32 `[total]`, laid out like `traces.calls`."""
        return surprisal(self.parameters_, traces)


def initial(normal: Sequences, vocabulary_size: int, states: int, seed: int) -> Parameters:
    """Random parameters: every state emits about what the training traces hold, and no two alike."""
    rng = np.random.default_rng(seed)
    unigram = np.bincount(normal.calls, minlength=vocabulary_size) + 1 / vocabulary_size
    emission = unigram * rng.uniform(0.5, 1.5, (states, vocabulary_size))
    transition = rng.dirichlet(np.ones(states), states)
    start = rng.dirichlet(np.ones(states))
    emission /= emission.sum(axis=1, keepdims=True)
    return Parameters(*(jnp.asarray(part, jnp.float32) for part in (start, transition, emission)))


def training_tiles(normal: Sequences) -> list[packing.Tile]:
    """All traces in tiles of one shape; a trace lies within one tile, so that no tile needs the next one."""
    groups: list[list[int]] = [[]]
    size = 0
    for trace, length in enumerate(normal.lengths):
        if groups[-1] and size + length > CALLS_PER_PASS:
            groups.append([])
            size = 0
        groups[-1].append(trace)
        size += int(length)
    parts = [normal.take(np.array(group)) for group in groups]
    # No more lanes than the longest trace leaves filled: one of 60,000 calls among short ones would be mostly padding.
    calls = min(CALLS_PER_PASS, len(normal.calls))
    width = min(lanes.LANES, max(map(len, parts)), -(-calls // normal.longest))
    plans = [np.concatenate(list(packing.lane_plans(part, width, lanes.STEPS))) for part in parts]
    steps = max(map(len, plans))
    padded = [np.pad(plan, ((0, steps - len(plan)), (0, 0)), constant_values=-1) for plan in plans]
    return [packing.Packer(part, go=0).gather(plan) for part, plan in zip(parts, padded, strict=True)]


def expected(parameters: Parameters, tiles: list[packing.Tile]) -> Counts:
    """The first half of a Baum-Welch iteration, over all tiles."""
    parts = [_expected(parameters, tile) for tile in tiles]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def maximised(counts: Counts, before: Parameters) -> Parameters:
    """The second half: counts to distributions. A state that was never visited keeps its old row."""

    def rows(count: Array, old: Array) -> Array:
        total = count.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, count / jnp.where(total > 0, total, 1), old)

    return Parameters(*(rows(count, old) for count, old in zip(counts[:3], before, strict=True)))


def _step(parameters: Parameters, alpha: Array, targets: Array, reset: Array) -> tuple[Array, Array]:
    """Forward, one call of every lane: alpha `[B, S]` before it to alpha after it (rows sum to 1) and P(call) `[B]`."""
    predicted = jnp.where(reset[:, None], parameters.start, alpha @ parameters.transition)
    joint = predicted * parameters.emission.T[targets]
    scale = joint.sum(axis=1)
    return joint / _divisor(scale), scale


def _divisor(scale: Array) -> Array:
    """`[B, 1]`; one instead of zero, which an impossible call has, or padding."""
    return jnp.where(scale > 0, scale, 1)[:, None]


@jax.jit
def _forward(parameters: Parameters, alpha: Array, tile: packing.Tile) -> tuple[Array, Array]:
    def body(alpha: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        alpha, scale = _step(parameters, alpha, *inputs)
        return alpha, -jnp.log(scale)

    return jax.lax.scan(body, alpha, (jnp.asarray(tile.targets), jnp.asarray(tile.reset)))


@jax.jit
def _expected(parameters: Parameters, tile: packing.Tile) -> Counts:
    """Expected counts of one tile `[T, B]` (Rabiner 1989, eq. 27 to 40, with his scaling)."""
    start, transition, emission = parameters
    targets, reset, mask = (jnp.asarray(part) for part in (tile.targets, tile.reset, tile.mask))
    uniform = jnp.full((targets.shape[1], len(start)), 1 / len(start))

    def forward(alpha: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array, Array]]:
        after, scale = _step(parameters, alpha, *inputs)
        return after, (alpha, after, scale)

    _, (before, after, scale) = jax.lax.scan(forward, uniform, (targets, reset))

    def backward(carry: tuple[Array, Counts], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Counts], None]:
        beta, counts = carry
        targets, reset, mask, before, after, scale = inputs
        gamma = jnp.where(mask[:, None], after * beta, 0)  # P(state | the whole trace)
        arriving = emission.T[targets] * beta / _divisor(scale)
        inner = jnp.where((mask & ~reset)[:, None], arriving, 0)
        counts = Counts(
            counts.start + jnp.where(reset[:, None], gamma, 0).sum(axis=0),
            counts.transition + before.T @ inner,
            counts.emission.at[targets].add(gamma),  # [V, S] here: rows are what a scatter adds
            counts.log_likelihood + jnp.where(mask, jnp.log(scale), 0).sum(),
        )
        beta = jnp.where(reset[:, None], 1, arriving @ transition.T)
        return (beta, counts), None

    zero = Counts(jnp.zeros_like(start), jnp.zeros_like(transition), jnp.zeros_like(emission.T), jnp.zeros(()))
    inputs = (targets, reset, mask, before, after, scale)
    (_, counts), _ = jax.lax.scan(backward, (jnp.ones_like(uniform), zero), inputs, reverse=True)
    return counts._replace(transition=counts.transition * transition, emission=counts.emission.T)


def surprisal(parameters: Parameters, traces: Sequences) -> np.ndarray:
    """-ln P(call | the calls before it) in nats, float32 `[total]`; traces of any lengths."""
    packer = packing.Packer(traces, go=0)

    def forward(alpha: Array, plan: np.ndarray) -> tuple[Array, Array]:
        return _forward(parameters, alpha, packer.gather(plan))

    return lanes.scan(traces, lambda width: jnp.zeros((width, len(parameters.start))), forward)
