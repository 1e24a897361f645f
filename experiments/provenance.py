"""What a result was made with, so that it can be made again."""

import datetime
import importlib.metadata
import importlib.util
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

from syscall_lm.experiments import command

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "scikit-learn")
PEERS = ("torch",)  # where they are installed


def environment() -> dict[str, Any]:
    """Commit, versions and device, as plain JSON values."""
    device = jax.devices()[0]
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        **{peer: importlib.metadata.version(peer) for peer in PEERS if importlib.util.find_spec(peer)},
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def configuration(main: Callable[..., None]) -> dict[str, Any]:
    """The resolved flags of the experiment whose `main` is given."""
    return {flag.name: flag.value for flag in command.own_flags(sys.modules[main.__module__])}


def _commit() -> str:
    """The checkout's commit, "-dirty" where code differs from it; results change while they are measured."""
    root = pathlib.Path(__file__).parents[1]
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
