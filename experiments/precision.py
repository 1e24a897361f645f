"""What cheaper arithmetic does to scores, and whether it is cheaper here.

  syscall-lm precision --archive=adfa.parquet --models=runs/adfa --output=results/precision

Three ways of scoring an archive are compared, member by member: float32; bfloat16 operands with sums and states in
float32, which is the arithmetic of the Hopper kernel (kernels/scoring/mosaic_gpu.py), emulated; and int8 weights, one
scale a column, with float32 for everything else. Told are the largest and the mean difference of a call's
surprisal, the rank correlation (Spearman) of the traces' scores, and the AUC's difference. They count as harmless while
the AUC moves by less than 0.001.

Beside that the rate of a recurrent product `[256, H] x [H, 4H]` with operands of each type on this device.
"""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.stats import rankdata

from syscall_lm import evaluation, files, scoring
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.kernels.lstm import cell
from syscall_lm.kernels.nll import nll
from syscall_lm.models import lstm, store
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.packing import Tile
from syscall_lm.types import Array, Params

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
MODELS = flags.DEFINE_list("models", None, "model directories that `train` made on it", required=True)
OUTPUT = flags.DEFINE_string("output", "results/precision", "directory for precision.json and table.md")


def main(argv: list[str]) -> None:
    """Scores in every precision, compares, writes."""
    if argv:
        raise SyscallLMError(f"precision takes flags only; what is {argv[0]!r}?")
    archive = TraceArchive(ARCHIVE.value)
    benchmark = data.benchmark(archive)
    output = pathlib.Path(OUTPUT.value)
    rows: list[dict[str, Any]] = []
    for path in MODELS.value:
        model = store.load(pathlib.Path(path))
        data.require_trained_on(model, archive)
        for member in model.members:
            if isinstance(member.shape, lstm.Shape):
                for row in compare(member, benchmark):
                    rows.append({"model": pathlib.Path(path).name, "member": member.name, **row})
                    print(json.dumps(rows[-1]), flush=True)
    if not rows:
        raise SyscallLMError("--models: there is no language model among the members")
    cells = sorted({int(row["member"].partition(".")[0].rpartition("x")[2]) for row in rows})
    result = {
        "environment": provenance.environment(),
        "traces": benchmark.counts,
        "rows": rows,
        "products": [product_rates(count) for count in cells],
    }
    files.write_text(output / "precision.json", json.dumps(result, indent=1) + "\n")
    files.write_text(output / "table.md", table_of(result))
    print(table_of(result))


class Bfloat16(scoring.Scorer):
    """Scores with operands of products rounded to bfloat16; what is added up, c and the log-sum-exp are float32."""

    def tile(self, states: list[lstm.State], tile: Tile) -> tuple[list[lstm.State], list[Array]]:
        """See `Scorer.tile`."""
        return self._on_lanes(_bfloat16_surprisal, states, tile)


def _bfloat16_surprisal(folded: Params, state: lstm.State, tile: Tile) -> tuple[lstm.State, Array]:
    weights = jax.tree.map(lambda leaf: _rounded(leaf) if leaf.ndim > 1 else leaf, folded)
    layers = [weights["layers"][str(number)] for number in range(len(weights["layers"]))]

    def step(state: lstm.State, call: tuple[Array, Array, Array]) -> tuple[lstm.State, Array]:
        inputs, targets, reset = call
        x, after = weights["table"][inputs], []
        for number, layer in enumerate(layers):
            c, h = (jnp.where(reset[:, None], 0, part) for part in state[number])
            if number:
                x = _rounded(x) @ layer["w_ih"] + layer["b"]
            c, x = cell(x + _rounded(h) @ layer["w_hh"], c)
            after.append((c, x))
        return after, nll(_rounded(x), weights["w_out"], weights["b_out"], targets)

    return jax.lax.scan(step, state, (jnp.asarray(tile.inputs), jnp.asarray(tile.targets), jnp.asarray(tile.reset)))


