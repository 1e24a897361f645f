"""Blocks that share lanes: each has some of the cells, and what the others need of them goes through device memory.

A block writes there what it made, the cluster meets at a barrier, and each block reads what the others wrote, from L2.

The interpreter of jax 0.10 knows no barriers of clusters: where kernels are interpreted a cluster's blocks are threads
of one block, and each has a room of its own in what is that block's shared memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice


def rooms(parts: int) -> int:
    """How many blocks share what one block would have alone."""
    return 1 if choice.interpret is None else parts


def axes(parts: int, threads: int = 1) -> dict[str, Any]:
    """What `plgpu.kernel` is told of `parts` blocks of `threads` warpgroups each."""
    if choice.interpret is not None:
        return {"num_threads": parts * threads, "thread_name": "thread"}
    cluster = {"cluster": (parts,), "cluster_names": ("part",)} if parts > 1 else {}
    return cluster | ({"num_threads": threads, "thread_name": "thread"} if threads > 1 else {})


def place(parts: int, threads: int = 1) -> tuple[Any, Any, Any]:
    """Which part of its cluster this block is, its room, and which of the block's warpgroups this is."""
    thread = jax.lax.axis_index("thread") if choice.interpret is not None or threads > 1 else 0
    if parts == 1:
        return 0, 0, thread
    if choice.interpret is None:
        return jax.lax.axis_index("part"), 0, thread
    part = jax.lax.div(thread, jnp.int32(threads))
    return part, part, jax.lax.rem(thread, jnp.int32(threads))


def meeting(parts: int, warpgroups: int = 1) -> Any:
    """The barriers at which the blocks' first warpgroups meet, their second ones, and so on."""
    if choice.interpret is not None or parts == 1:
        return plgpu.Barrier(num_arrivals=parts, num_barriers=warpgroups)
    return plgpu.ClusterBarrier(collective_axes=("part",), num_barriers=warpgroups)


def meet(barrier: Any) -> None:
    """Waits until every block of the cluster is here; what they wrote to device memory before can be read then."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)
