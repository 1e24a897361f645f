"""Every implementation of the recurrence passes the same tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from syscall_lm.kernels import lstm as kernel
from syscall_lm.kernels.lstm import api

every = pytest.mark.parametrize("implementation", sorted(api.IMPLEMENTATIONS))


def every_with(name, values, interpreted):
    """Every implementation with each value; mosaic_gpu, whose interpreter takes a second a call, with those given."""
    pairs = [(chosen, value) for chosen in sorted(api.IMPLEMENTATIONS) for value in values]
    kept = [(chosen, value) for chosen, value in pairs if chosen != "mosaic_gpu" or value in interpreted]
    return pytest.mark.parametrize(("implementation", name), kept)


SHAPES = [(1, 1, 1), (7, 3, 5), (13, 1, 8), (5, 9, 4)]  # T, B, H
# Measured over SHAPES: at most 2.8e-3 for mosaic_gpu, whose operands, x and h are bfloat16.
BOUND = {"mosaic_gpu": 6e-3}
# So are the factors and gradients of its backward pass: at most 6e-3 off.
GRADIENT_BOUND = {"mosaic_gpu": 1.2e-2}


def arguments(steps, lanes, cells, resets=0.2, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, lanes, 4 * cells)).astype(dtype)
    w_hh = rng.normal(size=(cells, 4 * cells)).astype(dtype) / np.sqrt(cells).astype(dtype)
    reset = rng.random((steps, lanes)) < resets
    carry = tuple(rng.normal(size=(lanes, cells)).astype(dtype) for _ in range(2))
    return x, w_hh, reset, carry


def by_hand(x, w_hh, reset, carry):
    """Plain numpy in float64, one lane and one cell at a time."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    steps, lanes, cells = x.shape[0], x.shape[1], w_hh.shape[0]
    outputs = np.zeros((steps, lanes, cells))
    c, h = (np.array(part, np.float64) for part in carry)
    for t in range(steps):
        for lane in range(lanes):
            if reset[t, lane]:
                c[lane] = h[lane] = 0
            gates = x[t, lane].astype(np.float64) + h[lane] @ w_hh.astype(np.float64)
            i, f, g, o = gates.reshape(4, cells)
            c[lane] = sigmoid(f) * c[lane] + sigmoid(i) * np.tanh(g)
            h[lane] = sigmoid(o) * np.tanh(c[lane])
        outputs[t] = h
    return outputs, (c, h)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


@every_with("shape", SHAPES, SHAPES)
def test_forward_equals_the_equations(implementation, shape):
    inputs = arguments(*shape)
    actual = kernel.lstm(*inputs, implementation=implementation)
    assert_close(actual, by_hand(*inputs), BOUND.get(implementation, 1e-5))


@every_with("position", range(6), (0, 5))
def test_a_reset_makes_what_comes_before_irrelevant(implementation, position):
    x, w_hh, _, carry = arguments(6, 2, 4)
    reset = np.zeros((6, 2), bool)
    reset[position, 1] = True
    h, _ = kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
    other = np.where(np.arange(6)[:, None, None] < position, -x, x)
    after, _ = kernel.lstm(other, w_hh, reset, tuple(1 - part for part in carry), implementation=implementation)
    assert_close(h[position:, 1], after[position:, 1], 1e-6)
    assert np.abs(h[:, 0] - after[:, 0]).max() > 1e-3  # the other lane remembers
    without, _ = kernel.lstm(x, w_hh, reset * False, carry, implementation=implementation)
    assert_close(h[:, 0], without[:, 0], 1e-6)  # and does not notice
    assert np.abs(h[position:, 1] - without[position:, 1]).max() > 1e-3


@every_with("cuts", [(1,), (4,), (3, 4, 9), tuple(range(1, 13))], [(3, 4, 9)])
def test_one_pass_equals_chunks_with_carried_state(implementation, cuts):
    x, w_hh, reset, carry = arguments(13, 3, 5)
    whole, last = kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
    parts = []
    for begin, end in zip((0, *cuts), (*cuts, 13), strict=True):
        h, carry = kernel.lstm(x[begin:end], w_hh, reset[begin:end], carry, implementation=implementation)
        parts.append(h)
    assert_close(jnp.concatenate(parts), whole, 1e-6)
    assert_close(carry, last, 1e-6)


def loss(implementation, reset):
    weights = np.random.default_rng(5).normal(size=10_000)

    def value(x, w_hh, carry):
        leaves = jax.tree.leaves(kernel.lstm(x, w_hh, reset, carry, implementation=implementation))
        flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
        return jnp.sum(flat * weights[: flat.size])

    return value


@every_with("shape", SHAPES, SHAPES[1:3])
def test_gradients_equal_the_reference(implementation, shape):
    x, w_hh, reset, carry = arguments(*shape)
    gradients = jax.grad(loss(implementation, reset), argnums=(0, 1, 2))(x, w_hh, carry)
    expected = jax.grad(loss("reference", reset), argnums=(0, 1, 2))(x, w_hh, carry)
    assert_close(gradients, expected, GRADIENT_BOUND.get(implementation, 2e-5))


@every
def test_gradients_equal_finite_differences_in_float64(implementation):
    with jax.enable_x64(True):
        x, w_hh, reset, carry = arguments(6, 2, 3, dtype=np.float64)
        if implementation == "mosaic_gpu":
            with pytest.raises(ValueError, match="takes float32"):
                kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
            return
        check_grads(loss(implementation, reset), (x, w_hh, carry), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@every
def test_vmap_over_members_equals_one_after_another(implementation):
    many = [arguments(5, 3, 5, seed=seed) for seed in range(2)]
    reset = many[0][2]

    def run(x, w_hh, carry):
        return kernel.lstm(x, w_hh, reset, carry, implementation=implementation)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[(x, w_hh, carry) for x, w_hh, _, carry in many])
    together = jax.vmap(run)(*stacked)
    for number, (x, w_hh, _, carry) in enumerate(many):
        assert_close(jax.tree.map(lambda leaf, i=number: leaf[i], together), run(x, w_hh, carry))
    value = loss(implementation, reset)
    gradients = jax.grad(lambda *members: jax.vmap(value)(*members).sum(), argnums=(0, 1, 2))(*stacked)
    for number, (x, w_hh, _, carry) in enumerate(many):
        alone = jax.grad(value, argnums=(0, 1, 2))(x, w_hh, carry)
        assert_close(jax.tree.map(lambda leaf, i=number: leaf[i], gradients), alone)


@every
def test_shapes_that_do_not_fit_are_refused(implementation):
    x, w_hh, reset, carry = arguments(4, 2, 3)
    for wrong in [
        (x[..., 1:], w_hh, reset, carry),
        (x, w_hh, reset[1:], carry),
        (x, w_hh, reset, (carry[0][1:], carry[1])),
    ]:
        with pytest.raises(ValueError, match="must be"):
            kernel.lstm(*wrong, implementation=implementation)
    with pytest.raises(ValueError, match="there are"):
        kernel.lstm(x, w_hh, reset, carry, implementation=implementation + "?")
