"""The recurrence on NVIDIA Hopper: forward in one launch, and backward in one.

A cluster of blocks owns 64 lanes. Every block of it, which is one warpgroup, owns `CELLS` cells: their weights stay in
its shared memory from the first step to the last, their c in its registers. What a step needs of the other cells, h
forward and the gradients of the gates backward, is a result anyway: each block writes its own to device memory, the
cluster meets at a barrier, and each reads what the others wrote, from L2. So a step takes the time of that exchange,
some microseconds, whatever the number of lanes, until blocks outnumber multiprocessors.

Operands, gates, h and all gradients between steps are bfloat16; c, sums and the gates' arithmetic are float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from syscall_lm.kernels import choice, clusters, hopper
from syscall_lm.kernels.hopper import CELLS, COLUMNS, LANES, TILE_BYTES

GATES = 4
PLANES = GATES + 2  # what the backward pass multiplies by, for each cell: see `factors`
LARGEST_CLUSTER = 14  # blocks whose weights and operands fit; Hopper has clusters of 16 for kernels that ask
PLANE_BYTES = LANES * CELLS * 2
EXCHANGED = GATES * PLANE_BYTES  # the gates' gradients of a block's cells


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the kernels are cut up.

    Attributes:
      parts: blocks of a cluster, each with `CELLS` cells.
      stages: how many blocks' gradients a block has in flight or in use at a time; backward only.
    """

    parts: int
    stages: int = 0

    @property
    def rooms(self) -> int:
        """See `clusters.rooms`."""
        return clusters.rooms(self.parts)

    @property
    def bytes(self) -> int:
        """Shared memory of one block, forward (where there are no stages) or backward."""
        exchange = self.stages * EXCHANGED or self.parts * PLANE_BYTES
        return self.parts * TILE_BYTES + EXCHANGED + (1 + PLANES) * PLANE_BYTES + exchange


def plan(cells: int, *, backward: bool = False) -> Plan:
    """As many stages as fit.

    Raises:
      Unsuitable: too many cells for a cluster and its shared memory (see choice.py).
    """
    parts = hopper.padded(cells, CELLS) // CELLS
    if parts > LARGEST_CLUSTER:
        raise choice.Unsuitable(f"{cells} cells take a cluster of {parts} blocks; there are at most {LARGEST_CLUSTER}")
    plans = (Plan(parts, stages) for stages in (range(parts, 0, -1) if backward else (0,)))
    return next(plan for plan in plans if plan.bytes <= hopper.SHARED_BYTES - hopper.RESERVED_BYTES)


@jax.custom_vjp
def lstm(x, w_hh, reset, carry):
    """See `api.lstm`.

    Raises:
      Unsuitable: not float32, nothing to do, or too many cells for a cluster.
    """
    return run(x, w_hh, reset, carry)[:2]


def _forward(x, w_hh, reset, carry):
    h, after, factors = run(x, w_hh, reset, carry, training=True)
    return (h, after), (h, factors, w_hh, reset, carry[1])


def _backward(saved, gradients):
    h, factors, w_hh, reset, first_h = saved
    dx, before = run_backward(factors, w_hh, reset, *gradients)
    h_before = jnp.where(reset[..., None], 0, jnp.concatenate([first_h[None], h[:-1]]))
    h_before, dgates = h_before.astype(jnp.bfloat16), dx.astype(jnp.bfloat16)  # which all but first_h are anyway
    dw_hh = jnp.einsum("tbh,tbg->hg", h_before, dgates, preferred_element_type=jnp.float32)
    return dx, dw_hh, None, before


lstm.defvjp(_forward, _backward)


def check(x, w_hh, carry) -> Plan:
    """How to cut these up, by shape and type only.

    Raises:
      Unsuitable: see `lstm`.
    """
    if other := {str(array.dtype) for array in (x, w_hh, *carry)} - {"float32"}:
        raise choice.Unsuitable(f"mosaic_gpu takes float32, not {', '.join(sorted(other))}")
    if not x.size:
        raise choice.Unsuitable("there is nothing to do for mosaic_gpu")
    return plan(w_hh.shape[0])


