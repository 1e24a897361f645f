"""The surprisal in blocks, with a hand-written backward pass: `[T, B, V]` logits never exist, neither way.

Forward keeps one number a row, the log-sum-exp. Backward makes the logits of a block again, which costs a third of the
head's arithmetic and saves writing and reading all of them.
"""

import jax
import jax.numpy as jnp

from syscall_lm.kernels.projection import weight_gradient

BLOCK_ROWS = 1024


def nll(h, w_out, b_out, targets):
    """See `api.nll`."""
    if targets.ndim == 0 or h.shape[0] == 0:
        return _block(h, w_out, b_out, targets)[0]
    return _nll(h, w_out, b_out, jnp.asarray(targets))


@jax.custom_vjp
def _nll(h, w_out, b_out, targets):
    return _forward(h, w_out, b_out, targets)[0]


def _block(h, w_out, b_out, targets):
    logits = h @ w_out + b_out
    highest = logits.max(-1)
    total = jnp.log(jnp.exp(logits - highest[..., None]).sum(-1)) + highest
    return total - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], total


def _forward(h, w_out, b_out, targets):
    values, totals = _in_blocks(lambda h, targets: _block(h, w_out, b_out, targets), (h, targets))
    return values, (h, w_out, b_out, targets, totals)


def _backward(saved, gradient):
    h, w_out, b_out, targets, totals = saved

    def block(weights, rows):
        h, targets, totals, gradient = rows
        probability = jnp.exp(h @ w_out + b_out - totals[..., None])
        hit = targets[..., None] == jnp.arange(w_out.shape[1], dtype=targets.dtype)
        dlogits = gradient[..., None] * (probability - hit)
        dw, db = weights
        axes = tuple(range(dlogits.ndim - 1))
        return (dw + weight_gradient(h, dlogits), db + dlogits.sum(axes)), dlogits @ w_out.T

    zeros = (jnp.zeros_like(w_out), jnp.zeros_like(b_out))
    (dw, db), dh = _scan_blocks(block, zeros, (h, targets, totals, gradient))
    return dh, dw, db, None


_nll.defvjp(_forward, _backward)


def _in_blocks(function, rows):
    return _scan_blocks(lambda nothing, part: (nothing, function(*part)), None, rows)[1]


def _scan_blocks(function, carry, rows):
    """Scans over blocks of the leading axis, each of about BLOCK_ROWS rows; what is left over is a last block."""
    steps = rows[1].shape[0]
    rows_a_step = max(1, rows[1].size // steps)
    size = min(steps, max(1, BLOCK_ROWS // rows_a_step))
    whole = steps // size * size
    blocks = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), rows)
    carry, results = jax.lax.scan(function, carry, blocks)
    results = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), results)
    if whole < steps:
        carry, rest = function(carry, jax.tree.map(lambda leaf: leaf[whole:], rows))
        results = jax.tree.map(lambda one, two: jnp.concatenate([one, two]), results, rest)
    return carry, results
