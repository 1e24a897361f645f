"""Scoring as clearly as it can be said; every other implementation must equal it."""

import jax
import jax.numpy as jnp

from syscall_lm.kernels.lstm import reference


def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry):
    """See `api.score_tile`."""
    x = jnp.asarray(table)[inputs]
    after = []
    for number, weights in enumerate(w_hh):
        if number > 0:
            w_ih, b = upper[number - 1]
            x = x @ w_ih + b
        x, state = reference.lstm(x, weights, reset, carry[number])
        after.append(state)
    log_probability = jax.nn.log_softmax(x @ w_out + b_out)
    return -jnp.take_along_axis(log_probability, jnp.asarray(targets)[..., None], -1)[..., 0], after
