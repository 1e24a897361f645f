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


@functools.cache
def single_cores(count: int) -> tuple[Any, ...]:
    """So many JAX devices of one thread each, where XLA offers them; else none.

    JAX's own CPU devices share the threads that large products are spread over, so that devices which work side by side
    take each other's threads and caches: with one thread each two cores score a tile of 1x200 1.06 times as fast, and
    train 1x200 1.04 and 2x400 1.12 times as fast. Their programs cannot talk to each other: what cores have to tell,
    the process hands over.
    """
    from jaxlib import xla_client

    threads = os.environ.get("NPROC")
    os.environ["NPROC"] = "1"  # read by XLA when a client is made
    try:
        return tuple(xla_client.make_cpu_client(num_devices=1).local_devices()[0] for _ in range(count))
    except (AttributeError, TypeError):  # it is no public interface
        return ()
    finally:
        if threads is None:
            del os.environ["NPROC"]
        else:
            os.environ["NPROC"] = threads


# Where there is AVX-512, XLA uses half of its width unless told; all of it scores a tile of 1x200 1.02 times as fast.
_WIDTH = {"xla_cpu_prefer_vector_width": "512"}
# XLA hands products and sums to a library, YNNPACK. With Eigen's products instead two cores score a tile 1.03 to 1.05
# (1x200) and up to 1.09 times (2x400) as fast, and one core learns windows 1.05 to 1.2 times. One program that trains
# on two cores loses by it: 1x200 is up to 1.12 and 2x400 1.15 times as fast with the library. Its sums are worth
# keeping everywhere.
_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(function: Callable[..., Any], eigen: bool = True, **options: Any) -> Callable[..., Any]:
    """`jax.jit` with what XLA should be told on a CPU, found when it is first called.

    What it makes cannot be called from another such program: options are those of a whole one.

    Args:
      function: as jax.jit's.
      eigen: whether products are Eigen's rather than what XLA would take.
      options: as jax.jit's.
    """

    @functools.cache
    def program() -> Callable[..., Any]:
        import jax

        return jax.jit(function, compiler_options=_options(eigen), **options)

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return program()(*args, **named)

    return call


class OneForCores:
    """A function that is compiled once for all `single_cores`: to each of them belongs a runtime that knows no other.

    Args:
      function: as jax.jit's.
      options: as jax.jit's.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._function, self._options = function, options
        self._made: dict[Any, tuple[Any, ...]] = {}  # what `serialize` gives
        self._loaded: dict[Any, Callable[..., Any]] = {}

    def __call__(self, core: Any, *args: Any) -> Any:
        """Begins the function on a core.

        Args:
          core: one of `single_cores`.
          args: trees of arrays, host arrays or arrays of that core.
        """
        import jax

        leaves, tree = jax.tree.flatten(args)
        kind = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if (kind, core) not in self._loaded:
            self._loaded[kind, core] = self._load(kind, core, jax.device_put(args, core))
        return self._loaded[kind, core](*args)

    def _load(self, kind: Any, core: Any, args: Any) -> Callable[..., Any]:
        import jax
        from jax.experimental import serialize_executable

        from syscall_lm.kernels import choice

        # JAX's cache on disk, where it is in use, does the same; and what is from there cannot be serialised.
        on_disk = jax.config.values["jax_compilation_cache_dir"]
        if kind in self._made:
            program, inputs, outputs = self._made[kind]
            return serialize_executable.deserialize_and_load(program, inputs, outputs, core.client, [core])
        program = jax.jit(self._function, compiler_options=_options(eigen=True), **self._options)
        with choice.alone(True):
            compiled = program.lower(*args).compile()
        if not on_disk:
            self._made[kind] = serialize_executable.serialize(compiled)
        return compiled


def _options(eigen: bool) -> dict[str, str] | None:
    return _known((_EIGEN if eigen else {}) | _WIDTH)


def _known(options: dict[str, str]) -> dict[str, str] | None:
    """Those that this version of XLA knows; None for anything but a CPU."""
    import jax

    if jax.default_backend() != "cpu":
        return None
    return {name: value for name, value in options.items() if _knows(name, value)}


@functools.cache
def _knows(name: str, value: str) -> bool:
    import jax

    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def one_arena() -> None:
    """Has the C library (glibc; any other is left alone) take the memory of all threads from one place.

    To be called before any other library is imported, since some start threads; whoever sets MALLOC_ARENA_MAX decides
    for himself. Other places are small, and what is freed there goes back to the kernel whatever `keep_freed_memory`
    says: a step of 2x400 then takes 1.25 times as long.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _mallopt({_M_ARENA_MAX: 1})


def keep_freed_memory() -> None:
    """Has the C library (glibc; any other is left alone) keep the memory that is freed, for whoever asks next.

    A training step frees and asks again for tens of MiB. Given back to the kernel in between, every page of them costs
    a fault, a fifth of a step's time. The price: memory that was needed once stays with the process.
    """
    _mallopt({_M_MMAP_MAX: 0, _M_MMAP_THRESHOLD: 1 << 25, _M_TRIM_THRESHOLD: 2**31 - 1})


def _mallopt(values: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for parameter, value in values.items():
        mallopt(parameter, value)
