"""What the kernels for NVIDIA Hopper share: how weights reach the tensor cores.

Every kernel here has one shape. A block owns 64 lanes for each of its computing warpgroups and loops over time inside
the kernel; state never leaves the chip's caches. All weights that one step needs are laid out beforehand as one tape
`[rows, 128]` in the order of their use, and a further warpgroup does nothing but copy tile after tile of the tape into
a ring of buffers in shared memory, from L2, once a step. A computing warpgroup takes the rows in turn: each product
`[64, K] @ [K, 128]` is the next K rows. What fits into the ring whole is loaded once and stays.

Operands are bfloat16, sums float32. Rows of operands come in units of `K_UNIT`, columns in units of `COLUMNS`: 32 cells
times four gates, or 128 calls of the vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, gather

LANES = 64  # rows of one warpgroup's matrix instruction
COLUMNS = 128  # columns of one product; its sums take 64 registers a thread
CELLS = COLUMNS // 4  # cells whose four gates one product holds
K_UNIT = 32
SHARED_BYTES = 232_448  # what a block may have on compute capability 9.0
RESERVED_BYTES = 4_096  # barriers, and the compiler's scratch for reductions
MULTIPROCESSORS = 132  # of an H100 or H200; a block runs on one
PARAMETERS = plgpu.CompilerParams(
    # tanh, exp and log as single instructions: about 2^-11 off, a quarter of what rounding to bfloat16 costs.
    approx_math=True,
    lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel is cut up.

    Attributes:
      warpgroups: computing warpgroups a block, 1 or 2; a block has 64 times as many lanes.
      tile_rows: rows of the tape a tile, a multiple of `K_UNIT`.
      stages: tiles that are in flight or in use at a time.
      resident: whether c stays in shared memory, or goes to L2 and back in every step.
      cluster: blocks that fetch the tape together, each a part of it for all.
    """

    warpgroups: int
    tile_rows: int
    stages: int
    resident: bool = False
    cluster: int = 1

    @property
    def block_lanes(self) -> int:
        """Lanes of one block."""
        return LANES * self.warpgroups

    @property
    def cluster_lanes(self) -> int:
        """Lanes of one cluster."""
        return self.cluster * self.block_lanes

    @property
    def ring_bytes(self) -> int:
        """Shared memory of the ring."""
        return self.stages * self.tile_rows * COLUMNS * 2


# In order of preference: many lanes a block read the weights less often; c in shared memory saves a quarter of what is
# read from L2 then; large tiles need fewer barriers.
CONFIGS = tuple(
    Config(warpgroups, rows, stages, resident)
    for warpgroups in (2, 1)
    for resident in (True, False)
    for rows, stages in ((128, 4), (128, 3), (96, 3), (64, 4), (64, 3), (32, 4), (32, 3))
    if not resident or rows >= 64
)


