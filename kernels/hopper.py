"""What the kernels for NVIDIA Hopper share: how weights reach the tensor cores.

Every kernel here has one shape. A block owns 64 lanes for each of its computing warpgroups and loops over time inside
the kernel; state never leaves the chip's caches. Cells come in groups of 32, whose four gates are the 128 columns of
one product; a loop goes over the groups, so that a step's program is short enough for the instruction cache. All
weights that one step needs are laid out beforehand as one tape `[rows, 128]` in the order of their use. A further
warpgroup does nothing but copy tile after tile of it, 32 rows each, into a ring of buffers in shared memory, from L2,
once a step. A computing warpgroup takes the tiles in turn: tile k of a product meets group k of h. What fits into the
ring whole is loaded once and stays.

Operands are bfloat16, sums float32. Pairs of blocks that fetch each tile together (multicast) were tried and dropped:
on an H200 they were 20 % slower for 400 cells and made no clear difference for 200 (results/gpu).
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
TILE_BYTES = CELLS * COLUMNS * 2
MIN_STAGES, MAX_STAGES = 4, 8  # tiles in flight; what shared memory is not taken caches c and the table's rows
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
      stages: tiles that are in flight or in use at a time.
    """

    warpgroups: int
    stages: int

    @property
    def block_lanes(self) -> int:
        """Lanes of one block."""
        return LANES * self.warpgroups

    def fits(self, bytes_per_warpgroup: int) -> bool:
        """Whether the ring and the operands of all lanes fit into a block's shared memory."""
        return self.warpgroups * bytes_per_warpgroup + self.stages * TILE_BYTES <= SHARED_BYTES - RESERVED_BYTES


def choose_config(lanes: int, bytes_per_warpgroup: int) -> Config:
    """A second warpgroup where one for each multiprocessor would not hold all lanes; as long a ring as fits.

    Args:
      lanes: B.
      bytes_per_warpgroup: shared memory of a kernel's operands for 64 lanes.

    Raises:
      Unsuitable: nothing fits (see choice.py).
    """
    for warpgroups in (2, 1) if lanes > LANES * MULTIPROCESSORS else (1,):
        for stages in range(MAX_STAGES, MIN_STAGES - 1, -1):
            if (config := Config(warpgroups, stages)).fits(bytes_per_warpgroup):
                return config
    raise choice.Unsuitable(
        f"the operands of {LANES} lanes take {bytes_per_warpgroup:,} bytes of shared memory; with {MIN_STAGES} tiles "
        f"that is more than the {SHARED_BYTES - RESERVED_BYTES:,} that a block has"
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


def in_groups(state: jax.Array, height: int, width: int) -> jax.Array:
    """State `[..., B, H]`, padded, as the kernels keep it: `[..., groups, lanes, CELLS]` in float32."""
    *rest, _, _ = state.shape
    wide = pad(jnp.asarray(state, jnp.float32), (*rest, height, width))
    return jnp.swapaxes(wide.reshape(*rest, height, width // CELLS, CELLS), -3, -2)


def from_groups(state: jax.Array, lanes: int, cells: int) -> jax.Array:
    """The way back from `in_groups`."""
    *rest, groups, height, _ = state.shape
    return jnp.swapaxes(state, -3, -2).reshape(*rest, height, groups * CELLS)[..., :lanes, :cells]


def fetched_columns(table: jax.Array) -> jax.Array:
    """Orders the `COLUMNS` of a table's rows so that what `fetch` gives one thread lies together, 16 bytes at a time.

    In a product's sums a thread has columns 8 j + 2 q and the next one, for every j, where q is its place of four.
    """
    return jnp.swapaxes(table.reshape(*table.shape[:-1], 4, 4, 4, 2), -3, -2).reshape(table.shape)


def fetch(table: Any, numbers: jax.Array) -> jax.Array:
    """Rows of a table in device memory, `[LANES, COLUMNS]` in bfloat16, laid out like a product's sums.

    Args:
      table: `[R, COLUMNS]` in bfloat16, its columns as `fetched_columns` orders them.
      numbers: `[LANES]`, each less than R; nothing checks them here.
    """
    if choice.interpret is not None:
        return fetched_columns(table[...][numbers])  # the order is its own inverse

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA.reduce(1)),
        return_type=plgpu.ShapeDtypeStruct((LANES, COLUMNS), jnp.bfloat16, layout=plgpu.Layout.WGMMA),
    )
    def rows_of(_, table, numbers):
        return gather.rows(table, numbers)

    return rows_of(table, numbers)  # pyright: ignore[reportCallIssue] - it wants the context too


def tape_of(products: list[jax.Array]) -> jax.Array:
    """All weights of a step, `[rows, COLUMNS]` in bfloat16.

    Args:
      products: `[groups, K, COLUMNS]` each, in the order of use; K is a multiple of `CELLS`.
    """
    return jnp.concatenate([product.reshape(-1, COLUMNS) for product in products]).astype(jnp.bfloat16)


def operand(shape: tuple[int, ...]) -> Any:
    """Shared memory for bfloat16 operands of the tensor cores; the last dimension is `CELLS` or `COLUMNS`."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(64)))


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
            for k, (operand, slot) in enumerate(zip(operands, slots, strict=True)):
                if not self._resident:
                    plgpu.barrier_wait(self._filled.at[slot])
                plgpu.wgmma(sums, operand, self._tiles.at[slot])
                if k and not self._resident:
                    plgpu.wgmma_wait(1)
                    plgpu.barrier_arrive(self._emptied.at[slots[k - 1]])
            plgpu.wgmma_wait(0)
            if not self._resident:
                plgpu.barrier_arrive(self._emptied.at[slots[-1]])
            return sums[...]

        accumulator = plgpu.ACC((LANES, COLUMNS), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
        return pl.run_scoped(accumulate, accumulator)


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
