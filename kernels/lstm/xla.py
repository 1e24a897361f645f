"""The recurrence as a scan with a hand-written backward pass.

Differentiating a scan accumulates the gradient of `w_hh` step by step, one small product each. Here the backward scan
only finds the gradients of the gates; the weights' gradient is then one large product over all steps, which on a CPU
makes training about 1.5 times as fast.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def lstm(x, w_hh, reset, carry):
    """See `api.lstm`."""
    (h, carry), _ = _forward(x, w_hh, reset, carry)
    return h, carry


def _forward(x, w_hh, reset, carry):
    def step(carry, inputs):
        x, reset = inputs
        keep = 1 - reset[:, None].astype(x.dtype)
        c_before, h_before = (part * keep for part in carry)
        i, f, g, o = jnp.split(x + h_before @ w_hh, 4, axis=-1)
        i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
        g = jnp.tanh(g)
        c = f * c_before + i * g
        h = o * jnp.tanh(c)
        return (c, h), (h, c, jnp.concatenate([i, f, g, o], -1))

    after, (h, c, gates) = jax.lax.scan(step, carry, (x, reset))
    return (h, after), (h, c, gates, w_hh, reset, carry)


def _backward(saved, gradients):
    h, c, gates, w_hh, reset, carry = saved
    dh_out, (dc_last, dh_last) = gradients
    keep = 1 - reset[..., None].astype(h.dtype)
    c_before = jnp.concatenate([carry[0][None], c[:-1]]) * keep
    h_before = jnp.concatenate([carry[1][None], h[:-1]]) * keep
    w_hh_transposed = w_hh.T

    def step(later, inputs):
        dc, dh = later
        dh_out, gates, c, c_before, keep = inputs
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        tanh_c = jnp.tanh(c)
        dh = dh + dh_out
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dgates = jnp.concatenate(
            [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)], -1
        )
        return (dc * f * keep, (dgates @ w_hh_transposed) * keep), dgates

    before, dx = jax.lax.scan(step, (dc_last, dh_last), (dh_out, gates, c, c_before, keep), reverse=True)
    dw_hh = jnp.einsum("tbh,tbg->hg", h_before, dx)
    return dx, dw_hh, None, before


lstm.defvjp(_forward, _backward)
