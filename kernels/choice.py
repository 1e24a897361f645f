"""Which implementation of an operation runs.

What needs Pallas is imported when it is called, and not before: that takes half a second, which every command on a
machine without such a GPU would wait for.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

interpret: Any = None  # tests set it, so that kernels for GPUs run, slowly, where there is none
# What is called in `with preferring(name)` without an `implementation` takes this one: for comparing whole programs.
preferring = jax.make_user_context(None)
alone = jax.make_user_context(False)  # what is traced in `with alone(True)` is a program for a single device


class Unsuitable(ValueError):
    """These shapes or types do not suit a kernel; the message says why."""


def on_call(module: str, name: str) -> Callable[..., Any]:
    """The function of a module that is imported when it is first called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments)

    return call


def available() -> bool:
    """Whether the kernels can run here: an NVIDIA GPU of compute capability 9.0, or a test's interpreter."""
    return interpret is not None or _is_hopper()


@functools.cache
def _is_hopper() -> bool:
    return jax.default_backend() == "gpu" and getattr(jax.devices()[0], "compute_capability", "") == "9.0"


def dispatch(
    operation: str,
    implementations: Mapping[str, Any],
    name: str | None,
    arguments: tuple[Any, ...],
    on_hopper: tuple[str, ...] = ("mosaic_gpu",),
) -> Any:
    """Calls the implementation `name`, or without one the best for this device.

    On NVIDIA Hopper those of `on_hopper` are tried in turn, then, as elsewhere, "xla".

    Raises:
      ValueError: no such implementation, or one that cannot run on this device or with these arguments.
    """
    name = name or (preferring.value if preferring.value in implementations else None)
    if name is not None and name not in implementations:
        raise ValueError(f"implementation={name!r}: there are {', '.join(implementations)}")
    if name == "mosaic_gpu" and not available():
        device = jax.devices()[0].device_kind
        raise ValueError(f"implementation='mosaic_gpu' needs an NVIDIA Hopper GPU; this is {device}")
    for best in on_hopper if name is None and _is_hopper() else ():
        try:
            if best == "mosaic_gpu" and not on_one_device():
                raise Unsuitable("its arrays may be split over several devices, which only `shard_map` says how")
            return implementations[best](*arguments)
        except Unsuitable as why:
            _log_once(operation, str(why))
    return implementations[name or "xla"](*arguments)


def on_one_device() -> bool:
    """Whether what is traced now runs whole on a device: there is but one, or each has a program or a share of its own.

    Elsewhere the partitioner splits arrays over devices: it cannot split a kernel of our own, and where lanes, which
    may lie on different devices, are merged with steps, it has each fetch them all.
    """
    return jax.device_count() == 1 or alone.value or jax.sharding.get_abstract_mesh().are_all_axes_manual


@functools.cache
def _log_once(operation: str, why: str) -> None:
    logging.getLogger(__name__).warning("%s does without its kernel: %s", operation, why)
