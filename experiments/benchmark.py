"""Measures scoring and training throughput beside PyTorch and Flax, on the same traces, in one process.

  pip install -e '.[bench]'
  syscall-lm benchmark --output=results/benchmark --archive=adfa.parquet

Cases: `scoring` and `training` (fixed shapes), `seeds` (three members together), `archive` (real lengths, end to end),
`members` (1 to 32), `sweep` (lanes and steps of a tile), `devices` (how many CPU devices the cores are split into) and
`start` (from the command to the first score, with and without a persistent compilation cache).

Every implementation of a case runs in turn, several rounds; a row holds medians of real (unpadded) calls per second,
the ratio to each peer, and the fraction of the floor: the model's floating-point operations per call over the
matrix-multiply rate that was measured between the rounds. PyTorch runs at its best of several batch shapes;
our training runs in a process of its own, as `train` prepares it, and PyTorch also in one that is prepared alike.
First calls (compilation) are timed apart, and the process's peak memory during them noted. Machines are shared and
noisy: quote ratios, and absolute speeds on a GPU only. It takes some fifteen minutes on two cores; close
everything else.
"""

import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import benchmark_cases, benchmark_figure, benchmark_processes, command, provenance
from syscall_lm.experiments.benchmark_cases import Contender, V
from syscall_lm.models import lstm
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

OUTPUT = flags.DEFINE_string("output", None, "directory for benchmark.json and table.md", required=True)
ARCHIVE = flags.DEFINE_string("archive", "", "trace archive for the cases of real lengths; empty leaves them out")
SHAPES = flags.DEFINE_list("shapes", ["1x200", "1x400", "2x400"], "language models to measure")
ROUNDS = flags.DEFINE_integer("rounds", 7, "how often each implementation runs", lower_bound=1)
CASES = flags.DEFINE_list(
    "cases", ["scoring", "training", "seeds", "archive", "members", "sweep", "devices", "start"], "what to measure"
)
THREADS = flags.DEFINE_list("torch_threads", ["1", "2"], "PyTorch's thread counts to choose the best of")


def main(argv: list[str]) -> None:
    """Measures case after case; writes the table after each."""
    if argv:
        raise SyscallLMError(f"benchmark takes flags only; what is {argv[0]!r}?")
    shapes = [lstm.Shape.parse(text, V) for text in SHAPES.value]
    output = pathlib.Path(OUTPUT.value)
    rows: list[dict[str, Any]] = []
    for name, shape, contenders, rounds in _cases(shapes):
        rows += measure(name, shape, contenders(), rounds)
        result = {"environment": provenance.environment(), "rounds": ROUNDS.value, "rows": rows}
        files.write_text(output / "benchmark.json", json.dumps(result, indent=1) + "\n")
        files.write_text(output / "table.md", table_of(result))
        print(table_of({**result, "rows": [row for row in rows if row["case"] == name]}), flush=True)
    drawing = benchmark_figure.roofline(rows, benchmark_cases.SCORING_LANES, V)
    if drawing is not None:
        with files.complete_file(output / "roofline.png") as temporary:
            figures.save(drawing, temporary)


Case = tuple[str, lstm.Shape, Callable[[], list[Contender]], int]


def _cases(shapes: Sequence[lstm.Shape]) -> list[Case]:
    """Name, shape, what makes the contenders, and rounds of every case that is asked for."""
    threads = [int(count) for count in THREADS.value]
    rounds, few = ROUNDS.value, min(2, ROUNDS.value)  # what takes a process or half a minute is repeated less
    first = shapes[0]
    cases: dict[str, list[Case]] = {name: [] for name in CASES.default}
    for shape in shapes:
        for work, make in (("scoring", benchmark_cases.fixed_scoring), ("training", _training)):
            contenders = functools.partial(make, shape, threads)
            cases[work].append((f"{work} {shape}, fixed shape", shape, contenders, rounds))
    cases["seeds"] = [(f"training three {first}", first, lambda: benchmark_cases.three_seeds(first), rounds)]
    if ARCHIVE.value:
        traces = TraceArchive(ARCHIVE.value).read().calls
        if traces.calls.max() >= V:
            raise SyscallLMError(f"{ARCHIVE.value}: the benchmark's vocabulary has {V} ids; use an ADFA-LD archive")
        name = f"scoring all of {pathlib.Path(ARCHIVE.value).name}, {first}"
        cases["archive"] = [(name, first, lambda: benchmark_cases.archive(first, traces, threads), few)]
    cases["members"] = [(f"scoring, members of {first}", first, lambda: benchmark_cases.members(first), few)]
    cases["sweep"] = [(f"scoring {first}, tiles", first, lambda: benchmark_cases.sweep(first), few)]
    cases["devices"] = [
        (f"{work} {first}, CPU devices", first, lambda work=work: benchmark_processes.devices(work, first), few)
        for work in ("scoring", "training")
    ]
    cases["start"] = [(f"start to first score, {first}", first, lambda: benchmark_processes.start(first), few)]
    for name in CASES.value:
        if name not in cases:
            raise SyscallLMError(f"--cases={name}: there are {', '.join(cases)}")
    return [case for name in CASES.value for case in cases[name]]


