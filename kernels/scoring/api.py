"""The public function: checks its arguments and chooses an implementation."""

from collections.abc import Sequence

import jax
import numpy as np

from syscall_lm.kernels import choice
from syscall_lm.kernels.scoring import by_layer, reference, xla

Array = jax.Array | np.ndarray
Carry = Sequence[tuple[Array, Array]]

# Lanes for each layer from which on one kernel scores faster than layer by layer does. On an H100 (results/gpu/h100) it
# took 1.7 ms for 2,048 lanes of 1x200, 3.1 of 1x400, and 11.5 for 4,096 of 2x400, where the least times layer by layer
# were 2.4, 4.7 and 19; and as long for half of the lanes, where those were little more than half.
FEWEST_LANES = 2048

IMPLEMENTATIONS = {
    "reference": reference.score_tile,
    "xla": xla.score_tile,
    "by_layer": by_layer.score_tile,
    "mosaic_gpu": choice.on_call("syscall_lm.kernels.scoring.mosaic_gpu", "score_tile"),
}


def score_tile(
    table: Array,
    w_hh: Sequence[Array],
    upper: Sequence[tuple[Array, Array]],
    w_out: Array,
    b_out: Array,
    inputs: Array,
    targets: Array,
    reset: Array,
    carry: Carry,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Surprisal of every call of a tile; logits of a whole tile never exist. Not differentiable.

    Args:
      table: `[V + 1, 4H]`, the embedding folded into the first layer's input gates, bias included.
      w_hh: `[H, 4H]` for each layer, the recurrent weights. In bfloat16, as w_ih and w_out, "xla" rounds the other
        operand of their products to it too; all that is added up is float32.
      upper: `(w_ih [H, 4H], b [4H])` for each layer after the first.
      w_out: `[H, V]`.
      b_out: `[V]`.
      inputs: int `[T, B]`, the call before each position, V at a trace's start.
      targets: int `[T, B]`, the calls.
      reset: bool `[T, B]`, true where a trace starts: the state is zero before that step.
      carry: `(c, h)` for each layer, each `[B, H]`, the state before the first step.
      implementation: "reference", "xla" (one scan), "by_layer" (all steps of a layer, then the next), "mosaic_gpu"
        (one kernel, for NVIDIA Hopper; bfloat16 operands, float32 c and sums), or None for the best on this device.

    Returns:
      negative log-likelihoods `[T, B]` in nats per call, and the state after the last step.

    Raises:
      ValueError: shapes that do not fit, an unknown implementation, or one that cannot run here.
    """
    _require_shapes(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry)
    on_hopper = ("mosaic_gpu", "by_layer") if inputs.shape[1] >= FEWEST_LANES * len(w_hh) else ("by_layer",)
    arguments = (table, list(w_hh), list(upper), w_out, b_out, inputs, targets, reset, list(carry))
    return choice.dispatch("score_tile", IMPLEMENTATIONS, implementation, arguments, on_hopper)


def score_branching_tile(
    table: Array,
    w_hh: Sequence[Array],
    upper: Sequence[tuple[Array, Array]],
    w_out: Array,
    b_out: Array,
    inputs: Array,
    targets: Array,
    reset: Array,
    carry: Carry,
    kept: Carry,
    branches: Sequence[Array],
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]], list[tuple[jax.Array, jax.Array]]]:
    """`score_tile` where lanes keep states, and go on from kept ones: beginnings of traces are scored once. By XLA.

    Args:
      table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry: see `score_tile`.
      kept: `(c, h)` for each layer, each `[S, H]`, the states in S slots.
      branches: int32 `[T, E]` each, up to E of a kind a step: lanes that before it go on from a kept state, and from
        which slot; lanes whose state after it is kept, and in which slot. Lanes from B on and slots from S on mean
        nothing.

    Returns:
      surprisals `[T, B]`, the state after the last step, and what the slots hold then.

    Raises:
      ValueError: shapes that do not fit.
    """
    _require_shapes(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry)
    shapes = {part.shape for part in branches}
    if len(branches) != 4 or len(shapes) != 1 or next(iter(shapes))[:1] != inputs.shape[:1]:
        raise ValueError(f"branches are {sorted(shapes)} and must be four of one shape ({inputs.shape[0]}, E)")
    slots = {part.shape for pair in kept for part in pair}
    if len(kept) != len(w_hh) or len(slots) != 1 or next(iter(slots))[1:] != w_out.shape[:1]:
        raise ValueError(f"kept is {sorted(slots)} and must be (S, {w_out.shape[0]}), for each of {len(w_hh)} layers")
    return xla.score_branching_tile(
        table, list(w_hh), list(upper), w_out, b_out, inputs, targets, reset, list(carry), list(kept), tuple(branches)
    )


def _require_shapes(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry):
    cells, vocabulary = w_out.shape
    steps, lanes = inputs.shape
    expected = {
        "table": (table.shape, (vocabulary + 1, 4 * cells)),
        "b_out": (b_out.shape, (vocabulary,)),
        "targets": (targets.shape, (steps, lanes)),
        "reset": (reset.shape, (steps, lanes)),
        "w_hh": ([w.shape for w in w_hh], [(cells, 4 * cells)] * (len(upper) + 1)),
        "upper": ([(w.shape, b.shape) for w, b in upper], [((cells, 4 * cells), (4 * cells,))] * len(upper)),
        "carry": ([part.shape for pair in carry for part in pair], [(lanes, cells)] * (2 * len(w_hh))),
    }
    for name, (shape, wanted) in expected.items():
        if shape != wanted:
            raise ValueError(f"{name} is {shape} and must be {wanted}, for w_out {w_out.shape}, inputs {inputs.shape}")
