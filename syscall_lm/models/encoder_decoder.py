"""The LSTM encoder-decoder of Soni et al. (2019, section IV A, figure 2), as pure functions and a Flax shell.

An encoder reads the last L calls, its state passes to a decoder, and the decoder gives the probabilities of the next L,
one after another. Parameters are one nested dict:

  embedding  [V + 1, H]    the last row is GO; encoder and decoder share it
  encoder    {w_ih [H, 4H], w_hh [H, 4H], b [4H]}    gates in the order i, f, g, o
  decoder    the same
  w_out      [H, V]
  b_out      [V]

What the paper leaves open was read so: one layer each; one embedding, since figure 2 shows one; as wide as a layer, as
in the language model; the decoder's first input is GO; while it is trained and scored, the later ones are the true
calls (teacher forcing). H is not printed.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm.kernels import lstm as lstm_kernel
from syscall_lm.kernels.projection import rows_of
from syscall_lm.models import lstm
from syscall_lm.traces.windows import Batch
from syscall_lm.types import Array, HostArray, Params

State = tuple[Array, Array]  # (c, h), each [B, H]
NAME = "encoder-decoder"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an encoder-decoder.

    Attributes:
      vocabulary_size: V.
      length: L, calls in a window.
      cells: H, of the encoder and of the decoder.
    """

    vocabulary_size: int
    length: int
    cells: int = 64

    @property
    def delay(self) -> int:
        """How many calls after a call a stream tells its surprisal: at once."""
        return 0

    @property
    def flops_per_call(self) -> int:
        """Floating-point operations of scoring one call: a step of the encoder, one of the decoder, and the head."""
        return 16 * self.cells**2 + 2 * self.cells * self.vocabulary_size

    def __str__(self) -> str:
        return f"{NAME}-{self.length}x{self.cells}"


class EncoderDecoder(nn.Module):
    """Embedding, LSTM encoder, LSTM decoder, softmax. All parameters start uniform in [-0.1, 0.1], as Kim et al.'s."""

    shape: Shape

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """Unnormalised log-probabilities of every call of the windows, `[L, B, V]`."""
        v, h = self.shape.vocabulary_size, self.shape.cells
        sizes = {"embedding": (v + 1, h), "w_out": (h, v), "b_out": (v,)}
        params: Params = {name: self.param(name, _uniform, size) for name, size in sizes.items()}
        for name in ("encoder", "decoder"):
            params[name] = self.param(name, _layer, h)
        return logits(params, batch)


def _uniform(key: Array, size: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, size, jnp.float32, -0.1, 0.1)


def _layer(key: Array, cells: int) -> Params:
    sizes = {"w_ih": (cells, 4 * cells), "w_hh": (cells, 4 * cells), "b": (4 * cells,)}
    keys = jax.random.split(key, len(sizes))
    return {name: _uniform(one, size) for one, (name, size) in zip(keys, sizes.items(), strict=True)}


def initialise(key: Array, shape: Shape) -> Params:
    """Fresh parameters of one model."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return dict(EncoderDecoder(shape).init(key, Batch(ids, ids, ids == 0))["params"])


def fold(params: Params, known: np.ndarray | None = None) -> Params:
    """Parameters with the embedding folded into the input gates: a call's share of the gates is a gather.

    Args:
      params: see the module.
      known: int `[K]`, the ids whose rows are wanted; None for all V + 1.
    """
    folded = {"w_out": params["w_out"], "b_out": params["b_out"]}
    with jax.named_scope("fold"):
        embedding = params["embedding"] if known is None else params["embedding"][known]
        for name in ("encoder", "decoder"):
            layer = params[name]
            table = embedding @ layer["w_ih"] + layer["b"]  # [V + 1 or K, 4H]
            folded[name] = {"table": table, "w_hh": layer["w_hh"]}
    return folded


def _zeros(folded: Params, lanes: int) -> State:
    cells = folded["encoder"]["w_hh"].shape[0]
    return jnp.zeros((lanes, cells)), jnp.zeros((lanes, cells))


def encode(folded: Params, before: HostArray) -> State:
    """The encoder's state after the calls `before`, int `[L, B]`."""
    encoder = folded["encoder"]
    with jax.named_scope("encoder"):
        x = rows_of(encoder["table"], jnp.asarray(before))
        c, _ = _zeros(folded, before.shape[1])
        state = lstm_kernel.cell(x[0], c)  # the state before is zero: the first step needs no product
        if len(before) > 1:
            never = jnp.zeros(before[1:].shape, bool)
            _, state = lstm_kernel.lstm(x[1:], encoder["w_hh"], never, state)
    return state


def decode(params: Params, batch: Batch, known: np.ndarray | None = None) -> Array:
    """The decoder's h `[L, B, H]` from which each call is predicted, given the calls before it (teacher forcing).

    Args:
      params: see the module.
      batch: B windows.
      known: int `[K]`, ascending, all ids that the batch holds and GO; None if they may be any. A small minibatch reads
        few rows of the folded table; making those of calls that never occur costs as much.
    """
    folded = fold(params, known)
    before, calls, go = batch.before, batch.calls, len(params["embedding"]) - 1
    if known is not None:
        row = jnp.asarray(np.searchsorted(known, np.arange(go + 1)).astype(np.int32))
        before, calls, go = row[before], row[calls], len(known) - 1
    decoder = folded["decoder"]
    state = encode(folded, before)
    with jax.named_scope("decoder"):
        inputs = jnp.concatenate([jnp.full_like(calls[:1], go), calls[:-1]])
        never = jnp.zeros(inputs.shape, bool)
        h, _ = lstm_kernel.lstm(rows_of(decoder["table"], inputs), decoder["w_hh"], never, state)
    return h


