"""How the scoring kernel is cut up: blocks of many lanes, to which the weights come as a ring of tiles.

A block owns 64 lanes for each of its computing warpgroups, and all cells; a loop goes over their groups, so that a
step's program is short enough for the instruction cache. All weights that one step needs are laid out beforehand as one
tape `[rows, 128]` in the order of their use. A further warpgroup does nothing but copy tile after tile of it, 32 rows
each, into a ring of buffers in shared memory, from L2, once a step. A computing warpgroup takes the tiles in turn: tile
k of a product meets group k of h. What fits into the ring whole is loaded once and stays.

Pairs of blocks that fetch each tile together (multicast) were tried and dropped: on an H200 they were 20 % slower for
400 cells and made no clear difference for 200.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice
from syscall_lm.kernels.hopper import (
    CELLS,
    COLUMNS,
    LANES,
    PARAMETERS,
    RESERVED_BYTES,
    SHARED_BYTES,
    TILE_BYTES,
    operand,
)

MIN_STAGES, MAX_STAGES = 4, 8  # tiles in flight; what shared memory is not taken caches c and the table's rows
MULTIPROCESSORS = 132  # of an H100 or H200; a block runs on one


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel is cut up.

    Attributes:
      warpgroups: computing warpgroups a block, 1 or 2; a block has 64 times as many lanes.
      stages: tiles that are in flight or in use at a time.
      spare: buffers for h beyond one for each layer. With 1, a layer's new h are written into the one that is free, and
        the next layer's where its old ones were; with 0 they leave for device memory, and come back when no product
        needs the old ones any more.
    """

    warpgroups: int
    stages: int
    spare: int = 0

    @property
    def block_lanes(self) -> int:
        """Lanes of one block."""
        return LANES * self.warpgroups

    def fits(self, bytes_per_warpgroup: int) -> bool:
        """Whether the ring and the operands of all lanes fit into a block's shared memory."""
        return self.warpgroups * bytes_per_warpgroup + self.stages * TILE_BYTES <= SHARED_BYTES - RESERVED_BYTES


def choose_config(lanes: int, bytes_per_warpgroup: int, spare: int = 0) -> Config:
    """A second warpgroup where one for each multiprocessor would not hold all lanes; as long a ring as fits.

    Args:
      lanes: B.
      bytes_per_warpgroup: shared memory of a kernel's operands for 64 lanes, spare buffers included.
      spare: see `Config`.

    Raises:
      Unsuitable: nothing fits (see choice.py).
    """
    for warpgroups in (2, 1) if lanes > LANES * MULTIPROCESSORS else (1,):
        for stages in range(MAX_STAGES, MIN_STAGES - 1, -1):
            if (config := Config(warpgroups, stages, spare)).fits(bytes_per_warpgroup):
                return config
    raise choice.Unsuitable(
        f"the operands of {LANES} lanes take {bytes_per_warpgroup:,} bytes of shared memory; with {MIN_STAGES} tiles "
        f"that is more than the {SHARED_BYTES - RESERVED_BYTES:,} that a block has"
    )


def ring_scratch(config: Config) -> dict[str, Any]:
    """What `Ring` needs, for a kernel's scratch types."""
    return {
        "tiles": operand((config.stages, CELLS, COLUMNS)),
        "filled": plgpu.Barrier(num_barriers=config.stages),
        "emptied": plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages),
    }


class Ring:
    """The ring of tiles, seen from inside a kernel; tiles are counted from the first of the first step."""

    def __init__(self, config: Config, tape: Any, tiles: Any, filled: Any, emptied: Any):
        self._config, self._tape = config, tape
        self._tiles, self._filled, self._emptied = tiles, filled, emptied
        self.count = tape.shape[0] // CELLS  # a step's
        self._resident = self.count <= config.stages

    def fill(self, steps: int) -> None:
        """The copying warpgroup's work."""
        for tile in range(min(self.count, self._config.stages)):
            self._copy(tile, tile)
        if self._resident:
            return

        @pl.loop(self._config.stages, steps * self.count)
        def _(number):
            slot = self._slot(number)
            plgpu.barrier_wait(self._emptied.at[slot])
            self._copy(jax.lax.rem(number, jnp.int32(self.count)), slot)

        for slot in range(self._config.stages):  # every barrier's phases are seen to their end
            plgpu.barrier_wait(self._emptied.at[slot])

    def _slot(self, number: Any) -> Any:
        return jax.lax.rem(number, jnp.int32(self.count if self._resident else self._config.stages))

    def _copy(self, tile: Any, slot: Any) -> None:
        rows = pl.ds(tile * CELLS, CELLS)
        plgpu.copy_gmem_to_smem(self._tape.at[rows], self._tiles.at[slot], self._filled.at[slot])

    def begin(self) -> None:
        """Before the first step, in every computing warpgroup."""
        if self._resident:
            for tile in range(self.count):
                plgpu.barrier_wait(self._filled.at[tile])

    def product(self, first: Any, operands: list[Any]) -> jax.Array:
        """Multiplies `[LANES, CELLS]` operands, side by side, with as many tiles: `[LANES, COLUMNS]` in float32.

        Args:
          first: the first tile's number.
          operands: in shared memory.
        """
        slots = [self._slot(first + k) for k in range(len(operands))]

        def accumulate(sums: Any) -> jax.Array:
            for k, (rows, slot) in enumerate(zip(operands, slots, strict=True)):
                if not self._resident:
                    plgpu.barrier_wait(self._filled.at[slot])
                plgpu.wgmma(sums, rows, self._tiles.at[slot])
                if k and not self._resident:
                    plgpu.wgmma_wait(1)
                    plgpu.barrier_arrive(self._emptied.at[slots[k - 1]])
            plgpu.wgmma_wait(0)
            if not self._resident:
                plgpu.barrier_arrive(self._emptied.at[slots[-1]])
            return sums[...]

        accumulator = plgpu.ACC((LANES, COLUMNS), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
        return pl.run_scoped(accumulate, accumulator)


def launch(body: Any, out_type: Any, scratch: dict[str, Any], config: Config, lanes: int, name: str) -> Any:
    """`plgpu.kernel` over blocks of lanes, with one warpgroup more for the copies."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=(lanes // config.block_lanes,),
        grid_names=("block",),
        num_threads=config.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=PARAMETERS,
        interpret=choice.interpret,
    )


def by_role(config: Config, compute: Any, copy: Any) -> None:
    """Runs `compute(first_lane, warpgroup)` in the computing warpgroups and `copy()` in the last one."""
    warpgroup = jax.lax.axis_index("warpgroup")

    @pl.when(warpgroup < config.warpgroups)
    def _():
        plgpu.set_max_registers(232, action="increase")
        first = jax.lax.axis_index("block") * config.block_lanes + warpgroup * LANES
        compute(first, warpgroup)

    @pl.when(warpgroup == config.warpgroups)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        copy()
