"""Every implementation of the surprisal passes the same tests."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from syscall_lm.kernels.nll import api, nll, weighted_nll, xla

pytestmark = pytest.mark.parametrize("implementation", sorted(api.IMPLEMENTATIONS))

LEADING = [(1,), (5,), (7, 3), (1, 1), (13, 4), (3, 2, 5)]
H, V = 6, 11


def arguments(leading, dtype=np.float32, seed=0) -> Any:
    rng = np.random.default_rng(seed)
    h, w_out, b_out = (3 * rng.normal(size=size).astype(dtype) for size in [(*leading, H), (H, V), (V,)])
    return h, w_out, b_out, rng.integers(0, V, leading)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(xla, "BLOCK_ROWS_ON_GPU", 8)
    monkeypatch.setattr(xla, "BLOCK_ROWS", 8)  # several blocks and a remainder within these shapes


def by_hand(h, w_out, b_out, targets):
    logits = h.astype(np.float64) @ w_out.astype(np.float64) + b_out
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(probability, targets[..., None], -1)[..., 0])


@pytest.mark.parametrize("leading", LEADING)
def test_values_equal_the_definition(implementation, leading):
    inputs = arguments(leading)
    values = nll(*inputs, implementation=implementation)
    np.testing.assert_allclose(values, by_hand(*inputs), rtol=1e-5, atol=1e-5)


def weights(leading, dtype=np.float32):
    return np.random.default_rng(1).normal(size=leading).astype(dtype)


@pytest.mark.parametrize("leading", LEADING)
def test_the_weighted_sum_is_that_of_the_values(implementation, leading):
    inputs = arguments(leading)
    total, values, right = weighted_nll(*inputs, weights(leading), implementation=implementation)
    np.testing.assert_allclose(values, by_hand(*inputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, (weights(leading) * by_hand(*inputs)).sum(), rtol=1e-5, atol=1e-4)
    h, w_out, b_out, targets = inputs
    np.testing.assert_array_equal(right, np.argmax(h @ w_out + b_out, -1) == targets)
    assert 0 < np.mean(right) < 1 or np.size(right) < 10


@pytest.mark.parametrize("leading", LEADING)
def test_gradients_equal_those_of_the_definition(implementation, leading):
    h, w_out, b_out, targets = arguments(leading)

    def ours(*args):
        return 3 * weighted_nll(*args, targets, weights(leading), implementation=implementation)[0]

    def of_values(implementation, *args):
        return 3 * (weights(leading) * nll(*args, targets, implementation=implementation)).sum()

    expected = jax.grad(functools.partial(of_values, "reference"), (0, 1, 2))(h, w_out, b_out)
    for function in (ours, functools.partial(of_values, implementation)):
        for one, other in zip(jax.grad(function, (0, 1, 2))(h, w_out, b_out), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_only_the_sum_has_gradients(implementation):
    h, w_out, b_out, targets = arguments((4, 3))

    def values(h):
        return weighted_nll(h, w_out, b_out, targets, weights((4, 3)), implementation=implementation)[1].sum()

    np.testing.assert_array_equal(jax.grad(values)(h), 0)


def test_gradients_equal_finite_differences_in_float64(implementation):
    with jax.enable_x64(True):
        h, w_out, b_out, targets = arguments((5, 3), np.float64)
        of_calls = weights((5, 3), np.float64)
        check_grads(
            lambda *args: jnp.tanh(weighted_nll(*args, targets, of_calls, implementation=implementation)[0]),
            (h / 10, w_out / 10, b_out),
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


def test_huge_logits_neither_overflow_nor_vanish(implementation):
    h, w_out, b_out, targets = arguments((4, 3))
    total, gradient = jax.value_and_grad(
        lambda h: weighted_nll(h, 1e3 * w_out, b_out, targets, weights((4, 3)), implementation=implementation)[0]
    )(h)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert np.isfinite(nll(h, 1e3 * w_out, b_out, targets, implementation=implementation)).all()


@pytest.mark.parametrize("leading", [(0,), (0, 3), (2, 0)])
def test_no_calls_weigh_nothing(implementation, leading):
    inputs = arguments(leading)
    total, gradients = jax.value_and_grad(
        lambda *args: weighted_nll(*args, inputs[3], weights(leading), implementation=implementation)[0],
        argnums=(0, 1, 2),
    )(*inputs[:3])
    assert total == 0 and not any(np.any(gradient) for gradient in gradients)


def test_vmap_over_members_equals_one_after_another(implementation):
    many = [arguments((7, 3), seed=seed)[:3] for seed in range(3)]
    targets, of_calls = arguments((7, 3))[3], weights((7, 3))

    def both(*one):
        def loss(*one):
            total, *rest = weighted_nll(*one, targets, of_calls, implementation=implementation)
            return total, rest

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*one)

    together = jax.vmap(both)(*[np.stack(parts) for parts in zip(*many, strict=True)])
    for number, one in enumerate(many):
        for member, alone in zip(jax.tree.leaves(together), jax.tree.leaves(both(*one)), strict=True):
            np.testing.assert_allclose(member[number], alone, rtol=1e-5, atol=1e-5)


def test_logits_of_all_rows_never_exist(implementation):
    if implementation == "reference":
        pytest.skip("the reference is clear, not frugal")
    h, w_out, b_out, targets = arguments((64, 4))

    def sum_of(*args):
        return (weights((64, 4)) * nll(*args, targets)).sum()

    def weighted(*args):
        return weighted_nll(*args, targets, weights((64, 4)))[0]

    for function in (*(jax.value_and_grad(one, (0, 1, 2)) for one in (weighted, sum_of)), sum_of):
        text = str(jax.jit(function).lower(h, w_out, b_out).compile().as_text())
        found = [[int(n) for n in sizes.split(",")] for sizes in re.findall(r"f32\[([0-9,]+)\]", text)]
        assert max(np.prod(sizes) for sizes in found if V in sizes) <= xla.BLOCK_ROWS * V


def test_shapes_that_do_not_fit_are_refused(implementation):
    h, w_out, b_out, targets = arguments((4, 3))
    for wrong in [(h[..., 1:], w_out, b_out, targets), (h, w_out, b_out[1:], targets), (h, w_out, b_out, targets[1:])]:
        with pytest.raises(ValueError, match="must be"):
            nll(*wrong, implementation=implementation)
        with pytest.raises(ValueError, match="must be"):
            weighted_nll(*wrong, weights((4, 3)), implementation=implementation)
    with pytest.raises(ValueError, match="must be equal"):
        weighted_nll(h, w_out, b_out, targets, weights((4,)), implementation=implementation)
    with pytest.raises(ValueError, match="there are"):
        nll(h, w_out, b_out, targets, implementation=implementation + "?")
