"""How the scoring kernel is cut up: blocks of many lanes, to which the weights come as a ring of tiles.

A block owns 64 lanes for each of its computing warpgroups; a loop goes over the groups of their cells, so that a
step's program is short enough for the instruction cache. All weights that one step needs are laid out beforehand as one
tape `[rows, 128]` in the order of their use. A further warpgroup does nothing but copy tile after tile of it, 32 rows
each, into a ring of buffers in shared memory, from L2, once a step. A computing warpgroup takes the tiles in turn: tile
k of a product meets group k of h. What fits into the ring whole is loaded once and stays, where a block is alone.

Where all run at the same time, two blocks own the same lanes: each has a part of the cells and of the head, with a tape
of its own, and learns the other's h as kernels/clusters.py says. It copies and multiplies about half as much a step. On
an H100 (results/gpu/h100) that is 1.4 to 1.5 times as fast for 4,096 lanes, 1.2 times for 8,448 of 400 cells and within
2 % for 200; of 2,048 lanes four blocks were slower than two.

Pairs of blocks that fetch each tile together (multicast) were tried and dropped: on an H200 they were 20 % slower for
400 cells and made no clear difference for 200.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, clusters
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
      parts: blocks that own the same lanes, each with a part of the cells and of the head.
    """

    warpgroups: int
    stages: int
    parts: int = 1

    @property
    def block_lanes(self) -> int:
        """Lanes of one block."""
        return LANES * self.warpgroups

    def fits(self, bytes_per_warpgroup: int) -> bool:
        """Whether the ring and the operands of all lanes fit into a block's shared memory."""
        return self.warpgroups * bytes_per_warpgroup + self.stages * TILE_BYTES <= SHARED_BYTES - RESERVED_BYTES


def choose_config(lanes: int, groups: int, bytes_per_warpgroup: int, parts: int | None = None) -> Config:
    """Two blocks for the same lanes, if all run at the same time; a longer ring before a shorter one.

    A block has a second warpgroup if one for each multiprocessor would not hold all lanes.

    Args:
      lanes: B.
      groups: of cells.
      bytes_per_warpgroup: shared memory of a kernel's operands for 64 lanes.
      parts: see `Config`; None for what is fastest.

    Raises:
      Unsuitable: nothing fits (see choice.py).
    """
    for several in (parts,) if parts else (2, 1):
        for warpgroups in (2, 1) if lanes * several > LANES * MULTIPROCESSORS else (1,):
            for stages in range(MAX_STAGES, MIN_STAGES - 1, -1):
                config = Config(warpgroups, stages, several)
                together = several <= groups and lanes * several <= config.block_lanes * MULTIPROCESSORS
                if config.fits(bytes_per_warpgroup) and (together or several == (parts or 1)):
                    return config
    raise choice.Unsuitable(
        f"the operands of {LANES} lanes take {bytes_per_warpgroup:,} bytes of shared memory; with {MIN_STAGES} tiles "
        f"that is more than the {SHARED_BYTES - RESERVED_BYTES:,} that a block has"
    )


@dataclasses.dataclass(frozen=True)
class Share:
    """What one block of a cluster computes: groups of cells, in every layer, and products of the head.

    Attributes:
      groups: the first group, and the one that follows the last.
      products: the same of the head's products.
      tiles: a step's.
      first_tile: where they begin on the tape of all parts.
    """

    groups: tuple[Any, Any]
    products: tuple[Any, Any]
    tiles: Any
    first_tile: Any


@dataclasses.dataclass(frozen=True)
class Work:
    """A step's work.

    Attributes:
      groups: of cells.
      products: of the head, `COLUMNS` calls each.
      layers: L.
      parts: see `Config`.

    Raises:
      Unsuitable: some part would have no group of cells (see choice.py).
    """

    groups: int
    products: int
    layers: int
    parts: int

    def __post_init__(self):
        if self.parts > self.groups:
            raise choice.Unsuitable(f"{self.parts} blocks cannot share {self.groups} groups of cells")

    def share(self, part: Any) -> Share:
        """That of one part; the last has the most groups, and the first the most products."""

        def divided(size: Any) -> Any:
            return size // self.parts if isinstance(size, int) else jax.lax.div(size, jnp.int32(self.parts))

        first, last = (divided(self.groups * (part + k)) for k in range(2))
        products = tuple(divided(self.products * (part + k) + self.parts - 1) for k in range(2))
        read = (2 * self.layers - 1) * self.groups  # tiles of one group of cells, over all layers
        tiles = (last - first) * read + (products[1] - products[0]) * self.groups
        return Share((first, last), products, tiles, first * read + products[0] * self.groups)

    @property
    def shares(self) -> list[Share]:
        """Every part's."""
        return [self.share(part) for part in range(self.parts)]


def ring_scratch(config: Config) -> dict[str, Any]:
    """What `Ring` needs, for a kernel's scratch types."""
    slots = clusters.rooms(config.parts) * config.stages
    return {
        "tiles": operand((slots, CELLS, COLUMNS)),
        "filled": plgpu.Barrier(num_barriers=slots),
        "emptied": plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=slots),
    }


class Ring:
    """The ring of tiles, seen from inside a kernel; tiles are counted from the first of the first step."""

    def __init__(
        self, config: Config, work: Work, part: Any, room: Any, tape: Any, tiles: Any, filled: Any, emptied: Any
    ):
        counts = [share.tiles for share in work.shares]
        self._resident = work.parts == 1 and counts[0] <= config.stages
        self._stages = min(config.stages, *counts)  # every part sees every buffer filled
        self._share, self._first_slot = work.share(part), room * config.stages
        self._tape, self._tiles, self._filled, self._emptied = tape, tiles, filled, emptied
        self.count = self._share.tiles

    def fill(self, steps: int) -> None:
        """The copying warpgroup's work."""
        for tile in range(self._stages):
            self._copy(tile, self._first_slot + tile)
        if self._resident:
            return

        @pl.loop(self._stages, steps * self.count)
        def _(number):
            slot = self._slot(number)
            plgpu.barrier_wait(self._emptied.at[slot])
            self._copy(jax.lax.rem(number, jnp.int32(self.count)), slot)

        for slot in range(self._stages):  # every barrier's phases are seen to their end
            plgpu.barrier_wait(self._emptied.at[self._first_slot + slot])

    def _slot(self, number: Any) -> Any:
        return self._first_slot + jax.lax.rem(number, jnp.int32(self._stages))

    def _copy(self, tile: Any, slot: Any) -> None:
        rows = pl.ds((self._share.first_tile + tile) * CELLS, CELLS)
        plgpu.copy_gmem_to_smem(self._tape.at[rows], self._tiles.at[slot], self._filled.at[slot])

    def begin(self) -> None:
        """Before the first step, in every computing warpgroup."""
        if self._resident:
            for slot in range(self._stages):
                plgpu.barrier_wait(self._filled.at[slot])

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
        grid_names=("cluster",),
        kernel_name=name,
        compiler_params=PARAMETERS,
        interpret=choice.interpret,
        **clusters.axes(config.parts, config.warpgroups + 1),
    )


def by_role(config: Config, warpgroup: Any, compute: Any, copy: Any) -> None:
    """Runs `compute()` in the computing warpgroups and `copy()` in the last one."""

    @pl.when(warpgroup < config.warpgroups)
    def _():
        plgpu.set_max_registers(232, action="increase")
        compute()

    @pl.when(warpgroup == config.warpgroups)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        copy()
