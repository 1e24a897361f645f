"""The autoencoder of Soni et al. (2019, section IV B, figure 3), as pure functions and a Flax shell.

A window of L calls is compressed to a few numbers, from which the same calls are to be told again. Parameters:

  w_code    [L, V + 1, K]    row V is GO: no call, where a trace ends before the window does
  b_code    [K]
  w_hidden  [L, K, H]
  b_hidden  [L, H]
  w_out     [H, V]
  b_out     [V]

The paper describes four layers in one sentence each, without shapes. Read into it:

I   "an input layer with the number of neurons equals to the number of features": the features are the one-hot calls of
    the window, L times V of them. (A product with one-hot input is a gather, so the input is never built.)
II  "a densely connected repeat vector layer with number of neurons to be of window size": a dense layer from all
    features to a code of K = L numbers, the "lower dimension", which a repeat vector then gives to each of L positions.
III "a dense output layer with linear activations": a linear dense layer over the repeated code, to H numbers for each
    position. It must have weights of its own for each position: with shared ones, as Keras applies a dense layer to
    a sequence, the L copies of the code would give L equal predictions, and no window could be reconstructed but one
    that repeats a single call. That is a dense layer over the flattened copies, reshaped; since the copies are equal,
    one copy's weights per position express all that it can.
IV  "a time distributed dense layer": H to V, the same for all positions, with a softmax, as categorical cross-entropy
    asks for.

Nothing stands between layers III and IV but a linear activation, so that their product can be taken first: a position's
logits are its code times a [K, V] matrix, K / H of the arithmetic, with the same parameters and gradients (`fold`).

There is no LSTM among the four layers, although the paper's title can be read as if there were. The code has no
activation either: section V says that the model was trained "with linear activation function". H is not printed.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm.traces.windows import Batch
from syscall_lm.types import Array, HostArray, Params

NAME = "autoencoder"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an autoencoder.

    Attributes:
      vocabulary_size: V.
      length: L, calls in a window, and the width K of the code.
      cells: H, the width of the hidden layer.
    """

    vocabulary_size: int
    length: int
    cells: int = 64

    @property
    def delay(self) -> int:
        """How many calls after a call a stream tells its surprisal: a window must be complete before it is decoded."""
        return self.length

    @property
    def flops_per_call(self) -> int:
        """Floating-point operations of scoring one call on the folded path: a position's code times `[K, V]`."""
        return 2 * self.length * self.vocabulary_size

    def __str__(self) -> str:
        return f"{NAME}-{self.length}x{self.cells}"


class Autoencoder(nn.Module):
    """Dense code, repeated, linear dense layer, time-distributed softmax; initialised as Keras does (Glorot, zeros)."""

    shape: Shape

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """Unnormalised log-probabilities of every call of the windows, `[L, B, V]`."""
        v, length, h = self.shape.vocabulary_size, self.shape.length, self.shape.cells
        zeros = nn.initializers.zeros_init()
        params = {
            # Dense from L * V features to K = L numbers.
            "w_code": self.param("w_code", _glorot, (length, v + 1, length), length * v),
            "b_code": self.param("b_code", zeros, (length,)),
            "w_hidden": self.param("w_hidden", _glorot, (length, length, h), length),
            "b_hidden": self.param("b_hidden", zeros, (length, h)),
            "w_out": self.param("w_out", _glorot, (h, v), h),
            "b_out": self.param("b_out", zeros, (v,)),
        }
        return logits(params, batch)


def _glorot(key: Array, size: tuple[int, ...], inputs: int) -> Array:
    limit = (6 / (inputs + size[-1])) ** 0.5
    return jax.random.uniform(key, size, jnp.float32, -limit, limit)


def initialise(key: Array, shape: Shape) -> Params:
    """Fresh parameters of one model."""
    ids = jnp.zeros((shape.length, 1), jnp.int32)
    return dict(Autoencoder(shape).init(key, Batch(ids, ids, ids == 0))["params"])


def fold(params: Params) -> Params:
    """Parameters with the two linear layers after the code as one."""
    with jax.named_scope("fold"):
        return {
            "w_code": params["w_code"],
            "b_code": params["b_code"],
            "w_told": params["w_hidden"] @ params["w_out"],  # [L, K, V]
            "b_told": params["b_hidden"] @ params["w_out"] + params["b_out"],  # [L, V]
        }


