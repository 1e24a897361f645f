"""The recurrence as a scan with a hand-written backward pass, shaped for what XLA does well.

All gates go through one tanh, since sigmoid(z) = (1 + tanh(z / 2)) / 2: a single pass over `[B, 4H]`, which XLA neither
splits nor computes twice, as it does with four different functions.

Differentiating a scan would accumulate the gradient of `w_hh` step by step, one small product each. Here the backward
scan only finds the gradients of the gates; the weights' gradient is then one large product over all steps.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def lstm(x, w_hh, reset, carry):
    """See `api.lstm`."""
    (h, carry), _ = _forward(x, w_hh, reset, carry)
    return h, carry


def cell(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step from the summed gates.

    Args:
      gates: `[B, 4H]`, pre-activations in the order i, f, g, o.
      c: `[B, H]`, the cell state before the step.

    Returns:
      `(c, h)` after the step, each `[B, H]`.
    """
    return _cell(_tanh(gates), c)


def _tanh(gates):
    """The tanh of pre-activations, of their halves for i, f and o; tanh(z) = 2 sigmoid(2 z) - 1."""
    cells = gates.shape[-1] // 4
    half = jnp.full(cells, 0.5, gates.dtype)
    return jnp.tanh(gates * jnp.concatenate([half, half, jnp.ones(cells, gates.dtype), half]))


def _activated(tanh_gates):
    i, f, g, o = jnp.split(tanh_gates, 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


def _cell(tanh_gates, c):
    i, f, g, o = _activated(tanh_gates)
    c = f * c + i * g
    return c, o * jnp.tanh(c)


def _forward(x, w_hh, reset, carry):
    def step(carry, inputs):
        x, reset = inputs
        keep = 1 - reset[:, None].astype(x.dtype)
        c, h = (part * keep for part in carry)
        tanh_gates = _tanh(x + h @ w_hh)
        c, h = _cell(tanh_gates, c)
        return (c, h), (h, c, tanh_gates)

    after, (h, c, tanh_gates) = jax.lax.scan(step, carry, (x, reset))
    return (h, after), (h, c, tanh_gates, w_hh, reset, carry)


def _backward(saved, gradients):
    h, c, tanh_gates, w_hh, reset, carry = saved
    dh_out, (dc_last, dh_last) = gradients
    keep = 1 - reset[..., None].astype(h.dtype)
    c_before = jnp.concatenate([carry[0][None], c[:-1]]) * keep
    h_before = jnp.concatenate([carry[1][None], h[:-1]]) * keep
    w_hh_transposed = w_hh.T

    def step(later, inputs):
        dc, dh = later
        dh_out, tanh_gates, c, c_before, keep = inputs
        i, f, g, o = _activated(tanh_gates)
        tanh_c = jnp.tanh(c)
        dh = dh + dh_out
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dgates = jnp.concatenate(
            [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)], -1
        )
        return (dc * f * keep, (dgates @ w_hh_transposed) * keep), dgates

    before, dx = jax.lax.scan(step, (dc_last, dh_last), (dh_out, tanh_gates, c, c_before, keep), reverse=True)
    dw_hh = jnp.einsum("tbh,tbg->hg", h_before, dx)
    return dx, dw_hh, None, before


lstm.defvjp(_forward, _backward)
