"""Scoring a tile in one launch on NVIDIA Hopper (see ring.py for how it is cut up).

Device memory sees call numbers, log-sum-exps, logits of the calls, c, h and rows of the folded table, which are
gathered straight into registers; everything else stays in registers and shared memory, or is weights that come from L2.
While other groups still read the old h, new ones wait in device memory, from which they come back together, those of
another block too.

The log-sum-exp runs along with the head's products, of which each block of a cluster has some: theirs are put together
afterwards. Columns beyond V have a bias so low that their probability is zero.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, clusters, hopper
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
    parts = None if choice.interpret is None else 1  # interpreted, each block of a cluster holds a thread of XLA's
    return choose_config(inputs.shape[1], cells, len(w_hh), parts)


def choose_config(lanes: int, cells: int, layers: int, parts: int | None = None) -> rings.Config:
    """See `rings.choose_config`."""
    return rings.choose_config(lanes, groups_of(cells), operand_bytes(cells, layers), parts)


def groups_of(cells: int) -> int:
    """Groups of `CELLS` cells."""
    return hopper.padded(cells, CELLS) // CELLS


def operand_bytes(cells: int, layers: int) -> int:
    """Shared memory of 64 lanes: every layer's h in bfloat16, and what leaves for device memory."""
    return LANES * 2 * (layers * hopper.padded(cells, CELLS) + STAGED * CELLS)


