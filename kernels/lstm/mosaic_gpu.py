"""The recurrence in one launch on NVIDIA Hopper (see kernels/hopper.py for how it is cut up).

Operands of `h @ w_hh` are bfloat16; sums, c and the gates' arithmetic are float32. For a gradient the kernel keeps c of
every step beside h; one product over all steps then finds the gates again, and the rest is XLA's backward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, hopper
from syscall_lm.kernels.hopper import CELLS, LANES
from syscall_lm.kernels.lstm import xla


@jax.custom_vjp
def lstm(x, w_hh, reset, carry):
    """See `api.lstm`.

    Raises:
      Unsuitable: not float32, or too many cells for a block's shared memory.
    """
    h, c = run(x, w_hh, reset, carry)
    return h, (c[-1], h[-1])


def _forward(x, w_hh, reset, carry):
    h, c = run(x, w_hh, reset, carry, every_c=True)
    return (h, (c[-1], h[-1])), (x, h, c, w_hh, reset, carry)


def _backward(saved, gradients):
    x, h, c, w_hh, reset, carry = saved
    keep = 1 - reset[..., None].astype(h.dtype)
    c_before, h_before = (
        jnp.concatenate([first[None], later[:-1]]) * keep for first, later in zip(carry, (c, h), strict=True)
    )
    factors = xla.factors(xla.tanh(x + h_before @ w_hh), c_before, c, keep)
    return xla.backward((h, factors, w_hh, reset, carry[1]), gradients)


lstm.defvjp(_forward, _backward)


def check(x, w_hh) -> hopper.Config:
    """The configuration for these shapes, by shape and type only.

    Raises:
      Unsuitable: see `lstm`.
    """
    if any(array.dtype != jnp.float32 for array in (x, w_hh)):
        raise choice.Unsuitable(f"mosaic_gpu takes float32, not {x.dtype} and {w_hh.dtype}")
    cells = hopper.padded(w_hh.shape[0], CELLS)
    return hopper.choose_config(x.shape[1], LANES * cells * 2)


@functools.partial(jax.jit, static_argnames=("every_c", "config"))
def run(x, w_hh, reset, carry, every_c: bool = False, config: hopper.Config | None = None):
    """The kernel.

    Args:
      x, w_hh, reset, carry: see `api.lstm`.
      every_c: whether to keep c of every step.
      config: how to cut it up; None for the best that fits.

    Returns:
      h `[T, B, H]`, and c `[T, B, H]`, or only the last, `[1, B, H]`.

    Raises:
      Unsuitable: see `lstm`.
    """
    steps, lanes, _ = x.shape
    cells = w_hh.shape[0]
    config = config or check(x, w_hh)
    width, height = hopper.padded(cells, CELLS), hopper.padded(lanes, config.block_lanes)
    groups = width // CELLS
    tape = hopper.tape_of([hopper.gate_columns(hopper.pad(w_hh, (width, 4 * cells)), width)])
    gates = jnp.moveaxis(hopper.gate_columns(hopper.pad(x, (steps, height, 4 * cells)), width), 0, 1)
    keep = hopper.pad(1 - reset.astype(jnp.float32), (steps, height))
    c, h = (hopper.in_groups(part, height, width) for part in carry)

    def body(tape, x, keep, c_in, h_in, h_out, c_out, hidden, **scratch):
        ring = hopper.Ring(config, tape, **scratch)

        def compute(first, warpgroup):
            mine = pl.ds(first, LANES)
            operands = [hidden.at[warpgroup, group] for group in range(groups)]

            @pl.loop(0, groups)
            def _(group):
                hidden[warpgroup, group] = hopper.load(h_in.at[group, mine]).astype(jnp.bfloat16)
                c_out[0, group, mine] = hopper.load(c_in.at[group, mine])

            ring.begin()

            @pl.loop(0, steps)
            def _(t):
                kept = hopper.rows(hopper.load(keep.at[t, mine]), CELLS)
                before, now = (t, t + 1) if every_c else (0, 0)  # places in c_out, which begins with the carry

                @pl.loop(0, groups)
                def _(group):
                    hidden[warpgroup, group] = (hidden[warpgroup, group].astype(jnp.float32) * kept).astype(
                        jnp.bfloat16
                    )

                plgpu.commit_smem()

                @pl.loop(0, groups)
                def _(group):
                    old = hopper.load(c_out.at[before, group, mine]) * kept
                    x_t = hopper.load(x.at[t, group, mine])  # both loads are under way while the product runs
                    sums = ring.product(t * ring.count + group * groups, operands)
                    c_out[now, group, mine], h_out[t, group, mine] = hopper.cell(hopper.gates_of(x_t + sums), old)

                plgpu.commit_smem()  # what one thread wrote to h_out another may read

                @pl.loop(0, groups)  # only now has every product read the old ones
                def _(group):
                    hidden[warpgroup, group] = hopper.load(h_out.at[t, group, mine]).astype(jnp.bfloat16)

        hopper.by_role(config, compute, lambda: ring.fill(steps))

    out_type = [
        jax.ShapeDtypeStruct((steps, groups, height, CELLS), jnp.float32),
        jax.ShapeDtypeStruct((steps + 1 if every_c else 1, groups, height, CELLS), jnp.float32),
    ]
    scratch = {"hidden": hopper.operand((config.warpgroups, groups, LANES, CELLS)), **hopper.ring_scratch(config)}
    h, c = hopper.launch(body, out_type, scratch, config, height, "lstm")(tape, gates, keep, c, h)
    return hopper.from_groups(h, lanes, cells), hopper.from_groups(c[int(every_c) :], lanes, cells)
