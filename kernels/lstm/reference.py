"""The recurrence as clearly as it can be said; every other implementation must equal it."""

import jax
import jax.numpy as jnp


def cell(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step from the summed gates.

    Args:
      gates: `[B, 4H]`, pre-activations in the order i, f, g, o.
      c: `[B, H]`, the cell state before the step.

    Returns:
      `(c, h)` after the step, each `[B, H]`.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def lstm(x, w_hh, reset, carry):
    """See `api.lstm`."""

    def step(carry, inputs):
        x, reset = inputs
        c, h = (jnp.where(reset[:, None], 0, part) for part in carry)
        c, h = cell(x + h @ w_hh, c)
        return (c, h), h

    carry, h = jax.lax.scan(step, carry, (x, reset))
    return h, carry