def encode(params: Params, calls: HostArray) -> Array:
    """The code of windows: int `[L, B]` to `[B, K]`."""
    with jax.named_scope("code"):
        rows = params["w_code"][jnp.arange(len(calls))[:, None], calls]  # [L, B, K]
        return rows.sum(0) + params["b_code"]


def logits(params: Params, batch: Batch) -> Array:
    """Unnormalised log-probabilities `[L, B, V]` of every call, told from the code of its whole window."""
    folded = fold(params)
    length, width, size = folded["w_told"].shape
    code = encode(folded, batch.calls)
    with jax.named_scope("head"):
        # One product for all positions; on a CPU it is twice as fast as a batch of L small ones.
        all_positions = jnp.swapaxes(folded["w_told"], 0, 1).reshape(width, length * size)
        told = (code @ all_positions).reshape(-1, length, size) + folded["b_told"]
        return jnp.swapaxes(told, 0, 1)


def judge(params: Params, batch: Batch, known: np.ndarray | None = None) -> tuple[Array, Array, Array]:
    """See `encoder_decoder.judge`; `known` spares work there, and means nothing here."""
    del known
    targets, told = jnp.where(batch.mask != 0, batch.calls, 0), logits(params, batch)
    # The log-sum-exp by hand: `jax.nn.logsumexp` looks for the highest a second time.
    highest = jax.lax.stop_gradient(told.max(-1))
    chosen = jnp.take_along_axis(told, targets[..., None], -1)[..., 0]
    nll = jnp.log(jnp.exp(told - highest[..., None]).sum(-1)) + highest - chosen
    return (batch.mask * nll).sum(), jax.lax.stop_gradient(nll), chosen >= highest


def surprisal(params: Params, batch: Batch) -> Array:
    """The reconstruction error -ln Q(call | its window), `[L, B]` in nats; meaningless where the batch is masked."""
    targets = jnp.where(batch.mask, batch.calls, 0)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(params, batch)), targets[..., None], -1)[..., 0]


def reconstruct(params: Params, batch: Batch) -> Array:
    """The most probable call at every position, int `[L, B]`: zero reconstruction error means that it is the window."""
    return jnp.argmax(logits(params, batch), -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamState:
    """What B live traces carry: one window being encoded while the one before it is decoded.

    Attributes:
      coming: `[B, K]`, the code of the window that is arriving, as far as it has arrived.
      code: `[B, K]`, the code of the window before.
      calls: int32 `[B, L]`, the last L calls, each at its position in its window; GO where there was none.
      position: int32 `[B]`, of the next call in its window.
    """

    coming: Array
    code: Array
    calls: Array
    position: Array


def begin(folded: Params, shape: Shape, lanes: int) -> StreamState:
    """The state before a trace."""
    del folded  # it is zeros, whatever was learned
    nothing = jnp.zeros((lanes, shape.length))
    none = jnp.full((lanes, shape.length), shape.vocabulary_size, jnp.int32)
    return StreamState(nothing, nothing, none, jnp.zeros(lanes, jnp.int32))


def advance(folded: Params, shape: Shape, state: StreamState, calls: Array) -> tuple[StreamState, Array]:
    """One call of every live trace, at the cost of decoding one position.

    A window can be told from its code only when all of it has arrived. Decoding it then at once would cost L positions
    in one go; instead one of its calls is decoded with each call of the next window. The surprisals equal those of
    `logits` on windows of stride L; L times GO after a trace's end brings those of its last calls.

    Args:
      folded: what `fold` returns.
      shape: of the model.
      state: before the call.
      calls: int `[B]`.

    Returns:
      the state after the call, and the surprisal `[B]` in nats of the call that came L calls before; NaN if none did.
    """
    lanes, at = jnp.arange(len(calls)), state.position
    targets = state.calls[lanes, at]
    scores = jnp.einsum("bk,bkv->bv", state.code, folded["w_told"][at]) + folded["b_told"][at]
    there = targets < shape.vocabulary_size
    nll = -jax.nn.log_softmax(scores)[lanes, jnp.where(there, targets, 0)]
    coming = state.coming + folded["w_code"][at, calls]
    complete = (at == shape.length - 1)[:, None]
    after = StreamState(
        coming=jnp.where(complete, 0, coming),
        code=jnp.where(complete, coming + folded["b_code"], state.code),
        calls=state.calls.at[lanes, at].set(calls.astype(jnp.int32)),
        position=(at + 1) % shape.length,
    )
    return after, jnp.where(there, nll, jnp.nan)
