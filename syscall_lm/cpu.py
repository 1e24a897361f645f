"""How a process without an accelerator makes the most of its cores; to be called before JAX first uses a device."""

import ctypes
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