def planes(gates: jax.Array, height: int, parts: int) -> jax.Array:
    """Gates `[T, B, 4H]` as the kernels keep them: `[T * parts * 4, height, CELLS]` in bfloat16."""
    steps, lanes, columns = gates.shape
    split = gates.astype(jnp.bfloat16).reshape(steps, lanes, GATES, columns // GATES)
    split = hopper.pad(split, (steps, height, GATES, parts * CELLS))
    return split.reshape(steps, height, GATES, parts, CELLS).transpose(0, 3, 2, 1, 4).reshape(-1, height, CELLS)


def from_planes(gates: jax.Array, steps: int, lanes: int, cells: int) -> jax.Array:
    """The way back from `planes`, in float32."""
    split = gates.reshape(steps, -1, GATES, *gates.shape[1:]).transpose(0, 3, 2, 1, 4)
    wide = split.reshape(*split.shape[:3], -1)
    return wide[:, :lanes, :, :cells].astype(jnp.float32).reshape(steps, lanes, GATES * cells)


@functools.partial(jax.jit, static_argnames=("training", "cut"))
def run(x, w_hh, reset, carry, training: bool = False, cut: Plan | None = None):
    """The forward kernel.

    Args:
      x, w_hh, reset, carry: see `api.lstm`.
      training: whether to keep what the backward pass needs.
      cut: None for the best that fits.

    Returns:
      h `[T, B, H]`, (c, h) after the last step, and the factors `[T * parts * PLANES, height, CELLS]` or None: the
      derivatives of c, c, c and h by the pre-activations of i, f, g and o; of h by c; and of c by the c carried there.

    Raises:
      Unsuitable: see `lstm`.
    """
    steps, lanes, _ = x.shape
    cells = w_hh.shape[0]
    cut = cut or check(x, w_hh, carry)
    width, height = cut.parts * CELLS, hopper.padded(lanes, LANES)
    tape = hopper.tape_of([hopper.gate_columns(hopper.pad(w_hh, (width, 4 * cells)), width)])
    keep = hopper.pad(1 - reset.astype(jnp.float32), (steps, height))
    c, h = (hopper.in_groups(part, height, width) for part in carry)

    def body(tape, x, keep, c_in, h_in, h_out, c_last, h_last, *rest, weights, ready, hidden, loaded, **scratch):
        gates, arrived, staged, met = (scratch[name] for name in ("gates", "arrived", "staged", "met"))
        part, here, mine = place(cut)
        several = functools.partial(planes_at, cut.parts)

        def fetch(t):
            plgpu.copy_gmem_to_smem(x.at[several(t, part, GATES), mine], gates.at[here], arrived.at[here])

        plgpu.copy_gmem_to_smem(tape.at[pl.ds(part * width, width)], weights.at[here], ready.at[here])
        plgpu.copy_gmem_to_smem(h_in.at[:, mine], hidden.at[here], loaded.at[here])
        fetch(0)
        plgpu.barrier_wait(ready.at[here])

        def product(sums):
            for k in range(cut.parts):
                plgpu.wgmma(sums, hidden.at[here, k], weights.at[here, pl.ds(k * CELLS, CELLS)])
            plgpu.wgmma_wait(0)
            return sums[...]

        def step(t, state):
            kept = hopper.rows(hopper.load(keep.at[t, mine]), CELLS)
            before = state[0] * kept
            plgpu.barrier_wait(loaded.at[here])
            sums = hopper.gates_of(accumulated(product, COLUMNS))
            plgpu.barrier_wait(arrived.at[here])
            # Rows of h that are zero make rows of the product zero.
            i, f, g, o = (gates[here, gate].astype(jnp.float32) + sums[gate] * kept for gate in range(GATES))
            i, f, g, o = hopper.sigmoid(i), hopper.sigmoid(f), jnp.tanh(g), hopper.sigmoid(o)
            c = f * before + i * g
            tanh_c = jnp.tanh(c)
            h = o * tanh_c
            staged[here] = h.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(staged.at[here], h_out.at[t * cut.parts + part, mine])
            fetch(jnp.minimum(t + 1, steps - 1))
            if training:  # while h is on its way
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # the factors of the step before
                slopes = (
                    i * (1 - i) * g,
                    f * (1 - f) * before,
                    (1 - g * g) * i,
                    o * (1 - o) * tanh_c,
                    o * (1 - tanh_c * tanh_c),
                    f * kept,
                )
                for plane, slope in enumerate(slopes):
                    scratch["factors"][here, plane] = slope.astype(jnp.bfloat16)
                plgpu.commit_smem()
            plgpu.wait_smem_to_gmem(0)
            clusters.meet(met)
            if training:
                plgpu.copy_smem_to_gmem(scratch["factors"].at[here], rest[0].at[several(t, part, PLANES), mine])
            plgpu.copy_gmem_to_smem(h_out.at[pl.ds(t * cut.parts, cut.parts), mine], hidden.at[here], loaded.at[here])
            return c, h

        first = hopper.load(c_in.at[part, mine])
        c, h = jax.lax.fori_loop(0, steps, step, (first, first))
        c_last[part, mine], h_last[part, mine] = c, h
        for barrier in (loaded, arrived):  # nothing may be under way at the end
            plgpu.barrier_wait(barrier.at[here])
        plgpu.wait_smem_to_gmem(0)

    state = jax.ShapeDtypeStruct((cut.parts, height, CELLS), jnp.float32)
    out_type = [jax.ShapeDtypeStruct((steps * cut.parts, height, CELLS), jnp.bfloat16), state, state]
    rooms = cut.rooms
    scratch = {
        **weights_scratch(cut, (width, COLUMNS)),
        "hidden": hopper.operand((rooms, cut.parts, LANES, CELLS)),
        "loaded": plgpu.Barrier(num_barriers=rooms),
        "gates": hopper.operand((rooms, GATES, LANES, CELLS)),
        "arrived": plgpu.Barrier(num_barriers=rooms),
        "staged": hopper.operand((rooms, LANES, CELLS)),
    }
    if training:
        out_type.append(jax.ShapeDtypeStruct((steps * cut.parts * PLANES, height, CELLS), jnp.bfloat16))
        scratch["factors"] = hopper.operand((rooms, PLANES, LANES, CELLS))
    found = launch(body, out_type, scratch, cut, height, "lstm")(
        tape, planes(x, height, cut.parts), keep, c, h.astype(jnp.bfloat16)
    )
    c, last = (hopper.from_groups(array, lanes, cells) for array in found[1:3])
    h = found[0].reshape(steps, cut.parts, height, CELLS)
    return hopper.from_groups(h, lanes, cells).astype(jnp.float32), (c, last), found[3] if training else None


@functools.partial(jax.jit, static_argnames="cut")
def run_backward(factors, w_hh, reset, dh_out, after, cut: Plan | None = None):
    """The backward kernel.

    Args:
      factors: see `run`.
      w_hh, reset: see `api.lstm`.
      dh_out: the gradient of every h, `[T, B, H]`.
      after: those of (c, h) after the last step.
      cut: None for the best that fits.

    Returns:
      the gradients of the gates `[T, B, 4H]`, and of (c, h) before the first step.

    Raises:
      Unsuitable: see `lstm`.
    """
    steps, lanes, cells = dh_out.shape
    cut = cut or plan(cells, backward=True)
    width, height = cut.parts * CELLS, hopper.padded(lanes, LANES)
    tape = hopper.gate_columns(hopper.pad(w_hh, (width, 4 * cells)), width)  # [group, cell, column]
    tape = (
        tape.reshape(cut.parts, cut.parts, CELLS, GATES, CELLS)
        .transpose(1, 0, 3, 4, 2)
        .astype(jnp.bfloat16)
        .reshape(-1, CELLS, CELLS)
    )
    keep = hopper.pad(1 - reset.astype(jnp.float32), (steps, height))
    dc, dh = (hopper.in_groups(part, height, width) for part in after)
    dh_out = hopper.in_groups(dh_out, height, width).astype(jnp.bfloat16).reshape(-1, height, CELLS)

    def body(tape, factors, dh_out, keep, dc_in, dh_in, dx, dc_first, dh_first, *, weights, ready, **scratch):
        saved, above, arrived, staged, met = (scratch[n] for n in ("saved", "above", "arrived", "staged", "met"))
        ring, filled = scratch["ring"], scratch["filled"]
        part, here, mine = place(cut)
        several = functools.partial(planes_at, cut.parts)

        def fetch(t):
            plgpu.copy_gmem_to_smem(factors.at[several(t, part, PLANES), mine], saved.at[here], arrived.at[here])
            plgpu.copy_gmem_to_smem(dh_out.at[t * cut.parts + part, mine], above.at[here], arrived.at[here])

        plgpu.copy_gmem_to_smem(tape.at[several(0, part, GATES * cut.parts)], weights.at[here], ready.at[here])
        fetch(steps - 1)
        plgpu.barrier_wait(ready.at[here])

        def step(number, state):
            t = steps - 1 - number
            dc, dh = state
            kept = hopper.rows(hopper.load(keep.at[t, mine]), CELLS)
            plgpu.barrier_wait(arrived.at[here])
            by_i, by_f, by_g, by_o, h_by_c, c_by_before = (
                saved[here, plane].astype(jnp.float32) for plane in range(PLANES)
            )
            dh += above[here].astype(jnp.float32)
            dc += dh * h_by_c
            for gate, gradient in enumerate((dc * by_i, dc * by_f, dc * by_g, dh * by_o)):
                staged[here, gate] = gradient.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(staged.at[here], dx.at[several(t, part, GATES), mine])
            fetch(jnp.maximum(t - 1, 0))
            plgpu.wait_smem_to_gmem(0)
            clusters.meet(met)

            def load(group):
                slot = group % cut.stages
                barrier = filled.at[here * cut.stages + slot]
                plgpu.copy_gmem_to_smem(dx.at[several(t, group, GATES), mine], ring.at[here, slot], barrier)

            def product(sums):
                for group in range(cut.stages):
                    load(group)
                for group in range(cut.parts):
                    slot = group % cut.stages
                    plgpu.barrier_wait(filled.at[here * cut.stages + slot])
                    for gate in range(GATES):
                        plgpu.wgmma(sums, ring.at[here, slot, gate], weights.at[here, group * GATES + gate])
                    if group + cut.stages < cut.parts:
                        plgpu.wgmma_wait(0)
                        load(group + cut.stages)
                plgpu.wgmma_wait(0)
                return sums[...]

            return dc * c_by_before, accumulated(product, CELLS) * kept

        state = hopper.load(dc_in.at[part, mine]), hopper.load(dh_in.at[part, mine])
        dc_first[part, mine], dh_first[part, mine] = jax.lax.fori_loop(0, steps, step, state)
        plgpu.barrier_wait(arrived.at[here])  # nothing may be under way at the end

    state = jax.ShapeDtypeStruct((cut.parts, height, CELLS), jnp.float32)
    rooms = cut.rooms
    scratch = {
        **weights_scratch(cut, (cut.parts * GATES, CELLS, CELLS)),
        "saved": hopper.operand((rooms, PLANES, LANES, CELLS)),
        "above": hopper.operand((rooms, LANES, CELLS)),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=rooms),
        "staged": hopper.operand((rooms, GATES, LANES, CELLS)),
        "ring": hopper.operand((rooms, cut.stages, GATES, LANES, CELLS)),
        "filled": plgpu.Barrier(num_barriers=rooms * cut.stages),
    }
    out_type = [jax.ShapeDtypeStruct((steps * cut.parts * GATES, height, CELLS), jnp.bfloat16), state, state]
    found = launch(body, out_type, scratch, cut, height, "lstm_backward")(tape, factors, dh_out, keep, dc, dh)
    dc, dh = (hopper.from_groups(array, lanes, cells) for array in found[1:])
    return from_planes(found[0], steps, lanes, cells), (dc, dh)