def _rounded(array: Array) -> Array:
    """To the nearest bfloat16; a product of two such numbers is exact in float32."""
    return array.astype(jnp.bfloat16).astype(jnp.float32)


def int8_weights(params: Params) -> Params:
    """Every matrix as 8-bit integers times one scale a column, written out in float32."""

    def quantised(leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        scale = jnp.maximum(jnp.abs(leaf).max(0, keepdims=True), 1e-30) / 127
        return jnp.round(leaf / scale) * scale

    return jax.tree.map(quantised, params)


def compare(member: store.Member, benchmark: data.Benchmark) -> list[dict[str, Any]]:
    """A row for each cheaper precision."""
    traces, attack = benchmark.traces, benchmark.is_attack
    exact = scoring.Scorer([member]).surprisal(traces)[0]
    cheaper = {
        "bfloat16 operands": Bfloat16([member]),
        "int8 weights": scoring.Scorer([store.Member(member.name, member.shape, int8_weights(member.params))]),
    }
    expected = scoring.means(exact, traces)
    auc = evaluation.curve(expected[~attack], expected[attack]).auc
    rows = []
    for name, scorer in cheaper.items():
        found = scorer.surprisal(traces)[0]
        means = scoring.means(found, traces)
        rows.append(
            {
                "precision": name,
                "largest_difference": float(np.abs(found - exact).max()),
                "mean_difference": float(np.abs(found - exact).mean(dtype=np.float64)),
                "largest_difference_of_a_score": float(np.abs(means - expected).max()),
                "rank_correlation": float(np.corrcoef(rankdata(means), rankdata(expected))[0, 1]),
                "auc_float32": auc,
                "auc_difference": evaluation.curve(means[~attack], means[attack]).auc - auc,
            }
        )
    return rows


def product_rates(cells: int, lanes: int = 256, repeats: int = 300) -> dict[str, Any]:
    """Operations per second of `[lanes, cells] x [cells, 4 cells]`, in 10^9, for each type of operand."""
    rates: dict[str, Any] = {"cells": cells}
    for kind, total in (("float32", jnp.float32), ("bfloat16", jnp.float32), ("int8", jnp.int32)):
        left = jnp.ones((lanes, cells), kind)
        right = jnp.ones((cells, 4 * cells), kind)

        @jax.jit
        def product(left: Array, right: Array, total: Any = total) -> Array:
            return jax.lax.dot(left, right, preferred_element_type=total)

        product(left, right).block_until_ready()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(repeats // 5):
                product(left, right).block_until_ready()
            seconds.append((time.perf_counter() - start) / (repeats // 5))
        rates[kind] = 2 * lanes * cells * 4 * cells / min(seconds) / 1e9
    return rates


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    environment, counts = result["environment"], result["traces"]
    lines = [
        f"{counts['normal']:,} normal traces and {counts['attack']:,} attacks; {environment['device']}, commit "
        f"{environment['commit']}. Differences are to float32 with the same weights, in nats.",
        "",
        "| model | member | precision | a call, at most | a call, mean | a score, at most | rank correlation | AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['model']} | {row['member']} | {row['precision']} | "
            f"{row['largest_difference']:.3f} | {row['mean_difference']:.5f} | "
            f"{row['largest_difference_of_a_score']:.4f} | {row['rank_correlation']:.6f} | "
            f"{row['auc_float32']:.4f} {row['auc_difference']:+.5f} |"
        )
    lines += ["", "| H | float32 | bfloat16 | int8 |", "|---|---|---|---|"]
    lines += [
        f"| {rates['cells']} | 1.00 | {rates['bfloat16'] / rates['float32']:.2f} | "
        f"{rates['int8'] / rates['float32']:.2f} |"
        for rates in result["products"]
    ]
    lines += ["", "The second table: the rate of `[256, H] x [H, 4H]` on this device, as a ratio to float32."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
