"""The surprisal in blocks: `[T, B, V]` logits never exist, neither forward nor backward."""

import jax
import jax.numpy as jnp

from syscall_lm.kernels import elementary
from syscall_lm.kernels.blocks import scan_blocks
from syscall_lm.kernels.projection import product, weight_gradient

BLOCK_ROWS = 2048
BLOCK_ROWS_ON_GPU = 16_384  # on an H200 32 blocks of 2,048 rows took 1.3 ms and as much again between them


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
    """All rows as one block.

    Args:
      h: `[..., H]`, from which the calls are predicted.
      w_out: `[H, V]`.
      b_out: `[V]`.
      targets: int `[...]`, the calls.

    Returns:
      surprisals `[...]` in nats; whether the target is the most probable call, bool `[...]`; and what the gradient
      needs: exp of the logits less their highest, `[..., V]`, and its sum `[...]`.
    """
    logits = product(h, w_out) + b_out
    highest = logits.max(-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    shifted = elementary.exp_of_negative(logits - highest[..., None])
    total = shifted.sum(-1)
    return jnp.log(total) + highest - chosen, chosen >= highest, shifted, total


def _values(h, w_out, b_out, targets):
    def block(nothing, rows):
        return nothing, of_rows(rows[0], w_out, b_out, rows[1])[:2]

    return _scan(block, None, (h, targets))[1]


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
    (dw, db), (values, right, dh) = _scan(block, zeros, (h, targets, weights))
    return ((weights * values).sum(), values, right), (dh, dw, db)


def _backward(gradients, of_results):
    scaled = (gradient * of_results[0] for gradient in gradients)
    return *scaled, None, None


_weighted_nll.defvjp(_forward, _backward)


def _scan(function, carry, rows):
    return scan_blocks(function, carry, rows, BLOCK_ROWS if jax.default_backend() == "cpu" else BLOCK_ROWS_ON_GPU)
