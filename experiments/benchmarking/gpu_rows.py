"""Rows of `gpu_check`: cases of one group are prepared side by side, timed in turn, and told whatever came of them."""

import contextlib
import dataclasses
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass
class Case:
    """One row.

    Attributes:
      name: what is done, by what.
      make: prepares, in a thread of its own, and returns the function to time, or to run once if it returns a dict of
        figures.
      calls: real calls that one run works through.
      flops_per_call: of the model, on the folded path.
      target: what issue and paper ask for.
      group: cases of one group are prepared together, which is compiling on the host for the most part, and those that
        are timed do the same work; none for a case that stands alone.
      peer: whether it is what a user would take instead of this project.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    calls: int = 0
    flops_per_call: int = 0
    target: str = ""
    group: str = ""
    peer: bool = False


def grouped(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Neighbours of one group together."""
    group: list[Case] = []
    for case in cases:
        if group and (not case.group or case.group != group[0].group):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def attempt(cases: Sequence[Case], rounds: int, peak: float) -> list[dict[str, Any]]:
    """Prepares the cases of a group, times them in turn, and says what came of each, errors included."""
    rows: list[dict[str, Any]] = [{"case": case.name, "target": case.target} for case in cases]
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(prepare, cases, rows))
    measure(cases, rows, runs, rounds, peak)
    if torch := sys.modules.get("torch"):  # it would keep what the next cases need
        torch.cuda.empty_cache()
    return rows


def prepare(case: Case, row: dict[str, Any]) -> Callable[[], Any] | None:
    """Makes and runs a case once; the function to time, or None if it brought its own figures or an error."""
    with _told(row):
        start = time.perf_counter()
        run = case.make()
        row["prepare_seconds"] = time.perf_counter() - start
        outcome = jax.block_until_ready(run())
        row["first_seconds"] = time.perf_counter() - start - row["prepare_seconds"]
        if not isinstance(outcome, dict):
            return run
        row |= outcome
    return None


def measure(
    cases: Sequence[Case],
    rows: Sequence[dict[str, Any]],
    runs: Sequence[Callable[[], Any] | None],
    rounds: int,
    peak: float,
) -> None:
    """Times prepared cases in turn, and adds to their rows what they took and the best peer's time over it."""
    seconds: dict[int, list[float]] = {number: [] for number, run in enumerate(runs) if run is not None}
    for turn in range(rounds):
        for number in list(seconds)[:: 1 if turn % 2 else -1]:
            with _told(rows[number]):
                start = time.perf_counter()
                jax.block_until_ready(runs[number]())  # pyright: ignore[reportOptionalCall]
                seconds[number].append(time.perf_counter() - start)
            if "error" in rows[number]:
                del seconds[number]
    for number, found in seconds.items():
        case, row = cases[number], rows[number]
        row |= {"seconds": statistics.median(found), "spread": [min(found), max(found)]}
        if case.calls:
            row["calls_per_second"] = case.calls / row["seconds"]
            if case.flops_per_call:
                row["of_peak"] = row["calls_per_second"] * case.flops_per_call / peak
    if peers := [rows[number]["seconds"] for number in seconds if cases[number].peer]:
        for number in seconds:
            rows[number]["ratio_to_best_peer"] = min(peers) / rows[number]["seconds"]


@contextlib.contextmanager
def _told(row: dict[str, Any]) -> Iterator[None]:
    """What goes wrong in the block is told in the row."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - one broken kernel must not hide what the others do
        text = "".join(traceback.format_exception(error))
        row |= {"error": f"{type(error).__name__}: {error}"[:500], "traceback": text[-4000:]}


def failed(row: dict[str, Any]) -> bool:
    """Whether the row is an error, or a difference beyond its bound (or no number at all)."""
    return "error" in row or ("difference" in row and not row["difference"] <= row["bound"])


def matrix_rate(size: int = 8192, products: int = 20) -> float:
    """Floating-point operations per second of a large bfloat16 product of random matrices: the best of three goes.

    The first go also brings the clocks up, which takes longer than one product.
    """
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready([product(matrix) for _ in range(products)])
        seconds.append(time.perf_counter() - start)
    return products * 2 * size**3 / min(seconds)


def line_of(row: dict[str, Any]) -> str:
    """One row for a person."""
    if "error" in row:
        return f"| {row['case']} | failed: {' '.join(row['error'].split())[:160]} | | | | | |"
    if "difference" in row:
        verdict = "BEYOND" if failed(row) else "within"
        return f"| {row['case']} | differs by {row['difference']:.1e}, {verdict} {row['bound']:.0e} | | | | | |"
    speed = f"{row['calls_per_second']:,.0f}" if "calls_per_second" in row else ""
    peak = f"{100 * row['of_peak']:.1f} %" if "of_peak" in row else ""
    ratio = f"{row['ratio_to_best_peer']:.2f}" if "ratio_to_best_peer" in row else ""
    first = f"{row['prepare_seconds']:.1f} + {row['first_seconds']:.1f} s" if "first_seconds" in row else ""
    return f"| {row['case']} | {1e3 * row['seconds']:.2f} ms | {speed} | {peak} | {ratio} | {first} | {row['target']} |"


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    environment = result["environment"]
    head = (
        f"{environment['device']}, jax {environment['jax']}, PyTorch {environment.get('torch', 'not installed')}, "
        f"commit {environment['commit']}; a bfloat16 product runs at {result['bfloat16_rate'] / 1e12:.0f} TFLOP/s. "
        "Times are the host's, from the call to the result; those of one kind of work were taken in turn, after it had "
        "been prepared side by side. Best peer: the fastest of cuDNN, Flax and, in scoring, XLA in the same work."
    )
    note = [result["note"], ""] if "note" in result else []
    columns = "| case | time or outcome | calls/s | of peak | best peer's time / this | prepared + first run | target |"
    return "\n".join([head, "", *note, columns, "|---" * 7 + "|", *map(line_of, result["rows"])]) + "\n"
