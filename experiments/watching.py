"""Runs a command in a process of its own and watches what memory it and its descendants take."""

import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """What became of a command.

    Attributes:
      exit_code: negative where a signal ended it.
      seconds: from its start to its end.
      peak_memory_mib: of all its processes together, at most.
      output: what it printed, on stdout and stderr together.
    """

    exit_code: int
    seconds: float
    peak_memory_mib: float
    output: str


def run(arguments: Sequence[str], seconds: float = math.inf) -> Run:
    """Runs `syscall-lm` with these arguments; kills it after so many seconds."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as told:
        command = [sys.executable, "-m", "syscall_lm.experiments", *arguments]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT)
        peak = 0.0
        while child.poll() is None:
            peak = max(peak, memory(child.pid))
            if time.monotonic() - started > seconds:
                child.kill()
            time.sleep(0.2)
        taken = time.monotonic() - started
        told.seek(0)
        return Run(child.returncode, taken, peak, told.read().decode(errors="replace"))


def memory(pid: int) -> float:
    """MiB that a process and its descendants hold now; of pages that several share each counts its part (proc(5))."""
    parents, sizes = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            lines = (path / "smaps_rollup").read_text().splitlines()
            sizes[int(path.name)] = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has ended, or is another user's
            continue

    def descends(other: int) -> bool:
        return other == pid or (other in parents and descends(parents[other]))

    return sum(size for other, size in sizes.items() if descends(other))
