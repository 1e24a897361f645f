"""Measures scoring and training throughput beside PyTorch and Flax, on the same traces and weights.

  pip install -e '.[bench]'
  syscall-lm benchmark --output=results/benchmark --archive=adfa.parquet

Cases: `scoring` and `training` (fixed shapes), `ensemble` (both, one model of each shape), `seeds` (three members of
one shape together), `archive` (scoring all of an archive, from its file), `real` (its training traces, under each model
and all), `epoch` (training on these), `members` (1 to 32), `sweep` (lanes and steps of a tile, lanes of a minibatch),
`devices` (how many CPU devices the cores are split into), `start` (the command `score` on one trace, with and
without a persistent compilation cache), `operands` (of scoring's products) and `streams` (1 to 1,024 live traces).

Every implementation of a case runs in turn, several rounds; a row holds medians of real (unpadded) calls per second,
the ratio to each peer, and the fraction of the floor: the floating-point operations of the calls that it computes over
the matrix-multiply rate of all cores, measured between the rounds. What has peers is timed in processes of their own,
ours and theirs alike, each round anew: the median of fifteen runs of scoring, of seven steps of training, or one epoch
after a first, which is told apart. Theirs have the C library's memory as it is; in training PyTorch also has it as
`train` does, which keeps what is freed. Surprisals are compared with ours. First runs, with compilation, are timed
apart, what of them XLA compiled, and what the process grew by in them. Cases that are in --output already and are not
asked for stay as they are, with the commit that they were measured on. Machines are shared and noisy: quote ratios, and
absolute speeds on a GPU only. It takes two hours on two cores; close everything else.
"""

import functools
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import cpu, files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.benchmarking import cases, roofline, worker
from syscall_lm.experiments.benchmarking.cases import Contender, V
from syscall_lm.models import lstm
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

NAMES = (
    "scoring",
    "training",
    "ensemble",
    "seeds",
    "archive",
    "real",
    "epoch",
    "members",
    "sweep",
    "devices",
    "start",
    "operands",
    "streams",
)
OF_ARCHIVE = ("archive", "real", "epoch")

OUTPUT = flags.DEFINE_string("output", None, "directory for benchmark.json, table.md and roofline.png", required=True)
ARCHIVE = flags.DEFINE_string("archive", "", f"trace archive for {' and '.join(OF_ARCHIVE)}; empty leaves them out")
SHAPES = flags.DEFINE_list("shapes", ["1x200", "1x400", "2x400"], "language models to measure")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each implementation runs", lower_bound=1)
CASES = flags.DEFINE_list("cases", list(NAMES), "what to measure")
THREADS = flags.DEFINE_list("torch_threads", ["1", "2"], "PyTorch's thread counts to choose the best of")


def main() -> None:
    """Measures case after case; writes the table after each."""
    shapes = [lstm.Shape.parse(text, V) for text in SHAPES.value]
    threads = [int(count) for count in THREADS.value if count.isdecimal() and int(count)]
    if len(threads) < max(1, len(THREADS.value)):
        raise SyscallLMError("--torch_threads are numbers of threads")
    output = pathlib.Path(OUTPUT.value)
    measured, environments = _measured_before(output / "benchmark.json")
    environment = provenance.environment()
    commit = environment["commit"]
    for case in _cases(shapes, threads):
        measured[case.name] = [{**row, "commit": commit} for row in measure(case)]
        rows = [row for of_case in measured.values() for row in of_case]
        used = {row["commit"] for row in rows}
        environments = {name: made for name, made in {**environments, commit: environment}.items() if name in used}
        result = {"environments": environments, "rows": rows}
        files.write_text(output / "benchmark.json", json.dumps(result, indent=1) + "\n")
        files.write_text(output / "table.md", table_of(result))
        print(table_of({**result, "rows": [row for row in rows if row["case"] == case.name]}), flush=True)
    drawing = roofline.figure([row for of_case in measured.values() for row in of_case], V)
    if drawing is not None:
        with files.complete_file(output / "roofline.png") as temporary:
            figures.save(drawing, temporary)


