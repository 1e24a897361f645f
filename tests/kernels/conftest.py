"""Lets the tests of kernels run Mosaic GPU's interpreter, which JAX keeps private: this is the one place that knows it.

The interpreter checks meaning (and that every phase of every barrier is waited for), not layouts, registers or memory
limits; the lowering in `test_hopper.py` and the tests marked `gpu` are for those.
"""

import threading
import weakref

import jax
import pytest
from jax._src import core
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from syscall_lm.kernels import choice

_compiled = weakref.WeakKeyDictionary()
_compiling = threading.Lock()


def _run_thread(jaxpr, consts, *arguments):
    """A thread of a kernel: the first to come compiles what all of them run. JAX has each do so at the same time."""

    def run(consts, *arguments):
        core.eval_jaxpr(jaxpr, consts, *arguments)

    with _compiling:
        if jaxpr not in _compiled:
            _compiled[jaxpr] = jax.jit(run).lower(consts, *arguments).compile()
    _compiled[jaxpr](consts, *arguments)


assert callable(thread_map._run_jaxpr)
thread_map._run_jaxpr = _run_thread


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
