"""Measures scoring and training throughput beside PyTorch and Flax, on the same traces, in one process.

  pip install -e '.[bench]'
  syscall-lm benchmark --output=results/benchmark --archive=adfa.parquet

Every implementation of a case runs in turn, several rounds; a row holds medians of real (unpadded) calls per second,
the ratio to each peer, and the fraction of the floor: the model's floating-point operations per call over the
matrix-multiply rate that was measured between the rounds. PyTorch runs at its best of several batch shapes. First calls
(compilation) are timed apart. Machines are shared and noisy: quote ratios, and absolute speeds on a GPU only. It takes
about ten minutes on two cores; close everything else.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import files, loop, scoring, training
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.benchmark_peers import Flax, Peer, Torch
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences

OUTPUT = flags.DEFINE_string("output", None, "directory for benchmark.json and table.md", required=True)
ARCHIVE = flags.DEFINE_string("archive", "", "trace archive for the cases of real lengths; empty leaves them out")
SHAPES = flags.DEFINE_list("shapes", ["1x200", "1x400", "2x400"], "language models to measure")
ROUNDS = flags.DEFINE_integer("rounds", 7, "how often each implementation runs", lower_bound=1)
THREADS = flags.DEFINE_list("torch_threads", ["1", "2"], "PyTorch's thread counts to choose the best of")

V = 342
SCORING_CALLS = 2**15
TRAINING_CALLS = 2**12
SCORING_LANES, TRAINING_LANES = 128, 64
TORCH_LANES = (16, 64, 128)  # at its best of these
PADDED_LANES = (8, 16, 32)


@dataclasses.dataclass
class Contender:
    """One implementation of a case: a function to time, and the real calls that it works through."""

    name: str
    run: Callable[[], object]
    calls: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0

    @property
    def speed(self) -> float:
        """Real calls per second, median."""
        return self.calls / statistics.median(self.seconds)


def main(argv: list[str]) -> None:
    """Measures case after case; writes the table after each."""
    if argv:
        raise SyscallLMError(f"benchmark takes flags only; what is {argv[0]!r}?")
    shapes = [lstm.Shape.parse(text, V) for text in SHAPES.value]
    output = pathlib.Path(OUTPUT.value)
    cases: list[tuple[str, lstm.Shape, Callable[[], list[Contender]]]] = []
    for shape in shapes:
        cases.append((f"scoring {shape}, fixed shape", shape, lambda shape=shape: fixed_scoring(shape)))
        cases.append((f"training {shape}, fixed shape", shape, lambda shape=shape: fixed_training(shape)))
    cases.append((f"training three {shapes[0]}", shapes[0], lambda: three_seeds(shapes[0])))
    if ARCHIVE.value:
        traces = TraceArchive(ARCHIVE.value).read().calls
        if traces.calls.max() >= V:
            raise SyscallLMError(f"{ARCHIVE.value}: the benchmark's vocabulary has {V} ids; use an ADFA-LD archive")
        cases.append(
            (
                f"scoring all of {pathlib.Path(ARCHIVE.value).name}, {shapes[0]}",
                shapes[0],
                lambda: archive(shapes[0], traces),
            )
        )
    rows: list[dict[str, Any]] = []
    for name, shape, contenders in cases:
        # A whole archive takes PyTorch half a minute; two rounds must do.
        rows += measure(name, shape, contenders(), min(2, ROUNDS.value) if "all of" in name else ROUNDS.value)
        result = {"environment": provenance.environment(), "rounds": ROUNDS.value, "rows": rows}
        files.write_text(output / "benchmark.json", json.dumps(result, indent=1) + "\n")
        files.write_text(output / "table.md", table_of(result))
        print(table_of({**result, "rows": [row for row in rows if row["case"] == name]}), flush=True)


def measure(case: str, shape: lstm.Shape, contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """Runs the contenders in turn; one row each, ours first."""
    rates = []
    for contender in contenders:
        start = time.perf_counter()
        contender.run()
        contender.first = time.perf_counter() - start
    for _ in range(rounds):
        rates.append(matrix_rate())
        for contender in contenders:
            start = time.perf_counter()
            contender.run()
            contender.seconds.append(time.perf_counter() - start)
    rate = statistics.median(rates)
    flops = shape.flops_per_call * (3 if "training" in case else 1)
    ours = contenders[0].speed
    best_torch = max((c.speed for c in contenders if c.name.startswith("torch")), default=None)
    return [
        {
            "case": case,
            "rounds": rounds,
            "implementation": contender.name,
            "calls_per_second": contender.speed,
            "spread": [contender.calls / max(contender.seconds), contender.calls / min(contender.seconds)],
            "ours_over_this": ours / contender.speed,
            "ours_over_best_torch": ours / best_torch if best_torch and contender is contenders[0] else None,
            "fraction_of_floor": contender.speed * flops / rate,
            "matrix_rate_gflops": rate / 1e9,
            "first_seconds": contender.first,
        }
        for contender in contenders
    ]


def matrix_rate() -> float:
    """Floating-point operations per second of a large float32 product, now."""
    size = 1024
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    _product(matrix).block_until_ready()
    start = time.perf_counter()
    for _ in range(5):
        _product(matrix).block_until_ready()
    return 5 * 2 * size**3 / (time.perf_counter() - start)


@jax.jit
def _product(matrix: jax.Array) -> jax.Array:
    return matrix @ matrix


def fixed_scoring(shape: lstm.Shape) -> list[Contender]:
    """Traces of one length, `[T, B]`; every implementation scores the same number of calls on the same weights."""
    params = language_model.initialise(jax.random.key(0), shape)
    inputs, targets = random_calls(SCORING_CALLS // SCORING_LANES, SCORING_LANES)
    scorer = scoring.Scorer([Member("ours", shape, params)], SCORING_LANES, len(inputs))
    sequences = Sequences.from_list(targets.T)
    expected = scorer.surprisal(sequences).reshape(targets.T.shape).T
    contenders = [Contender("ours", lambda: scorer.surprisal(sequences), SCORING_CALLS)]

    def add(name: str, peer: Peer, lanes: int) -> None:
        np.testing.assert_allclose(peer.score(inputs, targets), expected, rtol=1e-4, atol=1e-4)
        batches = [random_calls(SCORING_CALLS // SCORING_LANES, lanes, seed) for seed in range(SCORING_LANES // lanes)]
        contenders.append(Contender(name, lambda: [peer.score(*batch) for batch in batches], SCORING_CALLS))

    for threads in map(int, THREADS.value):
        for lanes in TORCH_LANES:
            add(f"torch, {lanes} traces, {threads} threads", Torch(shape, params, threads), lanes)
    add("flax, 128 traces", Flax(shape, params), SCORING_LANES)
    return contenders


def fixed_training(shape: lstm.Shape) -> list[Contender]:
    """One minibatch of 4,096 calls: forward, backward, clip, Adam, with dropout."""
    params = language_model.initialise(jax.random.key(0), shape)
    contenders = [Contender("ours", our_training(shape, 1), TRAINING_CALLS)]
    for threads in map(int, THREADS.value):
        for lanes in (16, TRAINING_LANES):
            peer, batch = Torch(shape, params, threads), random_calls(TRAINING_CALLS // lanes, lanes)
            name = f"torch, {lanes} x {TRAINING_CALLS // lanes}, {threads} threads"
            contenders.append(Contender(name, lambda peer=peer, batch=batch: peer.train_step(*batch), TRAINING_CALLS))
    flax, batch = Flax(shape, params), random_calls(TRAINING_CALLS // TRAINING_LANES, TRAINING_LANES)
    contenders.append(Contender("flax, 64 x 64", lambda: flax.train_step(*batch), TRAINING_CALLS))
    return contenders


def three_seeds(shape: lstm.Shape) -> list[Contender]:
    """Three members together, and one after another."""
    alone = [our_training(shape, 1) for _ in range(3)]
    return [
        Contender("ours, together", our_training(shape, 3), 3 * TRAINING_CALLS),
        Contender("ours, one after another", lambda: [step() for step in alone], 3 * TRAINING_CALLS),
    ]


def our_training(shape: lstm.Shape, members: int) -> Callable[[], object]:
    """A function that makes one step of this project's training, as `train` does."""
    _, targets = random_calls(TRAINING_CALLS // TRAINING_LANES, TRAINING_LANES)
    sequences = Sequences.from_list(targets.T)
    recipe = training.Recipe(minibatch_calls=TRAINING_CALLS, steps=len(targets))
    objective = training.LanguageModelling(shape, recipe, sequences, sequences)
    state, step = loop.begin(objective, range(members), recipe, 1000)
    plan = next(iter(objective.plans(0)))

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, plan))

    return run