def choose_config(lanes: int, bytes_per_warpgroup: int, bytes_of_c: int = 0, config: Config | None = None) -> Config:
    """The first of `CONFIGS` whose shared memory fits; two warpgroups only where every multiprocessor has a block then.

    Args:
      lanes: B.
      bytes_per_warpgroup: shared memory of a kernel's operands for 64 lanes.
      bytes_of_c: of their c, if the kernel can keep it there.
      config: this one or an error.

    Raises:
      Unsuitable: nothing fits (see choice.py).
    """
    room = SHARED_BYTES - RESERVED_BYTES
    for candidate in CONFIGS if config is None else (config,):
        if config is None and candidate.warpgroups > max(1, lanes // (LANES * MULTIPROCESSORS)):
            continue
        if candidate.resident and not bytes_of_c:
            continue
        each = bytes_per_warpgroup + candidate.resident * bytes_of_c
        if candidate.warpgroups * each + candidate.ring_bytes <= room:
            if config is None and choice.interpret is None and lanes > candidate.block_lanes:
                return dataclasses.replace(candidate, cluster=2)  # the interpreter knows no clusters
            return candidate
    raise choice.Unsuitable(
        f"the operands of {LANES} lanes take {bytes_per_warpgroup:,} bytes of shared memory; "
        f"with {config or 'the smallest ring of tiles'} that is more than the {room:,} that a block has"
    )


def padded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def pad(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Zeros behind the array in every dimension, up to `shape`."""
    return jnp.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])


def gate_columns(weights: jax.Array, cells: int) -> jax.Array:
    """Orders gate columns by groups of `CELLS` cells, so that one product holds all four gates of its cells.

    Args:
      weights: `[..., 4H]`, gates in the order i, f, g, o.
      cells: H, padded.

    Returns:
      `[cells / CELLS, ..., COLUMNS]`; the columns of cells that do not exist are zero.
    """
    *rows, columns = weights.shape
    split = pad(weights.reshape(*rows, 4, columns // 4), (*rows, 4, cells))
    groups = jnp.moveaxis(split.reshape(*rows, 4, cells // CELLS, CELLS), -2, 0)
    return groups.reshape(cells // CELLS, *rows, COLUMNS)


def fetched_columns(table: jax.Array) -> jax.Array:
    """Orders the `COLUMNS` of a table's rows so that what `fetch` gives one thread lies together, 16 bytes at a time.

    In a product's sums a thread has columns 8 j + 2 q and the next one, for every j, where q is its place of four.
    """
    return jnp.swapaxes(table.reshape(*table.shape[:-1], 4, 4, 4, 2), -3, -2).reshape(table.shape)


def fetch(table: Any, group: int, numbers: jax.Array) -> jax.Array:
    """Rows of a table in device memory, `[LANES, COLUMNS]` in bfloat16, laid out like a product's sums.

    Args:
      table: `[groups, R, COLUMNS]` in bfloat16, its columns as `fetched_columns` orders them.
      group: which table.
      numbers: `[LANES]`, each less than R; nothing checks them here.
    """
    if choice.interpret is not None:
        return fetched_columns(table[group][numbers])  # the order is its own inverse

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA.reduce(1)),
        return_type=plgpu.ShapeDtypeStruct((LANES, COLUMNS), jnp.bfloat16, layout=plgpu.Layout.WGMMA),
    )
    def rows_of(_, table, numbers):
        return gather.rows(table, group, numbers)

    return rows_of(table, numbers)  # pyright: ignore[reportCallIssue] - it wants the context too


def tape_of(products: list[jax.Array], config: Config) -> jax.Array:
    """All weights of a step, `[rows, COLUMNS]` in bfloat16, cut to whole rounds of the ring.

    Args:
      products: `[groups, K, COLUMNS]` each, in the order of use.
      config: sizes of tile and ring.
    """
    tape = jnp.concatenate([product.reshape(-1, COLUMNS) for product in products]).astype(jnp.bfloat16)
    tiles = padded(len(tape), config.tile_rows) // config.tile_rows
    if tiles > config.stages:  # a tile has the same buffer in every step, known when the kernel is compiled
        tiles = padded(tiles, config.stages)
    return pad(tape, (tiles * config.tile_rows, COLUMNS))


def operand(shape: tuple[int, ...]) -> Any:
    """Shared memory for a bfloat16 operand of the tensor cores; the last dimension is a multiple of `K_UNIT`."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(64)))


def state(shape: tuple[int, ...]) -> Any:
    """Shared memory for float32 that only the arithmetic reads."""
    return plgpu.SMEM(shape, jnp.float32, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128)))


def ring_scratch(config: Config) -> dict[str, Any]:
    """What `Ring` needs, for a kernel's scratch types."""
    return {
        "tiles": operand((config.stages, config.tile_rows, COLUMNS)),
        "filled": plgpu.Barrier(num_barriers=config.stages),
        "emptied": plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages)
        if config.cluster == 1
        else plgpu.ClusterBarrier(
            collective_axes=("peer",), num_arrivals=config.warpgroups, num_barriers=config.stages
        ),
    }


