"""tanh and exp with as few operations as float32 needs. XLA on a CPU spends a sixth of a step of scoring on its own."""

import jax
import jax.numpy as jnp
import numpy as np

# x P(x^2) / Q(x^2), least greatest error (3e-8) on [-LIMIT, LIMIT]; in float32 3.3e-7, and exactly 1 at the limit.
LIMIT = 8.6
P = (0.9999998, 0.12936104, 2.9392675e-3, 9.443684e-6, -1.3338150e-8, 1.9762464e-11)
Q = (1.0, 0.4626937, 2.3837946e-2, 2.3070745e-4)

# exp on half a power of two around 0, least greatest relative error (7e-8).
EXP = (1.0000001, 0.9999997, 0.49998894, 0.16667575, 0.041915420, 8.2976492e-3)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is the logarithm of 2; the first has few bits
LOWEST = -87.0  # exp of less is 0 or nearly
ROUNDING = np.float32(1.5 * 2**23)  # what is added to it is rounded to a whole number, in its lowest bits


def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent of each element of `[...]`; differentiable. In float32 on a CPU within 3.3e-7."""
    return _tanh(x) if _is_ours(x) else jnp.tanh(x)


def exp_of_negative(x: jax.Array) -> jax.Array:
    """The exponential of each element of `[...]`, which are at most 0; differentiable.

    In float32 on a CPU within 3e-7 of its value, 0 or nearly below -87; NaN may give any number.
    """
    return _exp(x) if _is_ours(x) else jnp.exp(x)


def _is_ours(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and jax.default_backend() == "cpu"


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    total: jax.Array | float = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return jnp.asarray(total)


@jax.custom_jvp
def _tanh(x):
    x = jnp.clip(x, -LIMIT, LIMIT)
    square = x * x
    return x * _polynomial(P, square) / _polynomial(Q, square)


@_tanh.defjvp
def _tanh_jvp(primals, tangents):
    y = _tanh(*primals)
    return y, tangents[0] * (1 - y * y)


@jax.custom_jvp
def _exp(x):
    x = jnp.maximum(x, LOWEST)
    # The whole number n of powers of two is read from bits: XLA takes x + ROUNDING - ROUNDING to be x.
    bits = _bits(x * np.float32(1 / np.log(2)) + ROUNDING)
    n = (bits - ROUNDING.view(np.int32)).astype(jnp.float32)
    rest = (x - n * LN2_HIGH) - n * LN2_LOW
    return jax.lax.bitcast_convert_type(_bits(_polynomial(EXP, rest)) + (bits << 23), jnp.float32)


@_exp.defjvp
def _exp_jvp(primals, tangents):
    y = _exp(*primals)
    return y, tangents[0] * y


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
