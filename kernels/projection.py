"""A product of many rows with one matrix, whose gradient needs no transposed copy."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def project(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w`; differentiable.

    JAX's own rule writes the gradient of `w` with the large operands the other way round, and XLA on a CPU then copies
    both transposed, which takes longer than the product.

    Args:
      x: `[..., D]`.
      w: `[D, G]`.

    Returns:
      `[..., G]`.
    """
    return x @ w


def _forward(x, w):
    return x @ w, (x, w)


def _backward(saved, dy):
    x, w = saved
    return dy @ w.T, weight_gradient(x, dy)


project.defvjp(_forward, _backward)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of `w` in `x @ w`: `[..., D]` and `[..., G]` to `[D, G]`."""
    leading = tuple(range(x.ndim - 1))  # not merged into one: lanes may lie on different devices, steps do not
    return jnp.tensordot(x, dy, axes=(leading, leading))
