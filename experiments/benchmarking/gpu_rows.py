"""Rows of `gpu_check`: a case is tried, timed, and told whatever came of it."""

import dataclasses
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass
class Case:
    """One row.

    Attributes:
      name: what is done, by what.
      make: prepares, and returns the function to time, or to run once if it returns a dict of figures.
      calls: real calls that one run works through.
      flops_per_call: of the model, on the folded path.
      target: what issue and paper ask for.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    calls: int = 0
    flops_per_call: int = 0
    target: str = ""


def attempt(case: Case, rounds: int, peak: float) -> dict[str, Any]:
    """Runs one case and says what came of it, an error included."""
    row: dict[str, Any] = {"case": case.name}
    try:
        start = time.perf_counter()
        run = case.make()
        outcome = jax.block_until_ready(run())
        row["first_seconds"] = time.perf_counter() - start
        if isinstance(outcome, dict):  # it brings its own figures
            return row | outcome | {"target": case.target}
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - start)
        row |= {"seconds": statistics.median(seconds), "spread": [min(seconds), max(seconds)], "target": case.target}
        if case.calls:
            row["calls_per_second"] = case.calls / row["seconds"]
        if case.calls and case.flops_per_call:
            row["of_peak"] = row["calls_per_second"] * case.flops_per_call / peak
    except Exception as error:  # noqa: BLE001 - one broken kernel must not hide what the others do
        text = "".join(traceback.format_exception(error))
        row |= {"error": f"{type(error).__name__}: {error}"[:500], "traceback": text[-4000:]}
    return row


def matrix_rate(size: int = 8192) -> float:
    """Floating-point operations per second of a large bfloat16 product of random matrices."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    start = time.perf_counter()
    jax.block_until_ready([product(matrix) for _ in range(10)])
    return 10 * 2 * size**3 / (time.perf_counter() - start)


def line_of(row: dict[str, Any]) -> str:
    """One row for a person."""
    if "error" in row:
        return f"| {row['case']} | failed: {' '.join(row['error'].split())[:160]} | | |"
    if "difference" in row:
        verdict = "within" if row["difference"] <= row["bound"] else "BEYOND"
        return f"| {row['case']} | differs by {row['difference']:.1e}, {verdict} {row['bound']:.0e} | | |"
    speed = f"{row['calls_per_second']:,.0f}" if "calls_per_second" in row else ""
    peak = f"{100 * row['of_peak']:.1f} %" if "of_peak" in row else ""
    return f"| {row['case']} | {1e3 * row['seconds']:.2f} ms | {speed} | {peak} |"


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    environment = result["environment"]
    head = (
        f"{environment['device']}, jax {environment['jax']}, commit {environment['commit']}; a bfloat16 product runs "
        f"at {result['bfloat16_rate'] / 1e12:.0f} TFLOP/s."
    )
    lines = [head, "", "| case | time or outcome | calls/s | of peak |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(line_of, result["rows"])]) + "\n"