class Ring:
    """The ring of tiles, seen from inside a kernel."""

    def __init__(self, config: Config, tape: Any, tiles: Any, filled: Any, emptied: Any):
        self._config, self._tape = config, tape
        self._tiles, self._filled, self._emptied = tiles, filled, emptied
        self._count = tape.shape[0] // config.tile_rows
        self._resident = self._count <= config.stages
        self._row = 0

    def fill(self, steps: int) -> None:
        """The copying warpgroup's work."""
        for tile in range(min(self._count, self._config.stages)):
            self._copy(tile, tile)
        if self._resident:
            return

        @pl.loop(self._config.stages, steps * self._count)
        def _(number):
            slot = jax.lax.rem(number, jnp.int32(self._config.stages))
            plgpu.barrier_wait(self._emptied.at[slot])
            self._copy(jax.lax.rem(number, jnp.int32(self._count)), slot)

        for slot in range(self._config.stages):  # every barrier's phases are seen to their end
            plgpu.barrier_wait(self._emptied.at[slot])

    def _copy(self, tile: Any, slot: Any) -> None:
        rows = pl.ds(tile * self._config.tile_rows, self._config.tile_rows)
        together = "peer" if self._config.cluster > 1 else None
        plgpu.copy_gmem_to_smem(
            self._tape.at[rows], self._tiles.at[slot], self._filled.at[slot], collective_axes=together
        )

    def begin(self) -> None:
        """Before the first step, in every computing warpgroup."""
        if self._resident:
            for tile in range(self._count):
                plgpu.barrier_wait(self._filled.at[tile])

    def begin_step(self) -> None:
        """Back to the tape's first row."""
        self._row = 0

    def product(self, *operands: Any) -> jax.Array:
        """Multiplies `[LANES, K]` operands, side by side, with the next rows: `[LANES, COLUMNS]` in float32."""

        def accumulate(sums: Any) -> jax.Array:
            for operand in operands:
                column = 0
                while column < operand.shape[1]:
                    column += self._accumulate(sums, operand, column)
            return sums[...]

        accumulator = plgpu.ACC((LANES, COLUMNS), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
        return pl.run_scoped(accumulate, accumulator)

    def _accumulate(self, sums: Any, operand: Any, column: int) -> int:
        """One operand's part of one tile; returns the rows used."""
        tile, offset = divmod(self._row, self._config.tile_rows)
        rows = min(operand.shape[1] - column, self._config.tile_rows - offset)
        slot = tile % self._config.stages
        if offset == 0 and not self._resident:
            plgpu.barrier_wait(self._filled.at[slot])
        plgpu.wgmma(sums, operand.at[:, pl.ds(column, rows)], self._tiles.at[slot, pl.ds(offset, rows)])
        plgpu.wgmma_wait(0)
        if offset + rows == self._config.tile_rows and not self._resident:
            plgpu.barrier_arrive(self._emptied.at[slot])
        self._row += rows
        return rows

    def end_step(self) -> None:
        """Passes over the tiles that only fill up the last round."""
        if self._resident:
            return
        if self._row % self._config.tile_rows:
            plgpu.barrier_arrive(self._emptied.at[self._row // self._config.tile_rows % self._config.stages])
        for tile in range(padded(self._row, self._config.tile_rows) // self._config.tile_rows, self._count):
            plgpu.barrier_wait(self._filled.at[tile % self._config.stages])
            plgpu.barrier_arrive(self._emptied.at[tile % self._config.stages])


def load(ref: Any) -> jax.Array:
    """Reads device memory into registers, in whatever layout the arithmetic asks for."""
    if choice.interpret is not None:
        return ref[...]
    index = ((),) if jax.__version_info__ < (0, 11) else ()
    return plgpu.load(ref, *index, optimized=False)


def rows(vector: jax.Array, columns: int) -> jax.Array:
    """One value a lane, `[LANES]`, beside itself: `[LANES, columns]`."""
    return jax.lax.broadcast_in_dim(vector, (LANES, columns), (0,))


def columns(vector: jax.Array) -> jax.Array:
    """One value a column, `[n]`, for every lane: `[LANES, n]`."""
    return jax.lax.broadcast_in_dim(vector, (LANES, vector.shape[0]), (1,))


def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic function by way of tanh, which is one instruction."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def cell(gates: list[jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`reference.cell` on the four gates of one group of cells, each `[LANES, CELLS]`; returns (c, h)."""
    i, f, g, o = gates
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


def gates_of(sums: jax.Array) -> list[jax.Array]:
    """A product's four gates, each `[LANES, CELLS]`."""
    return [sums[:, gate * CELLS : (gate + 1) * CELLS] for gate in range(4)]


def launch(body: Any, out_type: Any, scratch: dict[str, Any], config: Config, lanes: int, name: str) -> Any:
    """`plgpu.kernel` over blocks of lanes, with one warpgroup more for the copies."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=(lanes // config.cluster_lanes,),
        grid_names=("block",),
        cluster=(config.cluster,) if config.cluster > 1 else (),
        cluster_names=("peer",) if config.cluster > 1 else (),
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
        first = jax.lax.axis_index("block") * config.cluster_lanes + warpgroup * LANES
        if config.cluster > 1:
            first += jax.lax.axis_index("peer") * config.block_lanes
        compute(first, warpgroup)

    @pl.when(warpgroup == config.warpgroups)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        copy()
