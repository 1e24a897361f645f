"""The recurrence as a scan with a hand-written backward pass, shaped for what XLA does well.

All gates go through one tanh, since sigmoid(z) = (1 + tanh(z / 2)) / 2: a single pass over `[B, 4H]`, which XLA neither
splits nor computes twice, as it does with four different functions.

Differentiating a scan would accumulate the gradient of `w_hh` step by step, one small product each. Here the backward
scan only finds the gradients of the gates; the weights' gradient is then one large product over all steps.
"""

import jax
import jax.numpy as jnp

from syscall_lm.kernels import elementary
from syscall_lm.kernels.projection import weight_gradient

UNROLLED = 16  # steps; a scan as short as that is written out, which saves a fifth of the training of windows of 15


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
    return _cell(tanh(gates), c)


def tanh(gates):
    """Of pre-activations `[..., 4H]`; for i, f and o of their halves, since 2 sigmoid(2 z) - 1 is the same."""
    cells = gates.shape[-1] // 4
    half = jnp.full(cells, 0.5, gates.dtype)
    return elementary.tanh(gates * jnp.concatenate([half, half, jnp.ones(cells, gates.dtype), half]))


def _activated(tanh_gates):
    i, f, g, o = jnp.split(tanh_gates, 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


def _cell(tanh_gates, c):
    i, f, g, o = _activated(tanh_gates)
    c = f * c + i * g
    return c, o * elementary.tanh(c)


def _forward(x, w_hh, reset, carry):
    def step(carry, inputs):
        x, reset = inputs
        keep = 1 - reset[:, None].astype(x.dtype)
        c_before, h_before = (part * keep for part in carry)
        tanh_gates = tanh(x + h_before @ w_hh)
        c, h = _cell(tanh_gates, c_before)
        return (c, h), (h, factors(tanh_gates, c_before, c, keep))

    after, (h, saved) = jax.lax.scan(step, carry, (x, reset), unroll=len(x) <= UNROLLED)
    return (h, after), (h, saved, w_hh, reset, carry[1])


def factors(tanh_gates: jax.Array, c_before: jax.Array, c: jax.Array, keep: jax.Array) -> tuple[jax.Array, ...]:
    """All that the backward pass multiplies by, found in the forward pass, while it is at hand.

    Args:
      tanh_gates: `[..., 4H]`, the tanh of the pre-activations, of their halves for i, f and o.
      c_before, c: `[..., H]`, the cell state before the step, set to zero where a trace starts, and after it.
      keep: `[..., 1]`, zero where a trace starts, else one.

    Returns:
      the derivatives of c, c, c and h by the pre-activations of i, f, g and o, `[..., 4H]`; of h by c; and of c by the
      cell state that was carried there, both `[..., H]`.
    """
    i, f, g, o = _activated(tanh_gates)
    tanh_i, tanh_f, _, tanh_o = jnp.split(tanh_gates, 4, axis=-1)
    tanh_c = elementary.tanh(c)
    slopes = [  # s (1 - s) = (1 - t^2) / 4 for s = (1 + t) / 2
        0.25 * (1 - tanh_i * tanh_i) * g,
        0.25 * (1 - tanh_f * tanh_f) * c_before,
        (1 - g * g) * i,
        0.25 * (1 - tanh_o * tanh_o) * tanh_c,
    ]
    return jnp.concatenate(slopes, -1), o * (1 - tanh_c * tanh_c), f * keep


def backward(saved, gradients):
    """The gradients of `lstm`'s arguments.

    Args:
      saved: h `[T, B, H]`, what `factors` gives for all steps, w_hh, reset, and the h before the first step.
      gradients: of h, and of (c, h) after the last step.
    """
    h, factors, w_hh, reset, first_h = saved
    dh_out, (dc_last, dh_last) = gradients
    keep = 1 - reset[..., None].astype(h.dtype)
    w_hh_transposed = w_hh.T

    def step(later, inputs):
        dc, dh = later
        dh_out, (slopes, h_by_c, c_by_before), keep = inputs
        dh = dh + dh_out
        # The barrier keeps XLA on a CPU from computing dc anew for each of its three places.
        dc, dh = jax.lax.optimization_barrier((dc + dh * h_by_c, dh))
        dgates = slopes * jnp.concatenate([dc, dc, dc, dh], -1)
        return (dc * c_by_before, (dgates @ w_hh_transposed) * keep), dgates

    before, dx = jax.lax.scan(
        step, (dc_last, dh_last), (dh_out, factors, keep), reverse=True, unroll=len(h) <= UNROLLED
    )
    h_before = jnp.concatenate([first_h[None], h[:-1]]) * keep
    return dx, weight_gradient(h_before, dx), None, before


lstm.defvjp(_forward, backward)
