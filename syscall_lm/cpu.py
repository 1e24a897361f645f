"""How a process without an accelerator makes the most of its cores."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

# glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def one_device_a_core() -> None:
    """Makes JAX's CPU a device for each core that this process may use, instead of one for all of them.

    To be called before JAX first uses a device.

    Work that is split over devices (mesh.py, scoring.py) runs on all cores from end to end; XLA itself would spread
    large products only, and leave the rest to one core.
    """
    if "jax" in sys.modules:  # commands that do no such work start without it
        import jax

        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


# XLA hands products and sums to a library, YNNPACK. With Eigen's products instead two cores score a tile 1.05 (1x200)
# to 1.09 times (2x400) as fast and learn windows 1.2 times; the library's sums are worth keeping. Where there is
# AVX-512, XLA uses half of its width unless told; all of it (1.02 times for 1x200) changes nothing where there is not.
_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_prefer_vector_width": "512",
}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with what XLA should be told on a CPU, found when it is first called.

    What it makes cannot be called from another such program: options are those of a whole one.
    """

    @functools.cache
    def program() -> Callable[..., Any]:
        import jax

        return jax.jit(function, compiler_options=_compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return program()(*args, **named)

    return call


@functools.cache
def _compiler_options() -> dict[str, str] | None:
    """None for anything but a CPU, and if this version of XLA has no such option."""
    import jax

    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS)()
    except jax.errors.JaxRuntimeError:
        return None
    return _OPTIONS


def keep_freed_memory() -> None:
    """Has the C library (glibc; any other is left alone) keep the memory that is freed, for whoever asks next.

    A training step frees and asks again for tens of MiB. Given back to the kernel in between, every page of them costs
    a fault, a fifth of a step's time. The price: memory that was needed once stays with the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