def archive(shape: lstm.Shape, traces: Sequences) -> list[Contender]:
    """All traces of an archive: ours packs lanes and scores identical traces once; PyTorch sorts by length and pads."""
    params = language_model.initialise(jax.random.key(0), shape)
    scorer = scoring.Scorer([Member("ours", shape, params)])
    calls = len(traces.calls)
    contenders = [Contender("ours, identical traces once", lambda: scorer.surprisal(traces), calls)]
    for lanes in PADDED_LANES:
        peer = Torch(shape, params, max(map(int, THREADS.value)))
        name = f"torch, length-sorted, {lanes} traces"
        contenders.append(Contender(name, lambda peer=peer, lanes=lanes: padded(peer, traces, lanes), calls))
    return contenders


def padded(peer: Peer, traces: Sequences, lanes: int) -> np.ndarray:
    """Mean surprisal of each trace, in minibatches of similar length, padded to the longest."""
    order = np.argsort(traces.lengths, kind="stable")
    means = np.empty(len(traces))
    for start in range(0, len(order), lanes):
        chosen = order[start : start + lanes]
        targets = np.zeros((traces.lengths[chosen].max(), len(chosen)), np.int64)
        for lane, trace in enumerate(chosen):
            targets[: traces.lengths[trace], lane] = traces[int(trace)]
        inputs = np.concatenate([np.full((1, len(chosen)), V), targets[:-1]])
        surprisal = peer.score(inputs, targets)
        for lane, trace in enumerate(chosen):
            means[trace] = surprisal[: traces.lengths[trace], lane].mean()
    return means


def random_calls(steps: int, lanes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `[T, B]` of random traces."""
    targets = np.random.default_rng(seed).integers(0, V, (steps, lanes))
    return np.concatenate([np.full((1, lanes), V), targets[:-1]]), targets


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"{result['environment']['device']}, commit {result['environment']['commit']}, medians of {result['rounds']} "
        "rounds; floor: FLOPs per call over the matrix-multiply rate of the same minutes (training: three times "
        "scoring's).",
        "",
        "| case | implementation | calls/s | spread | ours / this | of the floor | first run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["spread"]
        lines.append(
            f"| {row['case']} | {row['implementation']} | {row['calls_per_second']:,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{row['ours_over_this']:.2f} | {100 * row['fraction_of_floor']:.0f} % | {row['first_seconds']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
