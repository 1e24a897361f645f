"""Many rows times one matrix, and many rows of one table, with gradients as products."""

import math

import jax
import jax.numpy as jnp

from syscall_lm.kernels import choice

PARTS = 32  # of a gradient of `rows_of`
ONE_HOT = 1024  # rows of a table whose gradient may be a product, which holds a number for each row and call


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


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` in x's type; where w is of another type, of operands that are rounded to that."""
    return x @ w if w.dtype == x.dtype else jnp.matmul(x.astype(w.dtype), w, preferred_element_type=x.dtype)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of `w` in `x @ w`: `[..., D]` and `[..., G]` to `[D, G]`."""
    if choice.on_one_device():  # XLA on a CPU copies operands of more axes transposed
        return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    leading = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, dy, axes=(leading, leading))


@jax.custom_vjp
def rows_of(table: jax.Array, numbers: jax.Array) -> jax.Array:
    """`table[numbers]`; differentiable in `table`.

    On a GPU the gradient of a small table is a product with one-hot rows, in XLA's default precision there, and on one
    GPU in parts that are summed up, so that there is enough to do at a time: adding rows one by one is a queue for each
    row of the table (on an H200 0.55 ms for 65,536 rows of 800).

    Args:
      table: `[R, G]`.
      numbers: int `[...]`, each from 0 and less than R.

    Returns:
      `[..., G]`.
    """
    return table[numbers]


def _rows_forward(table, numbers):
    return table[numbers], (numbers, table.shape[0])


def _rows_backward(saved, dy):
    numbers, size = saved
    if jax.default_backend() == "cpu" or size > ONE_HOT:
        return jnp.zeros((size, dy.shape[-1]), dy.dtype).at[numbers].add(dy), None
    if not choice.on_one_device():
        return weight_gradient(jax.nn.one_hot(numbers, size, dtype=dy.dtype), dy), None
    parts = math.gcd(numbers.size, PARTS)
    hit = jax.nn.one_hot(numbers.reshape(parts, -1), size, dtype=dy.dtype)
    return jnp.einsum("prt,prg->ptg", hit, dy.reshape(parts, -1, dy.shape[-1])).sum(0), None


rows_of.defvjp(_rows_forward, _rows_backward)
