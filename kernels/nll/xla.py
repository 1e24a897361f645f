"""The surprisal in blocks: `[T, B, V]` logits never exist, neither forward nor backward."""

import jax
import jax.numpy as jnp

from syscall_lm.kernels.projection import weight_gradient

BLOCK_ROWS = 2048


def nll(h, w_out, b_out, targets):
    """See `api.nll`."""
    if targets.ndim == 0:
        return of_rows(h, w_out, b_out, targets)[0]
    return _nll(h, w_out, b_out, jnp.asarray(targets))


def weighted_nll(h, w_out, b_out, targets, weights):
    """See `api.weighted_nll`."""
    total, *values = _weighted_nll(h, w_out, b_out, jnp.asarray(targets), jnp.asarray(weights))
    return total, *map(jax.lax.stop_gradient, values)


def of_rows(h, w_out, b_out, targets):
    """All rows as one block: surprisals, whether the target is the most probable call, and what the gradient needs."""
    logits = h @ w_out + b_out
    highest = logits.max(-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    shifted = jnp.exp(logits - highest[..., None])
    total = shifted.sum(-1)
    return jnp.log(total) + highest - chosen, chosen >= highest, shifted, total


def _values(h, w_out, b_out, targets):
    def block(nothing, rows):
        return nothing, of_rows(rows[0], w_out, b_out, rows[1])[:2]

    return _scan_blocks(block, None, (h, targets))[1]


@jax.custom_vjp
def _nll(h, w_out, b_out, targets):
    return _values(h, w_out, b_out, targets)[0]


def _nll_backward(arguments, weights):
    """What arrives from above weighs the surprisals; the logits are made anew."""
    h, w_out, b_out, targets = arguments
    return *_forward(h, w_out, b_out, targets, weights)[1], None


_nll.defvjp(lambda *arguments: (_nll(*arguments), arguments), _nll_backward)


@jax.custom_vjp
def _weighted_nll(h, w_out, b_out, targets, weights):
    values, right = _values(h, w_out, b_out, targets)
    return (weights * values).sum(), values, right


def _forward(h, w_out, b_out, targets, weights):
    """Finds the gradient as well, while the logits are there: making them anew is a fourth of the head's products."""

    def block(gradients, rows):
        h, targets, weights = rows
        values, right, shifted, total = of_rows(h, w_out, b_out, targets)
        hit = targets[..., None] == jnp.arange(w_out.shape[1], dtype=targets.dtype)
        dlogits = shifted * (weights / total)[..., None] - jnp.where(hit, weights[..., None], 0)
        dw, db = gradients
        gradients = dw + weight_gradient(h, dlogits), db + dlogits.sum(tuple(range(targets.ndim)))
        return gradients, (values, right, dlogits @ w_out.T)

    zeros = (jnp.zeros_like(w_out), jnp.zeros_like(b_out))
    (dw, db), (values, right, dh) = _scan_blocks(block, zeros, (h, targets, weights))
    return ((weights * values).sum(), values, right), (dh, dw, db)


def _backward(gradients, of_results):
    scaled = (gradient * of_results[0] for gradient in gradients)
    return *scaled, None, None


_weighted_nll.defvjp(_forward, _backward)


def _scan_blocks(function, carry, rows):
    """Scans over blocks of the leading axis, each of about BLOCK_ROWS rows; what is left over is a last block."""
    steps = rows[1].shape[0]
    rows_a_step = max(1, rows[1].size // max(1, steps))
    size = max(1, min(steps, BLOCK_ROWS // rows_a_step))
    whole = steps // size * size
    blocks = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), rows)
    carry, results = jax.lax.scan(function, carry, blocks)
    results = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), results)
    if whole < steps:
        carry, rest = function(carry, jax.tree.map(lambda leaf: leaf[whole:], rows))
        results = jax.tree.map(lambda one, two: jnp.concatenate([one, two]), results, rest)
    return carry, results
