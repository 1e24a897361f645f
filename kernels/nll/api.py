"""The public functions: they check their arguments and choose an implementation."""

import types

import jax
import numpy as np

from syscall_lm.kernels.nll import reference, xla

Array = jax.Array | np.ndarray

IMPLEMENTATIONS = {"reference": reference, "xla": xla}


def nll(h: Array, w_out: Array, b_out: Array, targets: Array, *, implementation: str | None = None) -> jax.Array:
    """-log softmax(h @ w_out + b_out)[target] in nats. Its gradient makes the logits anew, `weighted_nll`'s does not.

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
    return _chosen(implementation, h, w_out, b_out, targets).nll(h, w_out, b_out, targets)


def weighted_nll(
    h: Array, w_out: Array, b_out: Array, targets: Array, weights: Array, *, implementation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum of all surprisals, each times its weight; differentiable in `h`, `w_out` and `b_out`.

    Args:
      h, w_out, b_out, targets, implementation: see `nll`; there is at least one leading axis.
      weights: float `[...]`, as `targets`.

    Returns:
      the sum; and, without gradients, the surprisals `[...]` in nats and bool `[...]`, whether each target is the most
      probable call.

    Raises:
      ValueError: as `nll`.
    """
    if weights.shape != targets.shape or not targets.shape:
        raise ValueError(f"weights {weights.shape} and targets {targets.shape} must be equal and have an axis at least")
    return _chosen(implementation, h, w_out, b_out, targets).weighted_nll(h, w_out, b_out, targets, weights)


def _chosen(implementation: str | None, h: Array, w_out: Array, b_out: Array, targets: Array) -> types.ModuleType:
    cells, size = w_out.shape
    if h.shape != (*targets.shape, cells) or b_out.shape != (size,):
        raise ValueError(
            f"h {h.shape}, w_out {w_out.shape}, b_out {b_out.shape} and targets {targets.shape} must be "
            "[..., H], [H, V], [V] and [...]"
        )
    name = "xla" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name!r}: there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]
