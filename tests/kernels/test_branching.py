"""Lanes that keep states and go on from kept ones, against one step after another."""

import jax
import numpy as np
import pytest

from syscall_lm.kernels import scoring

STEPS, LANES, CELLS, VOCABULARY, SLOTS, EVENTS = 6, 5, 7, 11, 8, 3


def arguments(layers):
    rng = np.random.default_rng(layers)

    def drawn(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    upper = [(drawn(CELLS, 4 * CELLS), drawn(4 * CELLS)) for _ in range(layers - 1)]
    weights = drawn(VOCABULARY + 1, 4 * CELLS), [drawn(CELLS, 4 * CELLS) for _ in range(layers)], upper
    calls = rng.integers(0, VOCABULARY, (2, STEPS, LANES))
    tile = *calls, rng.random((STEPS, LANES)) < 0.2
    carry, kept = ([(drawn(count, CELLS), drawn(count, CELLS)) for _ in range(layers)] for count in (LANES, SLOTS))
    # Each lane and slot at most once a step; those that do not exist mean nothing.
    lanes, slots = (
        np.stack([rng.permutation(count + 3)[:EVENTS] for _ in range(STEPS)]).astype(np.int32)
        for count in (LANES, SLOTS)
    )
    others = rng.integers(0, SLOTS, lanes.shape).astype(np.int32), rng.integers(0, LANES, slots.shape).astype(np.int32)
    branches = lanes, others[0], others[1], slots
    return (*weights, drawn(CELLS, VOCABULARY), drawn(VOCABULARY)), tile, carry, kept, branches


@pytest.mark.parametrize("layers", [1, 2])
def test_states_are_kept_and_gone_on_from(layers):
    weights, tile, carry, kept, branches = arguments(layers)
    found = scoring.score_branching_tile(*weights, *tile, carry, kept, branches)
    carry, kept = jax.tree.map(np.array, (carry, kept))
    surprisals = []
    for step in range(STEPS):
        load_lane, load_slot, keep_lane, keep_slot = (part[step] for part in branches)
        for state, slots in zip(jax.tree.leaves(carry), jax.tree.leaves(kept), strict=True):
            exists = load_lane < LANES
            state[load_lane[exists]] = slots[load_slot[exists]]
        one = (part[step : step + 1] for part in tile)
        surprisal, after = scoring.score_tile(*weights, *one, carry, implementation="reference")
        surprisals.append(surprisal[0])
        carry = jax.tree.map(np.array, after)
        for state, slots in zip(jax.tree.leaves(carry), jax.tree.leaves(kept), strict=True):
            exists = keep_slot < SLOTS
            slots[keep_slot[exists]] = state[keep_lane[exists]]
    expected = np.stack(surprisals), carry, kept
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    weights, tile, carry, kept, branches = arguments(1)
    narrow = [tuple(part[:, 1:] for part in pair) for pair in kept]
    for changed in ((kept, branches[:3]), (kept, [part[1:] for part in branches]), (narrow, branches), ([], branches)):
        with pytest.raises(ValueError, match="must be"):
            scoring.score_branching_tile(*weights, *tile, carry, *changed)
    with pytest.raises(ValueError, match="must be"):
        scoring.score_branching_tile(*weights, *tile, [], kept, branches)