def logits(params: Params, batch: Batch) -> Array:
    """Unnormalised log-probabilities `[L, B, V]` of every call, given the calls before it (teacher forcing)."""
    return lstm.logits(params, decode(params, batch))


def judge(params: Params, batch: Batch, known: np.ndarray | None = None) -> tuple[Array, Array, Array]:
    """What training learns from, under teacher forcing; `[L, B, V]` never exists.

    Args:
      params, known: see `decode`.
      batch: B windows; its mask says how often each call counts.

    Returns:
      the sum of all surprisals in nats, each as often as it counts, differentiable; and the surprisals and whether each
      call is the most probable one, `[L, B]`, which mean nothing where the batch is masked.
    """
    times = batch.mask.astype(params["w_out"].dtype)
    return lstm.weighted_loss(params, decode(params, batch, known), jnp.where(times > 0, batch.calls, 0), times)


def surprisal(params: Params, batch: Batch) -> Array:
    """-ln P(call | the window before, the window's earlier calls) `[L, B]` in nats; `[L, B, V]` never exists.

    It means nothing where the batch is masked.
    """
    return lstm.negative_log_likelihood(params, decode(params, batch), jnp.where(batch.mask, batch.calls, 0))


def _step(layer: Params, state: State, inputs: Array) -> State:
    """One step of one layer for every lane; inputs int `[B]`."""
    c, h = state
    return lstm_kernel.cell(layer["table"][inputs] + h @ layer["w_hh"], c)


def greedy(params: Params, before: Array) -> Array:
    """Predicts the next L calls, each the most probable one after those predicted before it.

    A window is predicted exactly by this if and only if every call is the most probable one under teacher forcing: up
    to the first mistake both read the same inputs.

    Args:
      params: see the module.
      before: int `[L, B]`, GO where the trace had not begun.

    Returns:
      int32 `[L, B]`.
    """
    return beam(params, before, 1)[0][0]


def beam(params: Params, before: Array, width: int) -> tuple[Array, Array]:
    """Predicts the next L calls by beam search.

    Args:
      params: see the module.
      before: int `[L, B]`, GO where the trace had not begun.
      width: W, how many beginnings are kept after each call.

    Returns:
      int32 `[W, L, B]`, the sequences found, best first; float32 `[W, B]`, ln P of each (-inf for one that does not
      exist, where W exceeds V^L).
    """
    folded = fold(params)
    length, lanes = before.shape
    v = folded["b_out"].shape[0]
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, width, 0), encode(folded, before))  # [B * W, H]
    found = jnp.zeros((lanes, width, length), jnp.int32)
    score = jnp.full((lanes, width), -jnp.inf).at[:, 0].set(0.0)  # at first all beams are the same one

    def body(carry, time):
        state, previous, found, score = carry
        state = _step(folded["decoder"], state, previous.reshape(-1))
        step_score = jax.nn.log_softmax(lstm.logits(folded, state[1])).reshape(lanes, width, v)
        score, chosen = jax.lax.top_k((score[..., None] + step_score).reshape(lanes, width * v), width)
        parent, call = chosen // v, (chosen % v).astype(jnp.int32)
        rows = (jnp.arange(lanes)[:, None] * width + parent).reshape(-1)
        state = jax.tree.map(lambda leaf: leaf[rows], state)
        found = jnp.take_along_axis(found, parent[..., None], 1).at[:, :, time].set(call)
        return (state, call, found, score), None

    first = (state, jnp.full((lanes, width), v, jnp.int32), found, score)
    (_, _, found, score), _ = jax.lax.scan(body, first, jnp.arange(length))
    return found.transpose(1, 2, 0), score.T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamState:
    """What B live traces carry: one window being encoded while the one before it is decoded.

    Attributes:
      encoder, decoder: states.
      previous: int32 `[B]`, the last call.
      position: int32 `[B]`, of the next call in its window, 0 to L - 1.
    """

    encoder: State
    decoder: State
    previous: Array
    position: Array


def begin(folded: Params, shape: Shape, lanes: int) -> StreamState:
    """The state before a trace: the encoder has read L times GO."""
    encoder = encode(folded, jnp.full((shape.length, lanes), shape.vocabulary_size, jnp.int32))
    zeros = jnp.zeros(lanes, jnp.int32)
    return StreamState(encoder, _zeros(folded, lanes), zeros, zeros)


def advance(folded: Params, shape: Shape, state: StreamState, calls: Array) -> tuple[StreamState, Array]:
    """One call of every live trace, at the cost of one step of the encoder and one of the decoder.

    Where a window begins, the encoder's state becomes the decoder's, and the encoder starts anew: it will be ready when
    the window ends. The surprisals equal those of `logits` on windows of stride L.

    Args:
      folded: what `fold` returns.
      shape: of the model.
      state: before the call.
      calls: int `[B]`.

    Returns:
      the state after the call, and -ln P(call | the window before, the window's earlier calls) `[B]` in nats.
    """
    begins = state.position == 0

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(begins[:, None], new, old)

    decoder = jax.tree.map(choose, state.encoder, state.decoder)
    decoder = _step(folded["decoder"], decoder, jnp.where(begins, shape.vocabulary_size, state.previous))
    nll = lstm.negative_log_likelihood(folded, decoder[1], calls)
    encoder = jax.tree.map(lambda part: choose(jnp.zeros_like(part), part), state.encoder)
    encoder = _step(folded["encoder"], encoder, calls)
    return StreamState(encoder, decoder, calls.astype(jnp.int32), (state.position + 1) % shape.length), nll