@functools.partial(jax.jit, static_argnames="config")
def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry, config: rings.Config | None = None):
    """See `api.score_tile`; with a configuration to choose.

    Raises:
      Unsuitable: see `check`.
    """
    config = config or check(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry)
    (cells, vocabulary), (steps, lanes), layers = w_out.shape, inputs.shape, len(w_hh)
    width, height = hopper.padded(cells, CELLS), hopper.padded(lanes, config.block_lanes)
    groups = groups_of(cells)
    work = rings.Work(groups, hopper.padded(vocabulary, COLUMNS) // COLUMNS, layers, config.parts)
    tape, biases = weights_of(w_hh, upper, w_out, b_out, work)
    rows = hopper.fetched_columns(hopper.gate_columns(table, width)).astype(jnp.bfloat16).reshape(-1, COLUMNS)

    keep = hopper.pad(1 - jnp.asarray(reset, jnp.float32), (steps, height))
    inputs = jnp.clip(inputs, 0, vocabulary)  # the kernel reads the table wherever they say
    inputs, targets = (hopper.pad(jnp.asarray(ids, jnp.int32), (steps, height)) for ids in (inputs, targets))
    c, h = (jnp.stack([hopper.in_groups(pair[part], height, width) for pair in carry]) for part in range(2))

    turns = 1 if config.parts == 1 else 2  # another block may still read a step's h when the next ones are written

    def body(tape, rows, biases, inputs, targets, keep, c_in, h_in, normaliser, logit, c_out, h_out, **scratch):
        hidden, staged, arrived, met = (scratch.pop(name) for name in ("hidden", "staged", "arrived", "met"))
        part, room, warpgroup = clusters.place(config.parts, config.warpgroups + 1)
        ring = rings.Ring(config, work, part, room, tape, **scratch)
        share = work.share(part)
        here = room * config.warpgroups + warpgroup  # a computing warpgroup's operands
        mine = pl.ds(jax.lax.axis_index("cluster") * config.block_lanes + warpgroup * LANES, LANES)

        def compute():
            for layer in range(layers):
                fetch_h(h_in, layer, layer)

                @pl.loop(*share.groups)
                def _(group, layer=layer):
                    c_out[layer, group, mine] = hopper.load(c_in.at[layer, group, mine])

            ring.begin()
            pl.loop(0, steps)(step)

        def step(t):
            tile = t * ring.count
            turn = 0 if turns == 1 else jax.lax.rem(t, jnp.int32(turns))
            kept = hopper.load(keep.at[t, mine])
            call = hopper.load(inputs.at[t, mine])
            for layer in range(1, layers):

                @pl.loop(0, groups)
                def _(group, layer=layer):
                    h = hidden[here, layer, group].astype(jnp.float32)
                    hidden[here, layer, group] = (h * hopper.rows(kept, CELLS)).astype(jnp.bfloat16)

            if layers > 1:
                plgpu.commit_smem()
            for layer in range(layers):
                read = operands(layer) + (operands(layer - 1) if layer > 0 else [])

                @pl.loop(*share.groups)
                def _(group, layer=layer, read=read, tile=tile):
                    c = hopper.load(c_out.at[layer, group, mine]) * hopper.rows(kept, CELLS)
                    if layer == 0:  # both loads are under way while the product runs
                        below = hopper.fetch(rows, call + group * (vocabulary + 1))
                    else:
                        below = hopper.columns(hopper.load(biases.at[(layer - 1) * groups + group]))
                    sums = ring.product(tile + (group - share.groups[0]) * len(read), read)
                    if layer == 0:  # rows of h that are zero make rows of the product zero
                        sums *= hopper.rows(kept, COLUMNS)
                    c, h = hopper.cell(hopper.gates_of(sums + below.astype(jnp.float32)), c)
                    c_out[layer, group, mine] = c
                    slot = jax.lax.rem(group, jnp.int32(STAGED))
                    plgpu.wait_smem_to_gmem(STAGED - 1, wait_read_only=True)
                    staged[here, slot] = h.astype(jnp.bfloat16)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(staged.at[here, slot], h_out.at[turn * layers + layer, group, mine])

                tile += (share.groups[1] - share.groups[0]) * len(read)
                plgpu.wait_smem_to_gmem(0)
                if config.parts > 1:
                    clusters.meet(met.at[warpgroup])
                fetch_h(h_out, turn * layers + layer, layer)
            normaliser[part, t, mine], logit[part, t, mine] = head(tile, hopper.load(targets.at[t, mine]))

        def fetch_h(source, number, layer):
            plgpu.copy_gmem_to_smem(source.at[number, :, mine], hidden.at[here, layer], arrived.at[here])
            plgpu.barrier_wait(arrived.at[here])

        def operands(layer):
            return [hidden.at[here, layer, group] for group in range(groups)]

        def head(tile, target):
            def more_calls(number, state):
                greatest, total, chosen = state
                bias = hopper.load(biases.at[(layers - 1) * groups + number])
                logits = ring.product(tile + (number - share.products[0]) * groups, operands(layers - 1))
                logits += hopper.columns(bias)
                numbers = jax.lax.broadcasted_iota(jnp.int32, (LANES, COLUMNS), 1) + number * COLUMNS
                chosen += jnp.sum(jnp.where(numbers == hopper.rows(target, COLUMNS), logits, 0.0), axis=1)
                before, greatest = greatest, jnp.maximum(greatest, jnp.max(logits, axis=1))
                total = total * jnp.exp(before - greatest)
                total += jnp.sum(jnp.exp(logits - hopper.rows(greatest, COLUMNS)), axis=1)
                return greatest, total, chosen

            state = tuple(jnp.full((LANES,), value, jnp.float32) for value in (NOTHING, 0, 0))
            if config.parts > 1:
                state = jax.lax.fori_loop(*share.products, more_calls, state)
            else:
                for number in range(work.products):
                    state = more_calls(number, state)
            greatest, total, chosen = state
            return greatest + jnp.log(total), chosen

        rings.by_role(config, warpgroup, compute, lambda: ring.fill(steps))

    state = jax.ShapeDtypeStruct((layers, groups, height, CELLS), jnp.float32)
    rooms = clusters.rooms(config.parts) * config.warpgroups
    scratch = {
        "hidden": hopper.operand((rooms, layers, groups, LANES, CELLS)),
        "staged": hopper.operand((rooms, STAGED, LANES, CELLS)),
        "arrived": plgpu.Barrier(num_barriers=rooms),
        "met": clusters.meeting(config.parts, config.warpgroups),
        **rings.ring_scratch(config),
    }
    of_calls = jax.ShapeDtypeStruct((config.parts, steps, height), jnp.float32)
    h_state = jax.ShapeDtypeStruct((turns * layers, groups, height, CELLS), jnp.bfloat16)
    kernel = rings.launch(body, [of_calls, of_calls, state, h_state], scratch, config, height, "score_tile")
    normaliser, logit, c, h = kernel(tape, rows, biases, inputs, targets, keep, c, h.astype(jnp.bfloat16))
    surprisal = jax.nn.logsumexp(normaliser, axis=0) - logit.sum(axis=0)
    last = (steps - 1) % turns * layers
    c, h = (hopper.from_groups(part, lanes, cells).astype(jnp.float32) for part in (c, h[last : last + layers]))
    return surprisal[:, :lanes], [(c[layer], h[layer]) for layer in range(layers)]


def weights_of(w_hh, upper, w_out, b_out, work: rings.Work) -> tuple[jax.Array, jax.Array]:
    """The tapes, part after part, and the biases of products that need one, `[products, COLUMNS]` in float32."""
    cells, vocabulary = w_out.shape
    width = hopper.padded(cells, CELLS)

    def gates(weights):
        return hopper.gate_columns(hopper.pad(jnp.asarray(weights), (width, 4 * cells)), width)

    by_layer = [gates(w_hh[0])]
    for recurrent, (w_ih, _) in zip(w_hh[1:], upper, strict=True):
        by_layer.append(jnp.concatenate([gates(recurrent), gates(w_ih)], axis=1))
    columns = work.products * COLUMNS
    head = hopper.pad(jnp.asarray(w_out), (width, columns)).reshape(width, -1, COLUMNS)
    head = jnp.moveaxis(head, 1, 0)
    products = []
    for share in work.shares:
        products += [*(layer[slice(*share.groups)] for layer in by_layer), head[slice(*share.products)]]
    b_head = jnp.pad(jnp.asarray(b_out), (0, columns - vocabulary), constant_values=NOTHING)
    biases = [*(hopper.gate_columns(jnp.asarray(b), width) for _, b in upper), b_head.reshape(-1, COLUMNS)]
    return hopper.tape_of(products), jnp.concatenate(biases)
