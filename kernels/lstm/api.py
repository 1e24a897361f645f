"""The public function: checks its arguments and chooses an implementation."""

import jax
import numpy as np

from syscall_lm.kernels import choice
from syscall_lm.kernels.lstm import reference, xla

Array = jax.Array | np.ndarray

IMPLEMENTATIONS = {
    "reference": reference.lstm,
    "xla": xla.lstm,
    "mosaic_gpu": choice.on_call("syscall_lm.kernels.lstm.mosaic_gpu", "lstm"),
}


def lstm(
    x: Array,
    w_hh: Array,
    reset: Array,
    carry: tuple[Array, Array],
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs one LSTM layer over time; differentiable in `x`, `w_hh` and `carry`.

    Gates stand in the order i, f, g, o; c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
    (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Args:
      x: `[T, B, 4H]`, the input's share of the gates, bias included.
      w_hh: `[H, 4H]`, the recurrent weights.
      reset: bool `[T, B]`, true where a new trace starts: the state is zero before that step.
      carry: `(c, h)`, each `[B, H]`, the state before the first step.
      implementation: "reference", "xla", "mosaic_gpu" (NVIDIA Hopper; bfloat16 operands, float32 c and sums), or None
        for the best that this device has.

    Returns:
      h of every step `[T, B, H]`, and the state after the last.

    Raises:
      ValueError: shapes that do not fit, an unknown implementation, or one that cannot run here.
    """
    steps, lanes, gates = x.shape
    cells = w_hh.shape[0]
    if w_hh.shape != (cells, 4 * cells) or gates != 4 * cells:
        raise ValueError(f"x {x.shape} and w_hh {w_hh.shape} must be [T, B, 4H] and [H, 4H]")
    if reset.shape != (steps, lanes) or any(part.shape != (lanes, cells) for part in carry):
        shapes = [part.shape for part in carry]
        raise ValueError(f"reset {reset.shape} and carry {shapes} must be {(steps, lanes)} and {(lanes, cells)}")
    return choice.dispatch("lstm", IMPLEMENTATIONS, implementation, (x, w_hh, reset, carry))
