"""A scan over blocks of steps, so that what a block makes need not exist for all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_blocks(function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, arrays: tuple[Any, ...], rows: int) -> Any:
    """`jax.lax.scan` over blocks of the leading axis; what is left over is a last block.

    Args:
      function: takes the carry and a block of all arrays; returns the carry and results, whose leading axis is theirs.
      carry: the first.
      arrays: `[T, ...]` each; the last has one element for each row.
      rows: how many a block has, about; at least one step.

    Returns:
      the last carry, and the results of all steps.
    """
    steps = arrays[-1].shape[0]
    rows_a_step = max(1, arrays[-1].size // max(1, steps))
    size = max(1, min(steps, rows // rows_a_step))
    whole = steps // size * size
    blocks = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), arrays)
    carry, results = jax.lax.scan(function, carry, blocks)
    results = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), results)
    if whole < steps:
        carry, rest = function(carry, jax.tree.map(lambda leaf: leaf[whole:], arrays))
        results = jax.tree.map(lambda one, two: jnp.concatenate([one, two]), results, rest)
    return carry, results