def _measured_before(path: pathlib.Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Case -> its rows in an earlier run's file, if there is one; and commit -> the environment there."""
    found: dict[str, list[dict[str, Any]]] = {}
    result = json.loads(path.read_text()) if path.exists() else {"rows": [], "environments": {}}
    for row in result["rows"]:
        found.setdefault(row["case"], []).append(row)
    return found, result["environments"]


class Case:
    """What is measured: its name, FLOPs a call, what makes the contenders, and rounds."""

    def __init__(self, name: str, flops: int, rounds: int, make: Callable[..., list[Contender]], *arguments: Any):
        self.name, self.flops, self.rounds = name, flops, rounds
        self.contenders = functools.partial(make, *arguments)


def _cases(shapes: Sequence[lstm.Shape], threads: list[int]) -> list[Case]:
    """Every case that is asked for, in that order."""
    rounds, few = ROUNDS.value, min(3, ROUNDS.value)  # what takes a process or half a minute is repeated less
    first, last = shapes[0], shapes[-1]
    scoring, learning = first.flops_per_call, cases.training_flops(first)
    path = ARCHIVE.value
    if path and TraceArchive(path).vocabulary.size > V:
        raise SyscallLMError(f"{path}: the benchmark's vocabulary has {V} ids; use an ADFA-LD archive")
    archive = pathlib.Path(path).name
    together, all_flops = "+".join(map(str, shapes)), sum(shape.flops_per_call for shape in shapes)
    found = {
        "scoring": [
            Case(f"scoring {shape}, fixed shape", shape.flops_per_call, rounds, worker.scoring, [shape], threads)
            for shape in shapes
        ],
        "training": [
            Case(f"training {shape}, fixed shape", cases.training_flops(shape), few, worker.training, shape, threads)
            for shape in shapes
        ],
        "ensemble": [
            Case(f"scoring {together}, fixed shape", all_flops, few, worker.scoring, shapes, [max(threads)]),
            Case(
                f"training {together}, fixed shape", 3 * all_flops, few, worker.ensemble_training, shapes, max(threads)
            ),
        ],
        "seeds": [
            Case(f"training three {first}", learning, few, worker.three_seeds, first),
            Case(f"scoring three {first}", scoring, few, worker.three_scored, first),
        ],
        "archive": [
            Case(f"scoring all of {archive}, {first}", scoring, few, worker.archive, [first], path, True, max(threads))
        ],
        "real": [
            Case(
                f"scoring training traces of {archive}, {'+'.join(map(str, chosen))}",
                sum(shape.flops_per_call for shape in chosen),
                few,
                worker.archive,
                chosen,
                path,
                False,
                max(threads),
            )
            for chosen in [*([shape] for shape in shapes), shapes]
        ],
        "epoch": [
            Case(
                f"training {shape}, an epoch of {archive}",
                cases.training_flops(shape),
                few,
                worker.epoch,
                shape,
                path,
                max(threads),
            )
            for shape in shapes
        ],
        "members": [Case(f"scoring, members of {first}", scoring, few, cases.members, first)],
        "sweep": [
            *(
                Case(f"scoring {shape}, tiles", shape.flops_per_call, few, cases.sweep, shape)
                for shape in dict.fromkeys((first, last))
            ),
            *(
                Case(f"training {shape}, minibatches", cases.training_flops(shape), few, worker.minibatches, shape)
                for shape in dict.fromkeys((first, last))
            ),
        ],
        "devices": [
            Case(f"scoring {first}, CPU devices", scoring, few, worker.devices, "scoring", first),
            Case(f"training {first}, CPU devices", learning, few, worker.devices, "training", first),
        ],
        "operands": [
            Case(f"scoring {shape}, operands", shape.flops_per_call, few, worker.operands, shape) for shape in shapes
        ],
        "streams": [
            Case(f"live calls of {count} streams, {first}", scoring, few, worker.streams, first, count, threads)
            for count in worker.STREAMS
        ],
        "start": [Case(f"`score` of one trace, {first}", scoring, few, worker.start, first)],
    }
    for name in CASES.value:
        if name not in found:
            raise SyscallLMError(f"--cases={name}: there are {', '.join(found)}")
    return [case for name in CASES.value if path or name not in OF_ARCHIVE for case in found[name]]


def measure(case: Case) -> list[dict[str, Any]]:
    """Runs the contenders in turn; one row each, ours first."""
    contenders = case.contenders()
    for contender in contenders:
        contender.check()
    rates, bandwidths = [], []
    for turn in range(case.rounds):
        rates.append(matrix_rate())
        bandwidths.append(cache_rate())
        for contender in contenders:
            run_once(contender)
            if turn == 0 and not contender.seconds:  # its first run says nothing but what a first run costs
                run_once(contender)
    return _rows(case, contenders, statistics.median(rates), statistics.median(bandwidths))


def run_once(contender: Contender) -> None:
    """One run of a contender, which says what it took or, if that is its first one here, what a first run takes."""
    told: list[object] = []
    taken = worker.measured(lambda: told.append(contender.run()))
    first = contender.first == 0
    if isinstance(told[0], cases.Run):  # in a process of its own, after a first run there
        own = told[0]
        contender.seconds.append(own.seconds)
        taken = own.first, own.compiling, own.memory
    elif not first:
        contender.seconds.append(taken[0])
    if first:
        contender.first, contender.compiling, contender.memory = taken


def _rows(case: Case, contenders: list[Contender], rate: float, bandwidth: float) -> list[dict[str, Any]]:
    ours = contenders[0]
    return [
        {
            "case": case.name,
            "rounds": case.rounds,
            "implementation": contender.name,
            "lanes": contender.lanes,
            "calls_per_second": contender.speed,
            "median_seconds": statistics.median(contender.seconds),
            "spread": [contender.calls / max(contender.seconds), contender.calls / min(contender.seconds)],
            "ours_over_this": ours.speed / contender.speed,
            "fraction_of_floor": contender.speed * case.flops * _computed(contender) / rate,
            "matrix_rate_gflops": rate / 1e9,
            "cache_gigabytes_per_second": bandwidth / 1e9,
            "first_seconds": contender.first,
            "compiling_seconds": contender.compiling,
            "memory_mib": contender.memory,
        }
        for contender in contenders
    ]


def _computed(contender: Contender) -> float:
    """Share of the calls that are computed."""
    return (contender.computed or contender.calls) / contender.calls


def matrix_rate() -> float:
    """Floating-point operations per second of large float32 products on all cores, now: the best of three."""
    size, count = 1024, 4
    devices = cpu.single_cores(len(jax.local_devices())) or jax.local_devices()
    matrices = [jax.device_put(np.full((size, size), 1 / size, np.float32), device) for device in devices]
    jax.block_until_ready([_products(matrix, count) for matrix in matrices])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready([_products(matrix, count) for matrix in matrices])
        seconds.append(time.perf_counter() - start)
    return len(devices) * count * 2 * size**3 / min(seconds)


@functools.partial(cpu.jit, static_argnums=1)
def _products(matrix: jax.Array, count: int) -> jax.Array:
    product = matrix
    for _ in range(count):
        product = product @ matrix
    return product


def cache_rate() -> float:
    """Bytes read and written per second where all cores copy 512 KiB, which stay in their caches as weights do."""
    times, cores = 1000, len(os.sched_getaffinity(0))

    def copy(source: np.ndarray) -> None:
        target = np.empty_like(source)
        for _ in range(times):
            np.copyto(target, source)

    sources = [np.ones(2**17, np.float32) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        start = time.perf_counter()
        list(pool.map(copy, sources))
        return cores * times * 2 * sources[0].nbytes / (time.perf_counter() - start)


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "Made by experiments/benchmark.py. Calls per second: median, and slowest to fastest, of the rounds. Floor: "
        "floating-point operations of what is computed over the matrix-multiply rate of the same minutes. First: "
        "seconds of the first run, with compilation; compiling: those in which XLA compiled, of both cores together "
        "where each has its program. Memory: what the process grew by in it.",
        "",
        "| case | implementation | calls/s | spread | rounds | ours / this | of the floor | first | compiling | memory "
        "| commit |",
        "|---" * 11 + "|",
    ]
    for row in result["rows"]:
        median, low, high = (f"{v:,.{0 if v >= 100 else 2}f}" for v in (row["calls_per_second"], *row["spread"]))
        lines.append(
            f"| {row['case']} | {row['implementation']} | {median} | {low} to {high} | "
            f"{row['rounds']} | {row['ours_over_this']:.2f} | {100 * row['fraction_of_floor']:.0f} % | "
            f"{row['first_seconds']:.1f} s | {row.get('compiling_seconds', math.nan):.1f} s | "
            f"{row['memory_mib'] or 0:,.0f} MiB | "
            f"{row['commit']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
