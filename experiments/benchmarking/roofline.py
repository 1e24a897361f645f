"""The benchmark's roofline: how fast each implementation computes, beside what the machine could do."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from syscall_lm.models import lstm
from syscall_lm.reports.figures import Figure

MARKERS = {"ours": "o", "torch": "s", "flax": "^"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")  # Okabe and Ito: told apart by the colour-blind


def bytes_per_call(shape: lstm.Shape, lanes: int) -> float:
    """Bytes that scoring one call reads and writes at least: its share of a step's weights, its gates and state.

    Args:
      shape: of the model.
      lanes: B, calls of a step.
    """
    h, layers = shape.cells, shape.layers
    weights = 4 * h * h * (2 * layers - 1) + h * shape.vocabulary_size
    own = 4 * h + 4 * h * layers  # the table's row; c and h of every layer, read and written
    return 4 * (weights / lanes + own)


def figure(rows: Sequence[Mapping[str, Any]], vocabulary_size: int) -> Figure | None:
    """GFLOP/s against FLOP per byte of the fixed-shape scoring cases (Williams et al. 2009); None without such rows.

    Args:
      rows: of the benchmark.
      vocabulary_size: V of those cases.
    """
    fixed = [row for row in rows if re.fullmatch(r"scoring \S+, fixed shape", row["case"]) and "+" not in row["case"]]
    chosen = [row for row in fixed if "cache_gigabytes_per_second" in row]  # not in rows of earlier versions
    if not chosen:
        return None
    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    matrix = statistics.median(row["matrix_rate_gflops"] for row in chosen)
    bandwidth = statistics.median(row["cache_gigabytes_per_second"] for row in chosen)
    intensities = []
    for number, case in enumerate(dict.fromkeys(row["case"] for row in chosen)):
        shape = lstm.Shape.parse(case.split()[1].rstrip(","), vocabulary_size)
        own = [row for row in chosen if row["case"] == case]
        for kind, marker in MARKERS.items():
            of_kind = [row for row in own if row["implementation"].startswith(kind)]
            if of_kind:
                best = max(of_kind, key=lambda row: row["calls_per_second"])
                intensity = shape.flops_per_call / bytes_per_call(shape, best["lanes"])
                intensities.append(intensity)
                rate = best["calls_per_second"] * shape.flops_per_call / 1e9
                axes.plot(intensity, rate, marker, color=COLOURS[number % len(COLOURS)], label=f"{shape}, {kind}")
    low, high = min(intensities) / 4, max(intensities) * 4
    ridge = matrix / bandwidth
    xs = sorted({low, ridge, high} if low < ridge < high else {low, high})
    axes.plot(
        xs,
        [min(matrix, bandwidth * x) for x in xs],
        "-",
        color="#5b646d",
        label="measured roof",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte read or written")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawing
