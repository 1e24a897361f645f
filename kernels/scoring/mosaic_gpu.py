"""Scoring a tile in one launch on NVIDIA Hopper (see ring.py for how it is cut up).

Device memory sees call numbers, surprisals, c, h and rows of the folded table, which are gathered straight into
registers; everything else stays in registers and shared memory, or is weights that come from L2. While other groups
still read the old h, new ones wait in device memory, from which they come back together, or in a spare buffer.

The log-sum-exp runs along with the head's products. Columns beyond V have a bias so low that their probability is zero.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, hopper
from syscall_lm.kernels.hopper import CELLS, COLUMNS, LANES
from syscall_lm.kernels.scoring import ring as rings

STAGED = 2  # groups of new h that are on their way to device memory
MOST_CALLS = 8 * COLUMNS  # of the vocabulary: Linux has some 400 names, Windows 500
NOTHING = -1e30  # the logit of a call that is not in the vocabulary


def check(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry) -> rings.Config:
    """The configuration for these shapes, by shape and type only.

    Raises:
      Unsuitable: not float32, nothing to do, too large a vocabulary, or too many cells or layers for a block's shared
        memory.
    """
    floats = [table, *w_hh, *jax.tree.leaves(upper), w_out, b_out, *jax.tree.leaves(carry)]
    if other := {str(array.dtype) for array in floats} - {"float32"}:
        raise choice.Unsuitable(f"mosaic_gpu takes float32, not {', '.join(sorted(other))}")
    if not inputs.size:
        raise choice.Unsuitable("there is nothing to do for mosaic_gpu")
    cells, vocabulary = w_out.shape
    if vocabulary > MOST_CALLS:  # its products are written out one after another
        raise choice.Unsuitable(f"{vocabulary:,} calls are too many for mosaic_gpu, whose head takes {MOST_CALLS:,}")
    return rings.choose_config(inputs.shape[1], operand_bytes(cells, len(w_hh)))


def operand_bytes(cells: int, layers: int, spare: int = 0) -> int:
    """Shared memory of 64 lanes: every layer's h in bfloat16, and spare buffers or what leaves for device memory."""
    staged = 0 if spare else STAGED * CELLS
    return LANES * 2 * ((layers + spare) * hopper.padded(cells, CELLS) + staged)


@functools.partial(jax.jit, static_argnames="config")
def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry, config: rings.Config | None = None):
    """See `api.score_tile`; with a configuration to choose.

    Raises:
      Unsuitable: see `check`.
    """
    config = config or check(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry)
    (cells, vocabulary), (steps, lanes), layers = w_out.shape, inputs.shape, len(w_hh)
    width, height = hopper.padded(cells, CELLS), hopper.padded(lanes, config.block_lanes)
    groups, columns = width // CELLS, hopper.padded(vocabulary, COLUMNS)
    tape, biases = weights_of(w_hh, upper, w_out, b_out)
    rows = hopper.fetched_columns(hopper.gate_columns(table, width)).astype(jnp.bfloat16).reshape(-1, COLUMNS)

    keep = hopper.pad(1 - jnp.asarray(reset, jnp.float32), (steps, height))
    inputs = jnp.clip(inputs, 0, vocabulary)  # the kernel reads the table wherever they say
    inputs, targets = (hopper.pad(jnp.asarray(ids, jnp.int32), (steps, height)) for ids in (inputs, targets))
    c, h = (jnp.stack([hopper.in_groups(pair[part], height, width) for pair in carry]) for part in range(2))

    def body(tape, rows, biases, inputs, targets, keep, c_in, h_in, surprisal, c_out, h_out, hidden, **scratch):
        staged, arrived = scratch.pop("staged", None), scratch.pop("arrived")
        ring = rings.Ring(config, tape, **scratch)

        def compute(first, warpgroup):
            mine = pl.ds(first, LANES)

            def buffer(layer, t):
                """Where a layer's h before step t lie: with a spare buffer each step moves all layers by one."""
                return jax.lax.rem(layer + layers * t, jnp.int32(layers + 1)) if config.spare else layer

            def fetch_h(source, layer):
                here = hidden.at[warpgroup, layer]
                plgpu.copy_gmem_to_smem(source.at[layer, :, mine], here, arrived.at[warpgroup])
                plgpu.barrier_wait(arrived.at[warpgroup])

            def operands(layer, t):
                here = buffer(layer, t)
                return [hidden.at[warpgroup, here, group] for group in range(groups)]

            def keep_new(h, layer, t, group):
                """Puts a group's h after step t where no product of this step reads them."""
                if staged is None:
                    hidden[warpgroup, buffer(layer, t + 1), group] = h
                    return
                slot = jax.lax.rem(group, jnp.int32(STAGED))
                plgpu.wait_smem_to_gmem(STAGED - 1, wait_read_only=True)
                staged[warpgroup, slot] = h
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(staged.at[warpgroup, slot], h_out.at[layer, group, mine])

            def publish_new(layer):
                """Has products read a layer's new h, all of which are there."""
                if staged is None:
                    plgpu.commit_smem()
                    return
                plgpu.wait_smem_to_gmem(0)
                fetch_h(h_out, layer)

            for layer in range(layers):
                fetch_h(h_in, layer)

                @pl.loop(0, groups)
                def _(group, layer=layer):
                    c_out[layer, group, mine] = hopper.load(c_in.at[layer, group, mine])

            ring.begin()

            @pl.loop(0, steps)
            def _(t):
                tile = t * ring.count
                kept = hopper.load(keep.at[t, mine])
                call = hopper.load(inputs.at[t, mine])
                for layer in range(1, layers):

                    @pl.loop(0, groups)
                    def _(group, layer=layer):
                        here = buffer(layer, t)
                        h = hidden[warpgroup, here, group].astype(jnp.float32)
                        hidden[warpgroup, here, group] = (h * hopper.rows(kept, CELLS)).astype(jnp.bfloat16)

                if layers > 1:
                    plgpu.commit_smem()
                for layer in range(layers):
                    read = operands(layer, t) + (operands(layer - 1, t + 1) if layer > 0 else [])

                    @pl.loop(0, groups)
                    def _(group, layer=layer, read=read, tile=tile):
                        c = hopper.load(c_out.at[layer, group, mine]) * hopper.rows(kept, CELLS)
                        if layer == 0:  # both loads are under way while the product runs
                            below = hopper.fetch(rows, call + group * (vocabulary + 1))
                        else:
                            below = hopper.columns(hopper.load(biases.at[(layer - 1) * groups + group]))
                        sums = ring.product(tile + group * len(read), read)
                        if layer == 0:  # rows of h that are zero make rows of the product zero
                            sums *= hopper.rows(kept, COLUMNS)
                        c, h = hopper.cell(hopper.gates_of(sums + below.astype(jnp.float32)), c)
                        c_out[layer, group, mine] = c
                        keep_new(h.astype(jnp.bfloat16), layer, t, group)

                    tile += groups * len(read)
                    publish_new(layer)
                surprisal[t, mine] = head(tile, operands(layers - 1, t + 1), hopper.load(targets.at[t, mine]))

            if staged is None:
                for layer in range(layers):
                    last = hidden.at[warpgroup, (layer + layers * steps) % (layers + 1)]
                    plgpu.copy_smem_to_gmem(last, h_out.at[layer, :, mine])
                plgpu.wait_smem_to_gmem(0)

        def head(tile, h, target):
            greatest = total = chosen = None
            for number in range(columns // COLUMNS):
                bias = hopper.load(biases.at[(layers - 1) * groups + number])
                logits = ring.product(tile + number * groups, h) + hopper.columns(bias)
                numbers = jax.lax.broadcasted_iota(jnp.int32, (LANES, COLUMNS), 1) + number * COLUMNS
                of_target = jnp.sum(jnp.where(numbers == hopper.rows(target, COLUMNS), logits, 0.0), axis=1)
                block = jnp.max(logits, axis=1)
                if greatest is None or total is None or chosen is None:
                    greatest, chosen = block, of_target
                    total = jnp.sum(jnp.exp(logits - hopper.rows(greatest, COLUMNS)), axis=1)
                else:
                    before, greatest = greatest, jnp.maximum(greatest, block)
                    chosen += of_target
                    total = total * jnp.exp(before - greatest)
                    total += jnp.sum(jnp.exp(logits - hopper.rows(greatest, COLUMNS)), axis=1)
            assert greatest is not None and total is not None and chosen is not None  # there is at least one call
            return greatest + jnp.log(total) - chosen

        rings.by_role(config, compute, lambda: ring.fill(steps))

    state = jax.ShapeDtypeStruct((layers, groups, height, CELLS), jnp.float32)
    scratch = {
        "hidden": hopper.operand((config.warpgroups, layers + config.spare, groups, LANES, CELLS)),
        "arrived": plgpu.Barrier(num_barriers=config.warpgroups),
        **rings.ring_scratch(config),
    }
    if not config.spare:
        scratch["staged"] = hopper.operand((config.warpgroups, STAGED, LANES, CELLS))
    h_state = jax.ShapeDtypeStruct(state.shape, jnp.bfloat16)
    out_type = [jax.ShapeDtypeStruct((steps, height), jnp.float32), state, h_state]
    kernel = rings.launch(body, out_type, scratch, config, height, "score_tile")
    surprisal, c, h = kernel(tape, rows, biases, inputs, targets, keep, c, h.astype(jnp.bfloat16))
    c, h = (hopper.from_groups(part, lanes, cells).astype(jnp.float32) for part in (c, h))
    return surprisal[:, :lanes], [(c[layer], h[layer]) for layer in range(layers)]


def weights_of(w_hh, upper, w_out, b_out) -> tuple[jax.Array, jax.Array]:
    """The tape, and the biases in the order of the products that need one, `[products, COLUMNS]` in float32."""
    cells, vocabulary = w_out.shape
    width = hopper.padded(cells, CELLS)

    def gates(weights):
        return hopper.gate_columns(hopper.pad(jnp.asarray(weights), (width, 4 * cells)), width)

    products = [gates(w_hh[0])]
    for recurrent, (w_ih, _) in zip(w_hh[1:], upper, strict=True):
        products.append(jnp.concatenate([gates(recurrent), gates(w_ih)], axis=1))
    columns = hopper.padded(vocabulary, COLUMNS)
    head = hopper.pad(jnp.asarray(w_out), (width, columns)).reshape(width, -1, COLUMNS)
    tape = hopper.tape_of([*products, jnp.moveaxis(head, 1, 0)])
    b_head = jnp.pad(jnp.asarray(b_out), (0, columns - vocabulary), constant_values=NOTHING)
    biases = [*(hopper.gate_columns(jnp.asarray(b), width) for _, b in upper), b_head.reshape(-1, COLUMNS)]
    return tape, jnp.concatenate(biases)
