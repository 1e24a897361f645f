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
SCORING_REPEATS = 15  # several seconds: machines with neighbours change their speed within one
# Traces a batch: PyTorch is taken at its best of these. Numbers of threads are compared at the first only.
SCORING_LANES, TRAINING_LANES = (64, 16, 32, 128), (64, 32, 128)
ARCHIVE_LANES, EPOCH_LANES = (16, 8, 32), (8, 4, 16)
STREAMS = (1, 4, 16, 64, 256, 1024)  # live traces
FLAX_ARCHIVE_LANES, FLAX_EPOCH_LANES = 32, 8


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


def archive(shapes: Sequence[lstm.Shape], path: str, whole: bool, threads: int) -> list[Contender]:
    """Traces of an archive, from its file to a score of every model and trace."""
    common = {"path": os.path.abspath(path), "whole": whole}
    calls, computed = cases.calls_of(cases.archive_traces(**common))

    def check() -> None:
        theirs = cases.peer_archive(*shapes, **common, lanes=ARCHIVE_LANES[0], threads=threads)
        np.testing.assert_allclose(theirs(), cases.our_archive(*shapes, **common)(), rtol=1e-5, atol=1e-5)

    def peer(name: str, lanes: int, threads: int | None) -> Contender:
        options = {**common, "lanes": lanes, "threads": threads}
        return _apart(name, shapes, "peer_archive", options=options, calls=calls, lanes=lanes, kept=False, repeats=1)

    ours = _apart("ours, what is alike once", shapes, "our_archive", options=common, calls=calls, repeats=1)
    ours.computed = computed
    if not whole:  # all of an archive takes PyTorch minutes, and its training traces show as much
        ours.check = check
    return [
        ours,
        *(peer(f"torch, length-sorted, {lanes} traces, {threads} threads", lanes, threads) for lanes in ARCHIVE_LANES),
        peer(f"flax, length-sorted, {FLAX_ARCHIVE_LANES} traces", FLAX_ARCHIVE_LANES, None),
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
        return peer(name, lanes, threads, kept)

    def peer(name: str, lanes: int, threads: int | None, kept: bool = False) -> Contender:
        return _apart(name, [shape], "peer_epoch", path, lanes, threads, calls=calls, lanes=lanes, kept=kept, repeats=1)

    ours = _apart("ours, packed lanes", [shape], "our_epoch", path, calls=calls, lanes=cases.TRAINING_LANES, repeats=1)
    flax = peer(f"flax, length-sorted, {FLAX_EPOCH_LANES} traces", FLAX_EPOCH_LANES, None)
    return [ours, *map(torch, EPOCH_LANES), torch(EPOCH_LANES[0], kept=True), flax]


def ensemble_training(shapes: Sequence[lstm.Shape], threads: int) -> list[Contender]:
    """One step of a model of each shape on 4,096 calls, in turn; PyTorch and Flax as in `training`."""
    lanes = cases.TRAINING_LANES

    def turn(name: str, maker: str, *arguments: object, **options: Any) -> Contender:
        inner = {"maker": maker, "arguments": arguments}
        return _apart(name, shapes, "in_turn", options=inner, lanes=lanes, **options)

    return [
        turn("ours", "our_training"),
        turn(f"torch, {lanes} traces, {threads} threads", "torch_training", threads, lanes, kept=False),
        turn(f"torch, {lanes} traces, {threads} threads, freed memory kept", "torch_training", threads, lanes),
        turn(f"flax, {lanes} traces", "flax_training", kept=False, devices=1),
    ]


def three_seeds(shape: lstm.Shape) -> list[Contender]:
    """Three members trained together: each step of one after another, as ours are on a CPU, or side by side; apart."""
    calls = 3 * cases.TRAINING_CALLS
    own = {"maker": "our_training"}
    return [
        _apart("ours, together (lax.map)", [shape], "our_training", 3, calls=calls),
        _apart("ours, together (vmap)", [shape], "by_vmap", options={**own, "arguments": [3]}, calls=calls),
        _apart("ours, one after another", [shape] * 3, "in_turn", options=own, calls=calls),
    ]


def three_scored(shape: lstm.Shape) -> list[Contender]:
    """Three members of one shape that score together: a step of one after another, or side by side."""
    shapes, calls = [shape] * 3, 3 * cases.SCORING_CALLS
    common: dict[str, Any] = {"calls": calls, "lanes": cases.SCORING_LANES, "repeats": SCORING_REPEATS}
    return [
        _apart("ours (lax.map)", shapes, "our_scoring", **common),
        _apart("ours (vmap)", shapes, "by_vmap", options={"maker": "our_scoring"}, **common),
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


def streams(shape: lstm.Shape, lanes: int, threads: Sequence[int]) -> list[Contender]:
    """Live traces side by side, a call of each at a time: ours, and PyTorch with any number of threads."""

    def check() -> None:
        found, ours = cases.peer_stream(shape, lanes, max(threads))(), cases.our_stream(shape, lanes)()
        np.testing.assert_allclose(found, ours, rtol=2e-5, atol=2e-5)

    common: dict[str, Any] = {"calls": cases.PUSHES * lanes, "lanes": lanes}
    theirs = [
        _apart(f"torch, {count} threads", [shape], "peer_stream", lanes, count, kept=False, check=check, **common)
        for count in sorted(threads, reverse=True)
    ]
    return [_apart("ours", [shape], "our_stream", lanes, **common), *theirs]


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
    run, before = None, 0

    def first() -> None:
        nonlocal run, before
        run = prepare(**settings["options"])
        before = len(_compiling)  # programs that draw weights
        run()

    seconds, _, memory = measured(first)
    assert run is not None
    compiling = sum(_compiling[before:])
    times = [measured(run)[0] for _ in range(settings["repeats"])]
    return Run(seconds, compiling, statistics.median(times), memory)


_compiling: list[float] = []  # seconds of every program since this process began


def _listen(event: str, duration_secs: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


def measured(run: Callable[[], object]) -> tuple[float, float, float | None]:
    """Seconds of a run, those in which XLA compiled, and the MiB by which the process grew at most (None: not told)."""
    programs = len(_compiling)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now (Linux, proc(5))
        before = _status("VmRSS")
    except OSError:
        before = None
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    grown = None if before is None else max(0.0, _status("VmHWM") - before)
    return seconds, sum(_compiling[programs:]), grown


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
