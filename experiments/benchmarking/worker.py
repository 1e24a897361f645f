"""The benchmark's contenders that need a process of their own.

JAX fixes the number of its devices when it starts, and how memory is kept concerns a whole process. What has peers is
therefore timed in fresh processes, ours and theirs alike; so is the command `score`.

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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from syscall_lm import cpu
from syscall_lm.detectors.ensemble import Calibration
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.benchmarking import cases
from syscall_lm.experiments.benchmarking.cases import Contender, Run
from syscall_lm.models import language_model, lstm, store
from syscall_lm.scoring import OPERANDS
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

REPEATS = 7
SCORING_REPEATS = 3
# Traces a batch: PyTorch is taken at its best of these. Numbers of threads are compared at the first only.
SCORING_LANES, TRAINING_LANES = (64, 16, 32, 128), (64, 32, 128)
ARCHIVE_LANES, EPOCH_LANES = (16, 8, 32), (8, 4, 16)


def scoring(shapes: Sequence[lstm.Shape], threads: Sequence[int]) -> list[Contender]:
    """Traces of one length, `[T, B]`, under one model or one of each shape; the same calls on the same weights."""
    expected = functools.cache(lambda: cases.our_scoring(*shapes)())

    def peer(name: str, lanes: int, threads: int | None) -> Contender:
        options = {"lanes": lanes, "threads": threads}

        def check() -> None:
            found = np.stack(cases.peer_scoring(*shapes, **options)())
            ours = expected().reshape(len(shapes), cases.SCORING_LANES, -1).swapaxes(1, 2)
            np.testing.assert_allclose(found, ours, rtol=2e-5, atol=2e-5)

        return _apart(name, shapes, "peer_scoring", options=options, lanes=lanes, kept=False, check=check, **common)

    common: dict[str, Any] = {"calls": cases.SCORING_CALLS, "repeats": SCORING_REPEATS}
    return [
        _apart("ours", shapes, "our_scoring", lanes=cases.SCORING_LANES, **common),
        *(
            peer(f"torch, {lanes} traces, {count} threads", lanes, count)
            for lanes, count in _tried(threads, SCORING_LANES)
        ),
        peer(f"flax, {cases.FLAX_LANES} traces", cases.FLAX_LANES, None),
    ]


def _tried(threads: Sequence[int], lanes: Sequence[int]) -> list[tuple[int, int]]:
    """Traces a batch and threads: all lanes with the most threads, the first with any."""
    return [(each, max(threads)) for each in lanes] + [(lanes[0], count) for count in sorted(threads)[:-1]]


def archive(shape: lstm.Shape, path: str, threads: Sequence[int]) -> list[Contender]:
    """All traces of an archive, from its file to a score a trace."""
    path, most = os.path.abspath(path), max(threads)
    calls, distinct = cases.calls_of(path)

    def check() -> None:
        ours, theirs = cases.our_archive(shape, path), cases.torch_archive(shape, path, most, ARCHIVE_LANES[0])
        np.testing.assert_allclose(theirs(), ours(), rtol=1e-5, atol=1e-5)

    ours = _apart("ours, identical traces once", [shape], "our_archive", path, calls=calls, repeats=1)
    ours.computed, ours.check = distinct, check
    return [
        ours,
        *(
            _apart(
                f"torch, length-sorted, {lanes} traces, {most} threads",
                [shape],
                "torch_archive",
                *(path, most, lanes),
                calls=calls,
                lanes=lanes,
                kept=False,
                repeats=1,
            )
            for lanes in ARCHIVE_LANES
        ),
    ]


def training(shape: lstm.Shape, threads: Sequence[int]) -> list[Contender]:
    """One step on a minibatch of 4,096 calls: ours, PyTorch, PyTorch in a process prepared as ours is, Flax."""

    def torch(lanes: int, count: int, kept: bool = False) -> Contender:
        name = f"torch, {lanes} x {cases.TRAINING_CALLS // lanes}, {count} threads{', freed memory kept' * kept}"
        return _apart(name, [shape], "torch_training", count, lanes, lanes=lanes, kept=kept)

    lanes = cases.TRAINING_LANES
    return [
        _apart("ours", [shape], "our_training", lanes=lanes),
        *(torch(*tried) for tried in _tried(threads, TRAINING_LANES)),
        torch(TRAINING_LANES[0], max(threads), kept=True),
        _apart("flax, 64 x 64", [shape], "flax_training", lanes=lanes, kept=False, devices=1),
    ]


def epoch(shape: lstm.Shape, archive: str, threads: int) -> list[Contender]:
    """An epoch over real traces: ours packs them into lanes, PyTorch sorts and pads."""
    path = os.path.abspath(archive)
    calls = len(cases.epoch_traces(path).calls)

    def torch(lanes: int, kept: bool = False) -> Contender:
        name = f"torch, length-sorted, {lanes} traces, {threads} threads{', freed memory kept' * kept}"
        arguments = (path, threads, lanes)
        return _apart(name, [shape], "torch_epoch", *arguments, calls=calls, lanes=lanes, kept=kept, repeats=1)

    ours = _apart("ours, packed lanes", [shape], "our_epoch", path, calls=calls, lanes=cases.TRAINING_LANES, repeats=1)
    return [ours, *map(torch, EPOCH_LANES), torch(EPOCH_LANES[0], kept=True)]


def three_seeds(shape: lstm.Shape) -> list[Contender]:
    """Three members together, and one after another."""
    calls = 3 * cases.TRAINING_CALLS
    return [
        _apart("ours, together", [shape], "our_training", 3, calls=calls),
        _apart("ours, one after another", [shape], "three_apart", calls=calls),
    ]


def minibatches(shape: lstm.Shape) -> list[Contender]:
    """The lanes of a minibatch of 4,096 calls, the default first."""
    return [
        _apart(f"ours, {lanes} lanes x {cases.TRAINING_CALLS // lanes} steps", [shape], "our_training", 1, lanes)
        for lanes in (cases.TRAINING_LANES, 16, 32, 128, 256)
    ]


def operands(shape: lstm.Shape) -> list[Contender]:
    """Scoring a fixed shape with products of operands of each type."""
    return [
        _apart(f"ours, {kind}", [shape], "our_scoring", options={"operands": kind}, calls=cases.SCORING_CALLS)
        for kind in OPERANDS
    ]


def devices(work: str, shape: lstm.Shape) -> list[Contender]:
    """Scoring or training with the cores split into 1, 2, ... CPU devices, all cores first."""
    maker, calls = ("our_scoring", cases.SCORING_CALLS) if work == "scoring" else ("our_training", cases.TRAINING_CALLS)
    return [
        _apart(f"ours, {count} CPU device{'s' * (count > 1)}", [shape], maker, calls=calls, devices=count)
        for count in range(os.cpu_count() or 1, 0, -1)
    ]


def _apart(
    name: str,
    shapes: Sequence[lstm.Shape],
    maker: str,
    *arguments: object,
    options: dict[str, Any] | None = None,
    calls: int = cases.TRAINING_CALLS,
    lanes: int = 0,
    kept: bool = True,
    devices: int | None = None,
    repeats: int = REPEATS,
    check: Callable[[], None] = lambda: None,
) -> Contender:
    """What a function of `cases` makes, in a process of its own."""
    settings = {
        "shapes": list(map(str, shapes)),
        "maker": maker,
        "arguments": arguments,
        "options": options or {},
        "keep_freed_memory": kept,
        "devices": devices or os.cpu_count() or 1,
        "repeats": repeats,
    }
    return Contender(name, functools.partial(_in_process, settings), calls, lanes, check=check)


def _in_process(settings: dict[str, Any]) -> Run:
    command = [sys.executable, "-m", __name__, json.dumps(settings)]
    usual = {} if settings["keep_freed_memory"] else {"MALLOC_ARENA_MAX": str(8 * (os.cpu_count() or 1))}  # glibc's own
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | usual, check=False)
    if done.returncode:
        raise SyscallLMError(f"a benchmark's process failed: {done.stderr.strip().splitlines()[-1:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def work(settings: dict[str, Any]) -> Run:
    """What a process does: prepares, runs once, and times the runs after that."""
    jax.config.update("jax_num_cpu_devices", settings["devices"])
    if settings["keep_freed_memory"]:
        cpu.keep_freed_memory()
    shapes = [lstm.Shape.parse(shape, cases.V) for shape in settings["shapes"]]
    prepare = functools.partial(getattr(cases, settings["maker"]), *shapes, *settings["arguments"])
    run = None

    def first() -> None:
        nonlocal run
        run = prepare(**settings["options"])
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
