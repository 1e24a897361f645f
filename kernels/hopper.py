"""What the kernels for NVIDIA Hopper share: how weights and states are laid out for the tensor cores.

Cells come in groups of 32, whose four gates are the 128 columns of one product; lanes in groups of 64, the rows of a
warpgroup's matrix instruction. Each kernel loops over time inside, and state never leaves the chip's caches. Operands
are bfloat16, sums float32. There are two ways to cut the work up: kernels/scoring streams all weights past a block of
many lanes (ring.py), kernels/lstm gives a cluster of blocks 64 lanes and each block of it one group of cells.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, gather

LANES = 64  # rows of one warpgroup's matrix instruction
COLUMNS = 128  # columns of one product; its sums take 64 registers a thread
CELLS = COLUMNS // 4  # cells whose four gates one product holds
TILE_BYTES = CELLS * COLUMNS * 2
SHARED_BYTES = 232_448  # what a block may have on compute capability 9.0
RESERVED_BYTES = 4_096  # barriers, and the compiler's scratch for reductions
PARAMETERS = plgpu.CompilerParams(
    # Mosaic's own barriers of a warpgroup, around stores and before copies, are relied on: no warp may overwrite what
    # another still reads, and threads read elements that others wrote.
    unsafe_no_auto_barriers=False,
    # tanh, exp and log as single instructions: about 2^-11 off, a quarter of what rounding to bfloat16 costs.
    approx_math=True,
    lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
)


def padded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def pad(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array of that shape: the given one, and zeros behind it in every dimension."""
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


def load(ref: Any) -> jax.Array:
    """Reads device memory, of any shape, into registers, in whatever layout the arithmetic asks for."""
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
    """The logistic function of each element, by way of tanh, which is one instruction."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def cell(gates: list[jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of one group of cells, as `reference.cell`.

    Args:
      gates: i, f, g and o before their functions, each `[LANES, CELLS]`.
      c: `[LANES, CELLS]`, the cell state before the step.

    Returns:
      (c, h) after it, each `[LANES, CELLS]`.
    """
    i, f, g, o = gates
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


def gates_of(sums: jax.Array) -> list[jax.Array]:
    """The four gates of a product's sums `[LANES, COLUMNS]`, each `[LANES, CELLS]`."""
    return [sums[:, gate * CELLS : (gate + 1) * CELLS] for gate in range(4)]
