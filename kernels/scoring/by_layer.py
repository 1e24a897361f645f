"""Scoring layer by layer, with the recurrence and the head that training uses: all steps of a layer, then the next."""

import jax
import jax.numpy as jnp

from syscall_lm.kernels.blocks import scan_blocks
from syscall_lm.kernels.lstm import lstm
from syscall_lm.kernels.nll import nll

ROWS = 131_072  # calls whose gates are made together: 0.8 GB for 400 cells and each member


def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry):
    """See `api.score_tile`."""
    table = jnp.asarray(table)

    def block(carry, calls):
        inputs, reset, targets = calls
        after = []
        with jax.named_scope("gather"):
            x = table[inputs]
        for number, weights in enumerate(w_hh):
            with jax.named_scope(f"layer_{number}"):
                if number > 0:
                    w_ih, b = upper[number - 1]
                    x = x @ w_ih + b
                x, state = lstm(x, weights, reset, carry[number])
                after.append(state)
        with jax.named_scope("head"):
            return after, nll(x, w_out, b_out, targets)

    carry = [(jnp.asarray(c), jnp.asarray(h)) for c, h in carry]
    after, surprisal = scan_blocks(block, carry, (jnp.asarray(inputs), jnp.asarray(reset), jnp.asarray(targets)), ROWS)
    return surprisal, after
