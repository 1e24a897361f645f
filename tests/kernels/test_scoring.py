"""Every implementation of scoring a tile passes the same tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.kernels import scoring as kernel
from syscall_lm.kernels.scoring import api

pytestmark = pytest.mark.parametrize("implementation", sorted(api.IMPLEMENTATIONS))

SHAPES = [(1, 1, 1, 1, 1), (5, 3, 5, 11, 1), (3, 2, 40, 130, 2)]  # T, B, H, V, layers
# Measured over SHAPES: at most 1.0e-3 for mosaic_gpu, whose operands are bfloat16.
BOUND = {"mosaic_gpu": 4e-3}


def arguments(steps, lanes, cells, vocabulary, layers, seed=0) -> Any:
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    table = rng.normal(size=(vocabulary + 1, 4 * cells)).astype(np.float32)
    w_hh = [drawn(cells, 4 * cells) for _ in range(layers)]
    upper = [(drawn(cells, 4 * cells), drawn(4 * cells)) for _ in range(layers - 1)]
    head = drawn(cells, vocabulary), drawn(vocabulary)
    targets = rng.integers(0, vocabulary, (steps, lanes))
    reset = rng.random((steps, lanes)) < 0.3
    inputs = np.where(reset, vocabulary, rng.integers(0, vocabulary, (steps, lanes)))
    carry = [(drawn(lanes, cells), drawn(lanes, cells)) for _ in range(layers)]
    return table, w_hh, upper, *head, inputs, targets, reset, carry


def by_hand(table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry):
    """Plain numpy in float64, one call at a time."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    state = [[np.array(part, np.float64) for part in pair] for pair in carry]
    surprisal = np.zeros(inputs.shape)
    for t, lane in np.ndindex(*inputs.shape):
        x = table[inputs[t, lane]].astype(np.float64)
        for layer, (c, h) in enumerate(state):
            if reset[t, lane]:
                c[lane] = h[lane] = 0
            if layer > 0:
                x = x @ upper[layer - 1][0] + upper[layer - 1][1]
            i, f, g, o = (x + h[lane] @ w_hh[layer]).reshape(4, -1)
            c[lane] = sigmoid(f) * c[lane] + sigmoid(i) * np.tanh(g)
            x = h[lane] = sigmoid(o) * np.tanh(c[lane])
        logits = x @ w_out + b_out
        surprisal[t, lane] = np.log(np.exp(logits).sum()) - logits[targets[t, lane]]
    return surprisal, [tuple(pair) for pair in state]


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_surprisals_and_state_equal_the_equations(implementation, shape):
    inputs = arguments(*shape)
    actual = kernel.score_tile(*inputs, implementation=implementation)
    assert_close(actual, by_hand(*inputs), BOUND.get(implementation, 1e-5))


def test_one_tile_equals_two_with_carried_state(implementation):
    *weights, inputs, targets, reset, carry = arguments(5, 3, 5, 11, 2)
    whole, last = kernel.score_tile(*weights, inputs, targets, reset, carry, implementation=implementation)
    parts = []
    for part in (slice(0, 2), slice(2, 5)):
        surprisal, carry = kernel.score_tile(
            *weights, inputs[part], targets[part], reset[part], carry, implementation=implementation
        )
        parts.append(surprisal)
    assert_close(jnp.concatenate(parts), whole, 1e-6)
    assert_close(carry, last, 1e-6)


def test_what_comes_before_a_reset_is_irrelevant_and_lanes_do_not_mix(implementation):
    """At every position: lane b starts a trace at step b; one more lane never does."""
    steps = 4
    *weights, inputs, targets, _, carry = arguments(steps, steps + 1, 5, 11, 1)
    reset = np.eye(steps, steps + 1, dtype=bool)
    surprisal, _ = kernel.score_tile(*weights, inputs, targets, reset, carry, implementation=implementation)
    since = np.cumsum(reset, axis=0) > 0  # of each lane, the steps of the trace that started in it
    other = np.where(since, inputs, (inputs + 1) % 11)
    carried = [(c + 1, h - 1) for c, h in carry]
    after, _ = kernel.score_tile(*weights, other, targets, reset, carried, implementation=implementation)
    assert_close(after[since], surprisal[since], 1e-6)
    assert np.abs(after[:, steps] - surprisal[:, steps]).max() > 1e-2


def test_vmap_over_members_equals_one_after_another(implementation):
    many = [arguments(2, 3, 5, 11, 1, seed) for seed in range(2)]
    (*_, inputs, targets, reset, _) = many[0]

    def run(table, w_hh, w_out, b_out, carry):
        return kernel.score_tile(
            table, w_hh, [], w_out, b_out, inputs, targets, reset, carry, implementation=implementation
        )

    members = [(table, w_hh, w_out, b_out, carry) for table, w_hh, _, w_out, b_out, *_, carry in many]
    together = jax.vmap(run)(*jax.tree.map(lambda *leaves: np.stack(leaves), *members))
    for number, member in enumerate(members):
        assert_close(jax.tree.map(lambda leaf, i=number: leaf[i], together), run(*member))


def test_shapes_that_do_not_fit_are_refused(implementation):
    table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry = arguments(2, 3, 4, 7, 2)
    for wrong in [
        (table[1:], w_hh, upper, w_out, b_out, inputs, targets, reset, carry),
        (table, w_hh[1:], upper, w_out, b_out, inputs, targets, reset, carry),
        (table, w_hh, upper, w_out, b_out[1:], inputs, targets, reset, carry),
        (table, w_hh, upper, w_out, b_out, inputs, targets[1:], reset, carry),
        (table, w_hh, upper, w_out, b_out, inputs, targets, reset, carry[1:]),
    ]:
        with pytest.raises(ValueError, match="must be"):
            kernel.score_tile(*wrong, implementation=implementation)
