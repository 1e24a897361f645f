"""The benchmark's cases that need a process of their own: what is fixed when JAX starts."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.benchmark_cases import SCORING_CALLS, TRAINING_CALLS, Contender
from syscall_lm.models import lstm

_REPEAT = """
import json, sys, time
import jax
from syscall_lm import cpu
from syscall_lm.experiments import benchmark_cases as cases
from syscall_lm.models import lstm
devices, work, shape, *peer = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
shape = lstm.Shape.parse(shape, cases.V)
if work == "training":
    cpu.keep_freed_memory()
if peer:
    run = cases.torch_training(shape, *map(int, peer))
else:
    run = cases.fixed_scoring(shape, [])[0].run if work == "scoring" else cases.our_training(shape, 1)
run()
seconds = []
for _ in range(7):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
print(json.dumps(sorted(seconds)[3]))
"""

_START = """
import json, sys, time
start = time.perf_counter()
import jax
from syscall_lm import scoring
from syscall_lm.experiments import benchmark_cases as cases
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences
shape = lstm.Shape.parse(sys.argv[1], cases.V)
scorer = scoring.Scorer([Member("ours", shape, language_model.initialise(jax.random.key(0), shape))])
scorer.surprisal(Sequences.from_list([[3, 4, 5]]))
print(json.dumps(time.perf_counter() - start))
"""


def devices(work: str, shape: lstm.Shape) -> list[Contender]:
    """Scoring or training with the cores split into 1, 2, ... CPU devices."""
    calls = SCORING_CALLS if work == "scoring" else TRAINING_CALLS
    counts = range(1, (os.cpu_count() or 1) + 1)
    return [
        Contender(f"ours, {count} CPU device{'s' * (count > 1)}", _in_process(_REPEAT, count, work, shape), calls)
        for count in reversed(counts)
    ]


def training(shape: lstm.Shape) -> Contender:
    """One step of training as `train` makes it: a device a core, freed memory kept."""
    run = _in_process(_REPEAT, os.cpu_count() or 1, "training", shape)
    return Contender("ours", run, TRAINING_CALLS)


def tuned_torch(shape: lstm.Shape, threads: int, lanes: int) -> Contender:
    """PyTorch in a process that keeps freed memory as ours does, which PyTorch's users do not have unless they ask."""
    run = _in_process(_REPEAT, 1, "training", shape, threads, lanes)
    return Contender(
        f"torch, {lanes} x {TRAINING_CALLS // lanes}, {threads} threads, freed memory kept", run, TRAINING_CALLS
    )


def start(shape: lstm.Shape) -> list[Contender]:
    """From a fresh Python to the first score: imports, initialisation, compilation, one trace of three calls."""
    folder = tempfile.mkdtemp(prefix="compiled-")  # private: what is loaded from it is run
    cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return [
        Contender("ours, compilation cache", _in_process(_START, shape, environment=cache), 3),
        Contender("ours, cold", _in_process(_START, shape), 3),
    ]


def _in_process(script: str, *arguments: object, environment: dict[str, str] | None = None) -> Callable[[], float]:
    def run() -> float:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
        if done.returncode:
            raise SyscallLMError(f"a benchmark's process failed: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(done.stdout.splitlines()[-1])

    return run
