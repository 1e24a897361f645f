"""The recurrence and scoring in clusters of two blocks, the last of which have lanes to spare, against the reference.

Run by test_hopper.py. One stage for the gradients of two blocks, so that buffers are used again. Measured, of the
greatest: states 4e-3, gradients 6e-3, surprisals 4e-3. The interpreter of jax 0.10 sees no races with copies that are
under way.
"""

import conftest  # of this folder: what the interpreter's threads compile
import jax
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from syscall_lm.experiments.benchmarking import gpu_checks
from syscall_lm.kernels import choice, lstm, scoring, shapes
from syscall_lm.kernels.lstm import mosaic_gpu
from syscall_lm.kernels.scoring import mosaic_gpu as mosaic_scoring
from syscall_lm.kernels.scoring import ring

STEPS, LANES, CELLS = 3, 130, 40
choice.interpret = InterpretGPUParams(detect_races=True)
mosaic_gpu.plan = lambda cells, backward=False: mosaic_gpu.Plan(2, int(backward))
rng = np.random.default_rng(0)
x = rng.normal(size=(STEPS, LANES, 4 * CELLS)).astype(np.float32)
w_hh = rng.normal(size=(CELLS, 4 * CELLS)).astype(np.float32) / 6
reset, carry = rng.random((STEPS, LANES)) < 0.3, tuple(rng.normal(size=(2, LANES, CELLS)).astype(np.float32))
weights = rng.normal(size=(STEPS, LANES, CELLS)).astype(np.float32)
races = []
assert conftest


def loss(x, w_hh, carry, implementation):
    h, (c, last) = lstm.lstm(x, w_hh, reset, carry, implementation=implementation)
    return (h * weights).sum() + (c * last).sum(), (h, c, last)


def both(implementation):
    value, gradient, states = jax.vjp(lambda *floats: loss(*floats, implementation), x, w_hh, carry, has_aux=True)
    jax.block_until_ready(states)
    races.append(gpu_callbacks.get_races().races_found if implementation == "mosaic_gpu" else False)
    found = jax.block_until_ready(gradient(np.float32(1)))
    races.append(gpu_callbacks.get_races().races_found if implementation == "mosaic_gpu" else False)
    return found, states


(found, found_states), (expected, states) = both("mosaic_gpu"), both("reference")
assert gpu_checks.greatest_difference(found_states, states) < 8e-3
for gradient, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    apart = gpu_checks.greatest_difference(gradient, right)
    assert apart < 1e-2 * np.abs(right).max(), (apart, np.abs(right).max())


def scored(tile, config):
    scores = jax.block_until_ready(mosaic_scoring.score_tile(*tile, config=config))
    races.append(gpu_callbacks.get_races().races_found)
    return scores


# Two warpgroups and layers; the head is one part's only, and the ring has as many buffers as the other has tiles.
tile = gpu_checks.tile(shapes.ModelShape(2, 40, 70), STEPS, 30)
expected = scoring.score_tile(*tile, implementation="reference")
assert gpu_checks.greatest_difference(scored(tile, ring.Config(2, 60, 2)), expected) < 8e-3
# One and two groups of cells, a product of the head each; two clusters; an even number of steps.
tile = gpu_checks.tile(shapes.ModelShape(1, 70, 130), 4, 70)
(surprisals, states), (expected, expected_states) = (scored(tile, ring.Config(1, 4, parts)) for parts in (2, 1))
assert gpu_checks.greatest_difference(states, expected_states) == 0
assert gpu_checks.greatest_difference(surprisals, expected) < 2e-6
assert not any(races)
print("equal, no races")