def place(cut: Plan):
    """Which part of its cluster this block is, its room in shared memory, and which lanes are its."""
    part, room, _ = clusters.place(cut.parts)
    return part, room, pl.ds(jax.lax.axis_index("cluster") * LANES, LANES)


def planes_at(parts: int, t, group, count: int):
    """Where the planes of one step and one group of cells lie, in arrays `[T * parts * count, height, CELLS]`."""
    return pl.ds((t * parts + group) * count, count)


def weights_scratch(cut: Plan, shape: tuple[int, ...]):
    """Room for a block's weights, and the barriers at which they are there and at which the cluster meets."""
    return {
        "weights": hopper.operand((cut.rooms, *shape)),
        "ready": plgpu.Barrier(num_barriers=cut.rooms),
        "met": clusters.meeting(cut.parts),
    }


def accumulated(product, columns: int) -> jax.Array:
    """What `product` sums up in an accumulator `[LANES, columns]`."""
    accumulator = plgpu.ACC((LANES, columns), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
    return pl.run_scoped(product, accumulator)


def launch(body, out_type, scratch, cut: Plan, height: int, name: str):
    """`plgpu.kernel` over clusters of blocks."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=(height // LANES,),
        grid_names=("cluster",),
        kernel_name=name,
        compiler_params=hopper.PARAMETERS,
        interpret=choice.interpret,
        **clusters.axes(cut.parts),
    )
