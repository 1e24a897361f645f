"""The benchmark's contenders that need a process of their own.

JAX fixes the number of its devices when it starts, and how memory is kept concerns a whole process. Training is
therefore timed in fresh processes, ours and the peers' alike; so is the command `score`.

  python -m syscall_lm.experiments.benchmarking.worker SETTINGS

times what SETTINGS (JSON) describe, and prints a `Run`.
"""

import atexit
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from syscall_lm import cpu
from syscall_lm.detectors.ensemble import Calibration
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.benchmarking import cases
from syscall_lm.experiments.benchmarking.cases import Contender, Run
from syscall_lm.models import language_model, lstm, store
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

REPEATS = 7


def training(shape: lstm.Shape, threads: list[int]) -> list[Contender]:
    """One step on a minibatch of 4,096 calls: ours, PyTorch, PyTorch in a process prepared as ours is, Flax."""
    lanes = cases.TRAINING_LANES
    contenders = [_training("ours", shape, "our_training", lanes=lanes)]
    for count in threads:
        for width in cases.PEER_TRAINING_LANES:
            name = f"torch, {width} x {cases.TRAINING_CALLS // width}, {count} threads"
            contenders.append(_training(name, shape, "torch_training", count, width, lanes=width, kept=False))
    name = f"torch, {lanes} x {cases.TRAINING_CALLS // lanes}, {max(threads)} threads, freed memory kept"
    contenders.append(_training(name, shape, "torch_training", max(threads), lanes, lanes=lanes))
    return [*contenders, _training("flax, 64 x 64", shape, "flax_training", lanes=lanes, kept=False, devices=1)]


def epoch(shape: lstm.Shape, archive: str, threads: int) -> list[Contender]:
    """An epoch over real traces: ours packs them into lanes, PyTorch sorts and pads."""
    path = os.path.abspath(archive)
    calls = len(cases.epoch_traces(path).calls)
    make = functools.partial(_training, shape=shape, calls=calls, repeats=1)
    return [
        make("ours, packed lanes", maker="our_epoch", arguments=(path,), lanes=cases.TRAINING_LANES),
        *(
            make(
                f"torch, length-sorted, {lanes} traces, {threads} threads{', freed memory kept' * kept}",
                maker="torch_epoch",
                arguments=(path, threads, lanes),
                lanes=lanes,
                kept=kept,
            )
            for lanes, kept in ((8, False), (16, False), (8, True))
        ),
    ]


def three_seeds(shape: lstm.Shape) -> list[Contender]:
    """Three members together, and one after another."""
    calls = 3 * cases.TRAINING_CALLS
    return [
        _training("ours, together", shape, "our_training", 3, calls=calls),
        _training("ours, one after another", shape, "three_apart", calls=calls),
    ]


def minibatches(shape: lstm.Shape) -> list[Contender]:
    """The lanes of a minibatch of 4,096 calls, the default first."""
    return [
        _training(f"ours, {lanes} lanes x {cases.TRAINING_CALLS // lanes} steps", shape, "our_training", 1, lanes)
        for lanes in (cases.TRAINING_LANES, 16, 32, 128, 256)
    ]


def devices(work: str, shape: lstm.Shape) -> list[Contender]:
    """Scoring or training with the cores split into 1, 2, ... CPU devices, all cores first."""
    maker, calls = ("our_scoring", cases.SCORING_CALLS) if work == "scoring" else ("our_training", cases.TRAINING_CALLS)
    return [
        _training(f"ours, {count} CPU device{'s' * (count > 1)}", shape, maker, calls=calls, devices=count)
        for count in range(os.cpu_count() or 1, 0, -1)
    ]


def _training(
    name: str,
    shape: lstm.Shape,
    maker: str,
    *more: object,
    arguments: tuple[object, ...] = (),
    calls: int = cases.TRAINING_CALLS,
    lanes: int = 0,
    kept: bool = True,
    devices: int | None = None,
    repeats: int = REPEATS,
) -> Contender:
    settings = {
        "shape": str(shape),
        "maker": maker,
        "arguments": [*arguments, *more],
        "keep_freed_memory": kept,
        "devices": devices or os.cpu_count() or 1,
        "repeats": repeats,
    }
    return Contender(name, functools.partial(_in_process, settings), calls, lanes)


def _in_process(settings: dict[str, Any]) -> Run:
    command = [sys.executable, "-m", __name__, json.dumps(settings)]
    usual = {} if settings["keep_freed_memory"] else {"MALLOC_ARENA_MAX": str(8 * (os.cpu_count() or 1))}  # glibc's own
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | usual, check=False)
    if done.returncode:
        raise SyscallLMError(f"a benchmark's process failed: {done.stderr.strip().splitlines()[-1:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def our_scoring(shape: lstm.Shape) -> Callable[[], object]:
    """Scoring of a fixed shape."""
    return cases.fixed_scoring([shape], [])[0].run


def work(settings: dict[str, Any]) -> Run:
    """What a process does: prepares, runs once, and times the runs after that."""
    jax.config.update("jax_num_cpu_devices", settings["devices"])
    if settings["keep_freed_memory"]:
        cpu.keep_freed_memory()
    makers = {"our_scoring": our_scoring, **vars(cases)}
    prepare = functools.partial(makers[settings["maker"]], lstm.Shape.parse(settings["shape"], cases.V))
    run = None

    def first() -> None:
        nonlocal run
        run = prepare(*settings["arguments"])
        run()

    seconds, memory = measured(first)
    assert run is not None
    times = [measured(run)[0] for _ in range(settings["repeats"])]
    return Run(seconds, statistics.median(times), memory)


def measured(run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds of a run, and the MiB by which the process grew in it at most; None where the kernel does not tell."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now (Linux, proc(5))
        before = _status("VmRSS")
    except OSError:
        before = None
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, None if before is None else max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def start(shape: lstm.Shape) -> list[Contender]:
    """The whole command `score` on one trace of three calls: Python's start, imports, compilation, output.

    Its first run with a cache fills that.
    """
    path = pathlib.Path(tempfile.mkdtemp(prefix="syscall_lm."))  # private: what lies in a cache is executed
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    vocabulary = Vocabulary.from_abi("i386")
    shape = lstm.Shape(vocabulary.size, shape.cells, shape.layers)
    params = language_model.initialise(jax.random.key(0), shape)
    store.save(path / "model", vocabulary, (store.Member("1", shape, params),), {})
    scores = np.linspace(1, 2, 100)[None]
    calibration = Calibration.from_scores(scores, scores, "made up")
    (path / "model" / store.CALIBRATION).write_text(json.dumps(calibration.to_json(["1"])))
    with TraceArchiveWriter(path / "traces", vocabulary) as writer:
        writer.write(Trace(np.array([3, 4, 5], np.uint16), "t"))

    def run(cached: bool) -> None:
        (path / "scores").unlink(missing_ok=True)
        arguments = [f"--model={path}/model", f"--archive={path}/traces", f"--output={path}/scores"]
        command = [sys.executable, "-m", "syscall_lm.experiments", "score", *arguments]
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment = os.environ | (cache if cached else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SyscallLMError(f"`score` failed: {done.stderr.strip().splitlines()[-1:]}")

    return [
        Contender("ours, compilation cache", lambda: run(cached=True), 3),
        Contender("ours, cold", lambda: run(cached=False), 3),
    ]


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(work(json.loads(sys.argv[1])))))
