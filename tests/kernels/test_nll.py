"""Every implementation of the surprisal passes the same tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from syscall_lm.kernels.nll import api, nll, xla
from syscall_lm.kernels.projection import project

pytestmark = pytest.mark.parametrize("implementation", sorted(api.IMPLEMENTATIONS))

LEADING = [(1,), (5,), (7, 3), (1, 1), (13, 4), (3, 2, 5)]
H, V = 6, 11


def arguments(leading, dtype=np.float32, seed=0) -> Any:
    rng = np.random.default_rng(seed)
    h, w_out, b_out = (3 * rng.normal(size=size).astype(dtype) for size in [(*leading, H), (H, V), (V,)])
    return h, w_out, b_out, rng.integers(0, V, leading)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
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


@pytest.mark.parametrize("leading", LEADING)
def test_gradients_equal_the_reference(implementation, leading):
    h, w_out, b_out, targets = arguments(leading)
    weights = np.random.default_rng(1).normal(size=leading).astype(np.float32)

    def total(name):
        return jax.grad(lambda *args: (weights * nll(*args, targets, implementation=name)).sum(), argnums=(0, 1, 2))

    for one, other in zip(total(implementation)(h, w_out, b_out), total("reference")(h, w_out, b_out), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences_in_float64(implementation):
    with jax.enable_x64(True):
        h, w_out, b_out, targets = arguments((5, 3), np.float64)
        check_grads(
            lambda *args: jnp.tanh(nll(*args, targets, implementation=implementation)).sum(),
            (h / 10, w_out / 10, b_out),
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


def test_huge_logits_neither_overflow_nor_vanish(implementation):
    h, w_out, b_out, targets = arguments((4, 3))
    values, gradient = jax.value_and_grad(
        lambda h: nll(h, 1e3 * w_out, b_out, targets, implementation=implementation).sum()
    )(h)
    assert np.isfinite(values) and np.isfinite(gradient).all()


def test_vmap_over_members_equals_one_after_another(implementation):
    many = [arguments((7, 3), seed=seed)[:3] for seed in range(3)]
    targets = arguments((7, 3))[3]
    stacked = [np.stack(parts) for parts in zip(*many, strict=True)]
    together = jax.vmap(lambda *one: nll(*one, targets, implementation=implementation))(*stacked)
    for member, one in zip(together, many, strict=True):
        np.testing.assert_allclose(member, nll(*one, targets, implementation=implementation), rtol=1e-6, atol=1e-6)


def test_logits_of_all_rows_never_exist(implementation):
    if implementation == "reference":
        pytest.skip("the reference is clear, not frugal")
    h, w_out, b_out, targets = arguments((64, 4))
    both_ways = jax.jit(jax.value_and_grad(lambda *args: nll(*args, targets, implementation=implementation).sum()))
    assert f"{64 * 4},{V}]" not in (text := str(both_ways.lower(h, w_out, b_out).compile().as_text()))
    assert f"64,4,{V}]" not in text


def test_shapes_that_do_not_fit_are_refused(implementation):
    h, w_out, b_out, targets = arguments((4, 3))
    for wrong in [(h[..., 1:], w_out, b_out, targets), (h, w_out, b_out[1:], targets), (h, w_out, b_out, targets[1:])]:
        with pytest.raises(ValueError, match="must be"):
            nll(*wrong, implementation=implementation)
    with pytest.raises(ValueError, match="there are"):
        nll(h, w_out, b_out, targets, implementation=implementation + "?")


def test_a_projections_gradient_is_that_of_a_product(implementation):
    del implementation
    rng = np.random.default_rng(0)
    x, w, weights = (rng.normal(size=size).astype(np.float32) for size in [(5, 3, 4), (4, 6), (5, 3, 6)])
    for argument in (0, 1):
        ours = jax.grad(lambda x, w: (weights * project(x, w)).sum(), argument)(x, w)
        plain = jax.grad(lambda x, w: (weights * (x @ w)).sum(), argument)(x, w)
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
