"""Scoring a tile in one launch on NVIDIA Hopper (see kernels/hopper.py for how it is cut up).

Device memory sees call numbers, surprisals and c; everything else stays in registers and shared memory, or is weights
that come from L2. The folded table's rows are fetched by the tensor cores: one-hot rows times the table. Shared memory
cannot take rows of a table at the positions that the tensor cores want, and a product that is exact, in the same ring,
costs less than a second kind of copy; the price is that a layer's first product has V + 1 rows more.

The log-sum-exp runs along with the head's products. Columns beyond V have a bias so low that their probability is zero.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, hopper
from syscall_lm.kernels.hopper import CELLS, COLUMNS, LANES

NOTHING = -1e30  # the logit of a call that is not in the vocabulary


def check(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry) -> hopper.Config:
    """The configuration for these shapes, by shape and type only.

    Raises:
      Unsuitable: not float32, or too many cells, layers or calls for a block's shared memory.
    """
    floats = [table, *w_hh, *jax.tree.leaves(upper), w_out, b_out, *jax.tree.leaves(carry)]
    if other := {str(array.dtype) for array in floats} - {"float32"}:
        raise choice.Unsuitable(f"mosaic_gpu takes float32, not {', '.join(sorted(other))}")
    cells, vocabulary = w_out.shape
    size = operand_bytes(cells, len(w_hh))
    return hopper.choose_config(inputs.shape[1], size, 2 * size)


def operand_bytes(cells: int, layers: int) -> int:
    """Shared memory of 64 lanes: every layer's h in bfloat16; their c, in float32, would take twice that."""
    return LANES * 2 * layers * hopper.padded(cells, CELLS)


@functools.partial(jax.jit, static_argnames="config")
def score_tile(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry, config: hopper.Config | None = None):
    """See `api.score_tile`; with a configuration to choose.

    Raises:
      Unsuitable: see `check`.
    """
    config = config or check(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry)
    (cells, vocabulary), (steps, lanes), layers = w_out.shape, inputs.shape, len(w_hh)
    width, height = hopper.padded(cells, CELLS), hopper.padded(lanes, config.cluster_lanes)
    columns = hopper.padded(vocabulary, COLUMNS)
    tape, biases = weights_of(w_hh, upper, w_out, b_out, config)
    rows = hopper.fetched_columns(hopper.gate_columns(table, width)).astype(jnp.bfloat16)

    keep = hopper.pad(1 - jnp.asarray(reset, jnp.float32), (steps, height))
    inputs = jnp.clip(inputs, 0, vocabulary)  # the kernel reads the table wherever they say
    inputs, targets = (hopper.pad(jnp.asarray(ids, jnp.int32), (steps, height)) for ids in (inputs, targets))
    c, h = (
        jnp.stack([hopper.pad(jnp.asarray(pair[part], jnp.float32), (height, width)) for pair in carry])
        for part in range(2)
    )

    def body(tape, rows, biases, inputs, targets, keep, c_in, h_in, surprisal, c_out, h_out, hidden, **scratch):
        cells = scratch.pop("cells", None)
        ring = hopper.Ring(config, tape, **scratch)
        groups = [pl.ds(start, CELLS) for start in range(0, width, CELLS)]

        def compute(first, warpgroup):
            mine = pl.ds(first, LANES)
            h = [hidden.at[warpgroup, layer] for layer in range(layers)]
            c = [(c_out.at[layer, mine] if cells is None else cells.at[warpgroup, layer]) for layer in range(layers)]
            read = hopper.load if cells is None else (lambda ref: ref[...])
            for layer in range(layers):
                for group in groups:
                    h[layer][:, group] = hopper.load(h_in.at[layer, mine, group]).astype(jnp.bfloat16)
                    c[layer][:, group] = hopper.load(c_in.at[layer, mine, group])
            ring.begin()

            @pl.loop(0, steps)
            def _(t):
                ring.begin_step()
                kept = hopper.rows(hopper.load(keep.at[t, mine]), CELLS)
                call = hopper.load(inputs.at[t, mine])
                for layer in range(layers):
                    for group in groups:
                        h[layer][:, group] = (h[layer][:, group].astype(jnp.float32) * kept).astype(jnp.bfloat16)
                plgpu.commit_smem()
                for layer in range(layers):
                    step_of_layer(layer, call, kept, h, c[layer], read)
                    plgpu.commit_smem()
                surprisal[t, mine] = head(h[-1], hopper.load(targets.at[t, mine]))
                ring.end_step()

            for layer in range(layers):
                for group in groups:
                    h_out[layer, mine, group] = h[layer][:, group].astype(jnp.float32)
                    if cells is not None:
                        c_out[layer, mine, group] = c[layer][:, group]

        def step_of_layer(layer, call, kept, h, c, read):
            after = []
            for number, group in enumerate(groups):
                old = read(c.at[:, group]) * kept
                if layer == 0:
                    from_call = hopper.fetch(rows, number, call)  # under way while the product runs
                    gates = ring.product(h[0]) + from_call.astype(jnp.float32)
                else:
                    bias = hopper.load(biases.at[(layer - 1) * len(groups) + number])
                    gates = ring.product(h[layer], h[layer - 1]) + hopper.columns(bias)
                new, hidden = hopper.cell(hopper.gates_of(gates), old)
                c[:, group] = new
                after.append(hidden.astype(jnp.bfloat16))
            for group, hidden in zip(groups, after, strict=True):  # only now has every product read the old ones
                h[layer][:, group] = hidden

        def head(h, target):
            greatest = total = chosen = None
            for number in range(columns // COLUMNS):
                bias = hopper.load(biases.at[(layers - 1) * len(groups) + number])
                logits = ring.product(h) + hopper.columns(bias)
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

        hopper.by_role(config, compute, lambda: ring.fill(steps))

    state = jax.ShapeDtypeStruct((layers, height, width), jnp.float32)
    scratch = {
        "hidden": hopper.operand((config.warpgroups, layers, LANES, width)),
        **hopper.ring_scratch(config),
    }
    if config.resident:
        scratch["cells"] = hopper.state((config.warpgroups, layers, LANES, width))
    out_type = [jax.ShapeDtypeStruct((steps, height), jnp.float32), state, state]
    kernel = hopper.launch(body, out_type, scratch, config, height, "score_tile")
    surprisal, c, h = kernel(tape, rows, biases, inputs, targets, keep, c, h)
    return surprisal[:, :lanes], [(c[layer, :lanes, :cells], h[layer, :lanes, :cells]) for layer in range(layers)]


def weights_of(w_hh, upper, w_out, b_out, config: hopper.Config) -> tuple[jax.Array, jax.Array]:
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
    tape = hopper.tape_of([*products, jnp.moveaxis(head, 1, 0)], config)
    b_head = jnp.pad(jnp.asarray(b_out), (0, columns - vocabulary), constant_values=NOTHING)
    biases = [*(hopper.gate_columns(jnp.asarray(b), width) for _, b in upper), b_head.reshape(-1, COLUMNS)]
    return tape, jnp.concatenate(biases)
