import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.kernels import elementary


@pytest.fixture(autouse=True)
def on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere these are JAX's own")


def test_tanh_is_within_its_bound_and_saturates():
    x = np.concatenate([np.linspace(-12, 12, 1_000_003), np.geomspace(1e-30, 1, 1000)]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    found = np.asarray(jax.jit(elementary.tanh)(x), np.float64)
    assert np.abs(found - exact).max() <= 3.3e-7
    small = np.abs(x) < 0.1
    np.testing.assert_allclose(found[small], exact[small], rtol=4e-7, atol=0)
    far = np.float32([-np.inf, -1e30, -9, 9, 1e30, np.inf])
    np.testing.assert_array_equal(elementary.tanh(far), np.sign(far))
    assert np.isnan(elementary.tanh(jnp.float32(np.nan)))


def test_exp_is_within_its_bound_and_vanishes():
    x = np.concatenate([np.linspace(-86.9, 0, 1_000_003), -np.geomspace(1e-30, 1, 1000)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    found = np.asarray(jax.jit(elementary.exp_of_negative)(x), np.float64)
    assert np.abs(found / exact - 1).max() <= 3e-7
    far = np.asarray(elementary.exp_of_negative(np.float32([-87, -88, -1e30, -np.inf])))
    assert (far >= 0).all() and (far < 2e-38).all()


def test_derivatives_are_those_of_the_functions():
    x = np.linspace(-8, 0, 1001).astype(np.float32)
    tangents = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    for ours, exact in ((elementary.tanh, 1 - np.tanh(x) ** 2), (elementary.exp_of_negative, np.exp(x))):
        np.testing.assert_allclose(jax.jvp(ours, (x,), (tangents,))[1], tangents * exact, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(jax.grad(lambda x, ours=ours: ours(x).sum())(x), exact, rtol=2e-6, atol=2e-6)


def test_other_types_take_jaxs_own():
    with jax.enable_x64(True):
        x = np.linspace(-3, 0, 101)
        np.testing.assert_array_equal(elementary.tanh(x), jnp.tanh(x))
        np.testing.assert_array_equal(elementary.exp_of_negative(x), jnp.exp(x))
