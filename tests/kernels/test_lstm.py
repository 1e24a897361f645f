"""Every implementation of the recurrence passes the same tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from syscall_lm.kernels import lstm as kernel
from syscall_lm.kernels.lstm import api

every = pytest.mark.parametrize("implementation", sorted(api.IMPLEMENTATIONS))

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


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_the_equations(implementation, shape):
    inputs = arguments(*shape)
    actual = kernel.lstm(*inputs, implementation=implementation)
    assert_close(actual, by_hand(*inputs), BOUND.get(implementation, 1e-5))


@every
def test_a_reset_makes_what_comes_before_irrelevant(implementation):
    """At every position: lane b starts a trace at step b; one more lane never does."""
    steps = 6
    x, w_hh, _, carry = arguments(steps, steps + 1, 4)
    reset = np.eye(steps, steps + 1, dtype=bool)
    h, _ = kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
    since = np.cumsum(reset, axis=0) > 0  # of each lane, the steps of the trace that started in it
    other = np.where(since[..., None], x, -x)
    after, _ = kernel.lstm(other, w_hh, reset, tuple(1 - part for part in carry), implementation=implementation)
    without, _ = kernel.lstm(x, w_hh, reset * False, carry, implementation=implementation)
    assert_close(h[since], after[since], 1e-6)
    assert_close(h[~since], without[~since], 1e-6)  # what has not started yet does not notice, nor other lanes
    for lane in range(steps):
        assert np.abs(h[lane:, lane] - without[lane:, lane]).max() > 1e-3
    assert np.abs(h[:, steps] - after[:, steps]).max() > 1e-3  # the lane without a start remembers


@every
@pytest.mark.parametrize("cuts", [(1,), (4,), (3, 4, 6), tuple(range(1, 8))])
def test_one_pass_equals_chunks_with_carried_state(implementation, cuts):
    x, w_hh, reset, carry = arguments(8, 3, 5)
    whole, last = kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
    parts = []
    for begin, end in zip((0, *cuts), (*cuts, 8), strict=True):
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


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_the_reference(implementation, shape):
    x, w_hh, reset, carry = arguments(*shape)
    gradients = jax.grad(loss(implementation, reset), argnums=(0, 1, 2))(x, w_hh, carry)
    expected = jax.grad(loss("reference", reset), argnums=(0, 1, 2))(x, w_hh, carry)
    assert_close(gradients, expected, GRADIENT_BOUND.get(implementation, 1e-5))


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
