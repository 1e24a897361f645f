"""What cheaper arithmetic does to scores, and whether it is cheaper here.

  syscall-lm precision --archive=adfa.parquet --models=runs/adfa --output=results/precision

Ways of scoring an archive are compared, member by member: float32; on a CPU `score --operands=bfloat16` itself;
bfloat16 operands with sums and c in float32, which is the arithmetic of the Hopper kernel
(kernels/scoring/mosaic_gpu.py, whose table is bfloat16 too) but for its tanh, emulated; int8 weights, one scale a
column, with float32 for everything else; and int8 operands: those weights, and h, which lies between -1 and 1, rounded
to 1/127 before each product. Told are the largest and the mean difference of a call's surprisal, the rank correlation
(Spearman) of the traces' scores, and the AUC's difference. They count as harmless while the AUC moves by less than
0.001.

Beside that the speed of operands of each type on this device: of a recurrent product `[256, H] x [H, 4H]` alone, and of
scoring a tile, which is what decides whether they pay.
"""

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from syscall_lm import files, scoring
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.kernels.lstm import cell
from syscall_lm.kernels.nll import nll
from syscall_lm.models import lstm, store
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.packing import Tile
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array, HostArray, Params

CHEAPER = ("bfloat16", "int8")

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
MODELS = flags.DEFINE_list("models", None, "model directories that `train` made on it", required=True)
OUTPUT = flags.DEFINE_string("output", "results/precision", "directory for precision.json and table.md")


def main() -> None:
    """Scores in every precision, compares, writes."""
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
        "products": [{**product_rates(count), "tiles": tile_rates(count)} for count in cells],
    }
    files.write_text(output / "precision.json", json.dumps(result, indent=1) + "\n")
    files.write_text(output / "table.md", table_of(result))
    print(table_of(result))


class Rounding(scoring.Scorer):
    """Scores with operands of products rounded; what is added up, c and the log-sum-exp are float32.

    Args:
      members: language models.
      surprisal: one of the two functions below.
    """

    def __init__(self, members: Sequence[store.Member], surprisal: "Surprisal"):
        super().__init__(members)
        self._rounding_surprisal = surprisal

    def tile(self, states: scoring.States, tile: Tile) -> tuple[scoring.States, list[list[Array]]]:
        """See `Scorer.tile`."""
        return self._on_lanes(self._rounding_surprisal, states, tile)

    def _families(self, sequences: Sequences) -> None:
        """All of every trace is scored by `tile`."""


Surprisal = Callable[[Params, lstm.State, Tile], tuple[lstm.State, Array]]


def bfloat16_surprisal(folded: Params, state: lstm.State, tile: Tile) -> tuple[lstm.State, Array]:
    """As `lstm.score`, matrices and states rounded to bfloat16."""
    weights = jax.tree.map(lambda leaf: _bfloat16(leaf) if leaf.ndim > 1 else leaf, folded)
    return _surprisal(weights, state, tile, _bfloat16)


def int8_surprisal(folded: Params, state: lstm.State, tile: Tile) -> tuple[lstm.State, Array]:
    """As `lstm.score`, states rounded to 1/127; matrices as they are."""
    return _surprisal(folded, state, tile, lambda h: jnp.round(h * 127) / 127)


def _surprisal(
    weights: Params, state: lstm.State, tile: Tile, rounded: Callable[[Array], Array]
) -> tuple[lstm.State, Array]:
    layers = [weights["layers"][str(number)] for number in range(len(weights["layers"]))]

    def step(state: lstm.State, call: tuple[Array, Array, Array]) -> tuple[lstm.State, Array]:
        inputs, targets, reset = call
        x, after = weights["table"][inputs], []
        for number, layer in enumerate(layers):
            c, h = (jnp.where(reset[:, None], 0, part) for part in state[number])
            if number:
                x = rounded(x) @ layer["w_ih"] + layer["b"]
            c, x = cell(x + rounded(h) @ layer["w_hh"], c)
            after.append((c, x))
        return after, nll(rounded(x), weights["w_out"], weights["b_out"], targets)

    return jax.lax.scan(step, state, (jnp.asarray(tile.inputs), jnp.asarray(tile.targets), jnp.asarray(tile.reset)))


def _bfloat16(array: Array) -> Array:
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
    exact = scoring.Scorer([member]).surprisal(benchmark.traces)[0]
    quantised = store.Member(member.name, member.shape, int8_weights(member.params))
    shipped = jax.default_backend() == "cpu"  # elsewhere kernels choose for themselves
    cheaper = {
        **({"--operands=bfloat16": scoring.Scorer([member], operands="bfloat16")} if shipped else {}),
        "bfloat16 operands": Rounding([member], bfloat16_surprisal),
        "int8 weights": scoring.Scorer([quantised]),
        "int8 operands": Rounding([quantised], int8_surprisal),
    }
    return [
        {"precision": name, **benchmark.effect(scorer.surprisal(benchmark.traces)[0], exact)}
        for name, scorer in cheaper.items()
    ]


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


def tile_rates(
    cells: int, vocabulary: int = 342, lanes: int = 256, steps: int = 64, rounds: int = 7
) -> dict[str, float]:
    """Calls per second of scoring a tile with products of operands of each type, all in turn (medians)."""
    rng = np.random.default_rng(0)
    table, w_hh, w_out = (
        rng.uniform(-0.1, 0.1, size).astype(np.float32)
        for size in ((vocabulary + 1, 4 * cells), (cells, 4 * cells), (cells, vocabulary))
    )
    calls = jnp.asarray(rng.integers(0, vocabulary, (2, steps, lanes)))

    def cast(array: HostArray, kind: str) -> Array:
        return jnp.round(array * 127).astype(kind) if kind == "int8" else jnp.asarray(array, kind)

    def runner(kind: str) -> Any:
        weights = [cast(10 * matrix if kind == "int8" else matrix, kind) for matrix in (w_hh, w_out)]  # 1.0 is the most
        total, scale = (jnp.int32, 1 / 127**2 / 10) if kind == "int8" else (jnp.float32, 1.0)

        def product(h: Array, matrix: Array) -> Array:
            return scale * jax.lax.dot(cast(h, kind), matrix, preferred_element_type=total).astype(jnp.float32)

        @jax.jit
        def score(weights: list[Array], calls: Array) -> Array:
            def step(state: tuple[Array, Array], call: Array) -> tuple[tuple[Array, Array], Array]:
                c, h = cell(jnp.asarray(table)[call[0]] + product(state[1], weights[0]), state[0])
                logits = product(h, weights[1])
                chosen = jnp.take_along_axis(logits, call[1][:, None], 1)[:, 0]
                return (c, h), jax.nn.logsumexp(logits, axis=1) - chosen

            zeros = jnp.zeros((lanes, cells))
            return jax.lax.scan(step, (zeros, zeros), jnp.moveaxis(calls, 1, 0))[1]

        score(weights, calls).block_until_ready()
        return lambda: score(weights, calls).block_until_ready()

    runs = {kind: runner(kind) for kind in ("float32", *CHEAPER)}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - start)
    return {kind: lanes * steps / float(np.median(values)) for kind, values in seconds.items()}


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
    lines += ["", "Speed on this device, as a ratio to float32:", ""]
    lines += ["| H | work | bfloat16 | int8 |", "|---|---|---|---|"]
    for rates in result["products"]:
        for work, found in (("a product [256, H] x [H, 4H]", rates), ("scoring a tile of 256 lanes", rates["tiles"])):
            ratios = (f"{found[kind] / found['float32']:.2f}" for kind in CHEAPER)
            lines.append(f"| {rates['cells']} | {work} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
