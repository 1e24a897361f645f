"""The public function: checks its arguments and chooses an implementation."""

import jax
import numpy as np

from syscall_lm.kernels.nll import reference, xla

Array = jax.Array | np.ndarray

IMPLEMENTATIONS = {"reference": reference.nll, "xla": xla.nll}


def nll(h: Array, w_out: Array, b_out: Array, targets: Array, *, implementation: str | None = None) -> jax.Array:
    """-log softmax(h @ w_out + b_out)[target] in nats; differentiable in `h`, `w_out` and `b_out`.

    Args:
      h: `[..., H]`; the leading axes are those of `targets`.
      w_out: `[H, V]`.
      b_out: `[V]`.
      targets: int `[...]`, ids below V.
      implementation: "reference", "xla", or None for the best that this device has.

    Returns:
      `[...]`, nats per call (Kim et al., eq. 1).

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    cells, size = w_out.shape
    if h.shape != (*targets.shape, cells) or b_out.shape != (size,):
        raise ValueError(
            f"h {h.shape}, w_out {w_out.shape}, b_out {b_out.shape} and targets {targets.shape} must be "
            "[..., H], [H, V], [V] and [...]"
        )
    name = "xla" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name!r}: there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name](h, w_out, b_out, targets)
