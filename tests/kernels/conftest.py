"""Lets the tests of kernels run Mosaic GPU's interpreter, which JAX keeps private: this is the one place that knows it.

The interpreter checks meaning (and that every phase of every barrier is waited for), not layouts, registers or memory
limits; the lowering in `test_hopper.py` and the tests marked `gpu` are for those.
"""

import jax
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from syscall_lm.kernels import choice


@pytest.fixture(autouse=True)
def interpreter(request, monkeypatch):
    """Interprets the kernels in tests of `implementation` "mosaic_gpu" where there is no GPU.

    What the interpreter makes of them is no user's program, so XLA need not optimise it; that takes most of the time.
    """
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or parameters.params.get("implementation") != "mosaic_gpu" or choice.available():
        yield
        return
    if jax.default_backend() != "cpu":
        pytest.skip("the kernels need an NVIDIA Hopper GPU, or a CPU to be interpreted on")
    monkeypatch.setattr(choice, "interpret", InterpretGPUParams())
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
