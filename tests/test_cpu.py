"""What XLA is told on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm import cpu


@pytest.fixture(autouse=True)
def forgotten():
    """What one test found out about XLA is not told to the next."""
    cpu._compiler_options.cache_clear()
    yield
    cpu._compiler_options.cache_clear()


def product(times: int, a: jax.Array) -> jax.Array:
    return times * (a @ a)


def programs_of(matrix: jax.Array) -> list[str]:
    """The compiled text of a product, with XLA's own choice and with ours."""
    options = (None, cpu._compiler_options())
    return [str(jax.jit(lambda a: a @ a, compiler_options=one).lower(matrix).compile().as_text()) for one in options]


def test_arguments_of_jit_are_passed_on_and_values_are_the_same():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(70, 70)), jnp.float32)
    compiled = cpu.jit(product, static_argnums=0)
    np.testing.assert_allclose(compiled(3, matrix), 3 * np.asarray(matrix) @ np.asarray(matrix), rtol=1e-4, atol=1e-4)
    assert compiled.__name__ == "product"
    with pytest.raises(ValueError, match="hashable"):
        compiled(matrix, matrix)  # the first argument is static


def test_products_are_not_handed_to_a_library():
    theirs, ours = programs_of(jnp.ones((256, 256)))
    assert cpu._compiler_options() == cpu._OPTIONS
    if "ynn" not in theirs:
        pytest.skip("this XLA hands no products to YNNPACK")
    assert "ynn" not in ours


def test_an_xla_that_knows_no_such_option_makes_its_own_choice(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert cpu._compiler_options() is None
    np.testing.assert_array_equal(cpu.jit(product, static_argnums=0)(2, jnp.eye(3)), 2 * np.eye(3))
