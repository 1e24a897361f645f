"""How a process without an accelerator makes the most of its cores; to be called before JAX first uses a device."""

import ctypes
import functools
import os
import sys

# glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def one_device_a_core() -> None:
    """Makes JAX's CPU a device for each core that this process may use, instead of one for all of them.

    Work that is split over devices (mesh.py, scoring.py) runs on all cores from end to end; XLA itself would spread
    large products only, and leave the rest to one core.
    """
    if "jax" in sys.modules:  # commands that do no such work start without it
        import jax

        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


# XLA hands products and sums to a library, YNNPACK. Without its products, with Eigen's, two cores score a tile 1.05
# (1x200) to 1.09 times (2x400) as fast; its sums are worth keeping. Training is no faster, so it has XLA's choice.
_SCORING = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def scoring_options() -> dict[str, str] | None:
    """What XLA is told when it compiles the scoring of tiles (`jax.jit`'s `compiler_options`).

    None for anything but a CPU, and if this version of XLA has no such option.
    """
    import jax

    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_SCORING)()
    except jax.errors.JaxRuntimeError:
        return None
    return _SCORING


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
