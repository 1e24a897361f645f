import jax
import numpy as np
import pytest

from syscall_lm.kernels.projection import project, rows_of


@pytest.mark.parametrize("devices", [1, 2])
def test_a_projections_gradient_is_that_of_a_product(devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    x, w, weights = (rng.normal(size=size).astype(np.float32) for size in [(5, 3, 4), (4, 6), (5, 3, 6)])
    for argument in (0, 1):
        ours = jax.grad(lambda x, w: (weights * project(x, w)).sum(), argument)(x, w)
        plain = jax.grad(lambda x, w: (weights * (x @ w)).sum(), argument)(x, w)
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "devices"), [("cpu", 1), ("gpu", 1), ("gpu", 2)])
def test_the_gradient_of_rows_is_the_sum_of_all_that_were_read(backend, devices, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    table, weights = (rng.normal(size=size).astype(np.float32) for size in [(6, 4), (8, 6, 4)])
    numbers = rng.integers(0, 5, (8, 6))  # many twice, the last never
    np.testing.assert_array_equal(rows_of(table, numbers), table[numbers])
    gradient = jax.grad(lambda table: (weights * rows_of(table, numbers)).sum())(table)
    expected = np.zeros_like(table)
    for number, weight in zip(numbers.ravel(), weights.reshape(-1, 4), strict=True):
        expected[number] += weight
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
