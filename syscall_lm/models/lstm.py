"""The LSTM stack as pure functions on plain arrays (legend: syscall_lm/types.py).

Parameters are one nested dict:

  embedding  [V + 1, E]    the last row is GO
  layers     {"0": {w_ih [D, 4H], w_hh [H, 4H], b [4H]}, "1": ...}    gates in the order i, f, g, o
  w_out      [H, V]
  b_out      [V]

Two paths share these parameters. `run` is for training: whole sequences, dropout, gradients. `fold` and `score` are for
scoring: whole traces, tiles and streams are all scored by `score`, with a carried state. In both, embedding,
input weights and bias of the first layer become one table `[V + 1, 4H]`: a call's share of the gates is a gather.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from syscall_lm.errors import SyscallLMError
from syscall_lm.kernels import lstm as lstm_kernel
from syscall_lm.kernels.nll import nll, weighted_nll
from syscall_lm.kernels.projection import project, rows_of
from syscall_lm.kernels.scoring import score_branching_tile, score_tile
from syscall_lm.types import Array, HostArray, Params

State = list[tuple[Array, Array]]  # (c, h) of every layer, each [B, H]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a language model. Kim et al. set E = H (section 3.2)."""

    vocabulary_size: int
    cells: int
    layers: int = 1

    @classmethod
    def parse(cls, text: str, vocabulary_size: int) -> "Shape":
        """Reads "2x400": layers x cells.

        Raises:
          SyscallLMError: the text does not say two positive numbers.
        """
        layers, _, cells = text.partition("x")
        if not (layers.isdecimal() and cells.isdecimal() and 0 < int(layers) <= 64 and 0 < int(cells) <= 2**14):
            raise SyscallLMError(
                f"{text!r} is no member; a member is LAYERSxCELLS, like 1x200, of at most 64 layers and 16,384 cells"
            )
        return cls(vocabulary_size, int(cells), int(layers))

    def __str__(self) -> str:
        return f"{self.layers}x{self.cells}"

    @property
    def flops_per_call(self) -> int:
        """Floating-point operations of scoring one call on the folded path."""
        h = self.cells
        return 8 * h * h * (2 * self.layers - 1) + 2 * h * self.vocabulary_size


def initial_state(params: Params, lanes: int, device: jax.sharding.Sharding | None = None) -> State:
    """The state before a trace: zeros, where `device` says; with the leading axis of members that parameters have."""

    def zeros(w_hh: Array) -> Array:
        *members, cells, _ = w_hh.shape
        return jnp.zeros((*members, lanes, cells), params["b_out"].dtype, device=device)

    return [(zeros(layer["w_hh"]), zeros(layer["w_hh"])) for layer in _layers(params)]


def _layers(params: Params) -> list[Params]:
    return [params["layers"][str(i)] for i in range(len(params["layers"]))]


def run(
    params: Params,
    inputs: HostArray,
    reset: HostArray,
    state: State,
    dropout_key: Array | None = None,
    dropout: float = 0.0,
    first: int | Array = 0,
) -> tuple[Array, State]:
    """Runs the stack over sequences; differentiable.

    Args:
      params: see the module.
      inputs: int `[T, B]`, the call before each position, GO at a trace's start.
      reset: bool `[T, B]`, true where a trace starts.
      state: before the first step.
      dropout_key: a PRNG key, or None for no dropout.
      dropout: the probability with which a connection from layer to layer or from layer to softmax is dropped. Those
        from the embedding stay (Zaremba et al., 2014, drop them too): so one table serves all calls, and ADFA-LD's
        held-out loss was no higher.
      first: the number of the first lane in the minibatch that these are a part of: dropout depends on it, not on the
        part.

    Returns:
      the last layer's h, dropout applied, `[T, B, H]`, and the state after the last step.
    """
    after: State = []
    with jax.named_scope("embedding"):
        x = rows_of(_table(params), jnp.asarray(inputs))
    for number, layer in enumerate(_layers(params)):
        with jax.named_scope(f"layer_{number}"):
            if number > 0:
                x = project(x, layer["w_ih"]) + layer["b"]
            h, carry = lstm_kernel.lstm(x, layer["w_hh"], reset, state[number])
            x = _drop(h, dropout_key, number + 1, dropout, first)
        after.append(carry)
    return x, after


def _table(params: Params) -> Array:
    """Every call's share of the first layer's gates, `[V + 1, 4H]`."""
    first = params["layers"]["0"]
    return project(params["embedding"], first["w_ih"]) + first["b"]


