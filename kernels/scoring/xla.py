"""Scoring as one scan over time with the head inside it."""

import jax
import jax.numpy as jnp

from syscall_lm.kernels.lstm import cell
from syscall_lm.kernels.nll import nll


def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry):
    """See `api.score_tile`."""
    table, targets = jnp.asarray(table), jnp.asarray(targets)

    def step(carry, call):
        inputs, targets, reset = call
        x, after = table[inputs], []
        for number, weights in enumerate(w_hh):
            c, h = (jnp.where(reset[:, None], 0, part) for part in carry[number])
            if number > 0:
                w_ih, b = upper[number - 1]
                x = x @ w_ih + b
            c, x = cell(x + h @ weights, c)
            after.append((c, x))
        return after, nll(x, w_out, b_out, targets)

    carry = [(jnp.asarray(c), jnp.asarray(h)) for c, h in carry]
    after, surprisal = jax.lax.scan(step, carry, (jnp.asarray(inputs), targets, jnp.asarray(reset)))
    return surprisal, after
