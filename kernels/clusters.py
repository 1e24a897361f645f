"""Blocks that share lanes: each has some of the cells, and what the others need of them goes through device memory.

A block writes there what it made, the cluster meets at a barrier, between fences, and each block reads what the others
wrote, from L2.

The interpreter of jax 0.10 knows no barriers of clusters: where kernels are interpreted a cluster's blocks are threads
of one block, and each has a room of its own in what is that block's shared memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from syscall_lm.kernels import choice

FENCE = "fence.acq_rel.gpu; fence.proxy.async;"


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
    """Waits until every block of the cluster is here; what they wrote to device memory before can be read then.

    Arriving and waiting order what one block's threads do, not device memory between blocks, nor what the copy engine
    does: without the fences blocks on an H100 sometimes read what had stood there before.
    """
    fence()
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)
    fence()


def fence() -> None:
    """Orders a thread's accesses to device memory, the copy engine's included, for all blocks (PTX ISA, `fence`)."""
    if choice.interpret is not None:
        return

    @plgpu.inline_mgpu(arg_types=(), return_type=None)
    def emit(_):
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], FENCE, "", has_side_effects=True)

    emit()  # pyright: ignore[reportCallIssue] - it wants the context too