def _drop(h: Array, key: Array | None, site: int, rate: float, first: int | Array) -> Array:
    if key is None or rate == 0:
        return h
    steps, lanes, cells = h.shape
    key = jax.random.fold_in(key, site)

    def keep(lane: Array) -> Array:
        """`[T, H]`, from a key of the lane's own: whoever has some of the lanes makes no bits for the others."""
        words = jax.random.bits(jax.random.fold_in(key, lane), (-(-steps // 2), 1, cells))
        # 16 bits a number, two of a word: a probability to 1e-5, for half of `jax.random.bernoulli`'s time.
        halves = (words >> jnp.array([[0], [16]], words.dtype)) & 0xFFFF
        return halves.reshape(-1, cells)[:steps] < min(round((1 - rate) * 2**16), 2**16 - 1)

    return jnp.where(jax.vmap(keep, out_axes=1)(first + jnp.arange(lanes)), h / (1 - rate), 0)


def logits(params: Params, h: Array) -> Array:
    """`[..., H]` to unnormalised log-probabilities of the next call `[..., V]`."""
    return h @ params["w_out"] + params["b_out"]


def negative_log_likelihood(params: Params, h: Array, targets: HostArray) -> Array:
    """-log P(target | calls before it) in nats, for h `[..., H]` and int targets `[...]` (Kim et al., eq. 1)."""
    with jax.named_scope("head"):
        return nll(h, params["w_out"], params["b_out"], targets)


def weighted_loss(params: Params, h: Array, targets: HostArray, weights: HostArray) -> tuple[Array, Array, Array]:
    """The sum of all surprisals times their weights; see `kernels.nll.weighted_nll`."""
    with jax.named_scope("head"):
        return weighted_nll(h, params["w_out"], params["b_out"], targets, weights)


def fold(params: Params) -> Params:
    """Parameters for `step`: the embedding folded into the first layer's input gates."""
    first, *others = _layers(params)
    return {
        "table": _table(params),
        "layers": {"0": {"w_hh": first["w_hh"]}, **{str(i + 1): layer for i, layer in enumerate(others)}},
        "w_out": params["w_out"],
        "b_out": params["b_out"],
    }


def with_operands(folded: Params, kind: str) -> Params:
    """What `fold` returns, its matrices of that type: operands of products are rounded to it, sums are not."""
    layers = {
        number: {name: leaf.astype(kind) if leaf.ndim > 1 else leaf for name, leaf in layer.items()}
        for number, layer in folded["layers"].items()
    }
    return {**folded, "layers": layers, "w_out": folded["w_out"].astype(kind)}


def step(folded: Params, state: State, inputs: HostArray, reset: HostArray) -> tuple[State, Array]:
    """One call of every lane.

    Args:
      folded: what `fold` returns.
      state: before the call.
      inputs: int `[B]`, the previous call, or GO.
      reset: bool `[B]`, true where a trace starts.

    Returns:
      the state after the call, and the last layer's h `[B, H]`, from which the next call is predicted.
    """
    keep = ~reset[:, None]
    x = folded["table"][inputs]
    after: State = []
    for number, layer in enumerate(_layers(folded)):
        c, h = (jnp.where(keep, part, 0) for part in state[number])
        if number > 0:
            x = x @ layer["w_ih"] + layer["b"]
        c, h = lstm_kernel.cell(x + h @ layer["w_hh"], c)
        after.append((c, h))
        x = h
    return after, x


def score(folded: Params, state: State, inputs: HostArray, targets: HostArray, reset: HostArray) -> tuple[State, Array]:
    """Surprisal of every call of a tile; logits `[T, B, V]` never exist.

    Args:
      folded: what `fold` returns.
      state: before the first step.
      inputs, targets: int `[T, B]`, the previous call (or GO) and the call itself.
      reset: bool `[T, B]`, true where a trace starts.

    Returns:
      the state after the last step, and negative log-likelihoods `[T, B]` in nats per call.
    """
    with jax.named_scope("score_tile"):
        surprisal, after = score_tile(*_arrays(folded), inputs, targets, reset, state)
    return after, surprisal


def score_branching(
    folded: Params,
    state: State,
    kept: State,
    inputs: HostArray,
    targets: HostArray,
    reset: HostArray,
    branches: Sequence[HostArray],
) -> tuple[State, State, Array]:
    """`score` where lanes keep states, and go on from kept ones (see `kernels.scoring.score_branching_tile`).

    Returns:
      the state after the last step, what is kept then, and negative log-likelihoods `[T, B]` in nats per call.
    """
    with jax.named_scope("score_tile"):
        tile = inputs, targets, reset, state
        surprisal, after, kept = score_branching_tile(*_arrays(folded), *tile, kept, branches)
    return after, kept, surprisal


def _arrays(folded: Params) -> tuple[Array, list[Array], list[tuple[Array, Array]], Array, Array]:
    """What the scoring kernels take."""
    layers = _layers(folded)
    upper = [(layer["w_ih"], layer["b"]) for layer in layers[1:]]
    return folded["table"], [layer["w_hh"] for layer in layers], upper, folded["w_out"], folded["b_out"]


def over_members(function: Callable[..., Any], *stacked: Any, shared: tuple[Any, ...] = ()) -> Any:
    """Applies `function(*one_member, *shared)` to members of equal shape, stacked along a leading axis M.

    On an accelerator members run side by side (`vmap`); on a CPU one after another (`lax.map`), which was measured
    faster there, since one member's products already fill the cores.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda one: function(*one, *shared), stacked)
    return jax.vmap(lambda *one: function(*one, *shared))(*stacked)