def _training(shape: lstm.Shape, threads: Sequence[int]) -> list[Contender]:
    peers = benchmark_cases.training_peers(shape, threads)
    tuned = benchmark_processes.tuned_torch(shape, max(threads), benchmark_cases.TRAINING_LANES)
    return [benchmark_processes.training(shape), *peers, tuned]


def measure(case: str, shape: lstm.Shape, contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """Runs the contenders in turn; one row each, ours first."""
    rates, bandwidths = [], []
    peaks = {}
    for contender in contenders:
        _forget_peak_memory()
        start = time.perf_counter()
        contender.run()
        contender.first = time.perf_counter() - start
        peaks[contender.name] = _peak_memory()
    for _ in range(rounds):
        rates.append(matrix_rate())
        bandwidths.append(memory_rate())
        for contender in contenders:
            start = time.perf_counter()
            own = contender.run()
            # A contender in a process of its own tells how long the work took there.
            contender.seconds.append(own if isinstance(own, float) else time.perf_counter() - start)
    rate = statistics.median(rates)
    flops = shape.flops_per_call * (3 if "training" in case else 1)
    ours = contenders[0].speed
    best_torch = max((c.speed for c in contenders if c.name.startswith("torch") and "kept" not in c.name), default=None)
    return [
        {
            "case": case,
            "rounds": rounds,
            "implementation": contender.name,
            "calls_per_second": contender.speed,
            "median_seconds": statistics.median(contender.seconds),
            "spread": [contender.calls / max(contender.seconds), contender.calls / min(contender.seconds)],
            "ours_over_this": ours / contender.speed,
            "ours_over_best_torch": ours / best_torch if best_torch and contender is contenders[0] else None,
            "fraction_of_floor": contender.speed * flops / rate,
            "matrix_rate_gflops": rate / 1e9,
            "memory_gigabytes_per_second": statistics.median(bandwidths) / 1e9,
            "first_seconds": contender.first,
            "peak_memory_mib": peaks[contender.name],
        }
        for contender in contenders
    ]


def _forget_peak_memory() -> None:
    """Makes the kernel count the process's peak memory from now (Linux, proc(5): clear_refs)."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is that of the whole run


def _peak_memory() -> float | None:
    """Peak resident memory in MiB, or None where the kernel does not tell."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)


def matrix_rate() -> float:
    """Floating-point operations per second of a large float32 product, now."""
    size = 1024
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    _product(matrix).block_until_ready()
    start = time.perf_counter()
    for _ in range(5):
        _product(matrix).block_until_ready()
    return 5 * 2 * size**3 / (time.perf_counter() - start)


def memory_rate() -> float:
    """Bytes read and written per second by a copy larger than the caches, now."""
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    start = time.perf_counter()
    for _ in range(3):
        np.copyto(target, source)
    return 3 * 2 * source.nbytes / (time.perf_counter() - start)


@jax.jit
def _product(matrix: jax.Array) -> jax.Array:
    return matrix @ matrix


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"{result['environment']['device']}, commit {result['environment']['commit']}, medians of {result['rounds']} "
        "rounds; floor: FLOPs per call over the matrix-multiply rate of the same minutes (training: three times "
        "scoring's).",
        "",
        "| case | implementation | calls/s | spread | ours / this | of the floor | first run | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["spread"]
        lines.append(
            f"| {row['case']} | {row['implementation']} | {row['calls_per_second']:,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{row['ours_over_this']:.2f} | {100 * row['fraction_of_floor']:.0f} % | {row['first_seconds']:.1f} s | "
            f"{row['peak_memory_mib'] or 0:,.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
