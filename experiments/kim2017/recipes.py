"""Kim et al., section 3.2: the printed training recipe beside the fast one, and what the difference costs in AUC.

  syscall-lm train --archive=adfa.parquet --model=runs/fast0 --members=1x200 --seed=0
  syscall-lm train --archive=adfa.parquet --model=runs/printed0 --members=1x200 --seed=0 \
      --learning_rate=1e-4 --schedule=constant --batching=traces --epochs=400 --patience=20
  syscall-lm kim2017.recipes --archive=adfa.parquet --fast=runs/fast0,... --printed=runs/printed0,...

Printed: uniform initialisation, Adam at 1e-4, clipping at 5, dropout 0.5, minibatches of similar length. Epochs,
minibatch size and stopping are not printed: held-out normal loss chooses when to stop. Fast: Adam at 4e-3 decaying to
zero over 24 epochs, truncated back-propagation over packed lanes. Compared is what both sets of models hold; the
difference in AUC is of the means over the seeds, its interval a bootstrap over the traces, which
both recipes share, and not over seeds.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from syscall_lm import evaluation, files
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.kim2017 import comparison, trained
from syscall_lm.experiments.kim2017.comparison import RATES, spread
from syscall_lm.models.store import Model
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

RECIPE = ("learning_rate", "schedule", "batching", "minibatch_calls", "steps", "dropout", "clip", "epochs", "patience")

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
FAST = flags.DEFINE_list("fast", None, "model directories of the fast recipe, one a seed", required=True)
PRINTED = flags.DEFINE_list("printed", None, "model directories of the printed recipe, one a seed", required=True)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for recipes.json, recipes.md and recipes.png")


def main(argv: list[str]) -> None:
    """Scores the models of both recipes, compares, writes."""
    if argv:
        raise SyscallLMError(f"kim2017.recipes takes flags only; what is {argv[0]!r}?")
    archive = TraceArchive(ARCHIVE.value)
    sets = {
        name: trained.load(paths or [], archive) for name, paths in (("fast", FAST.value), ("printed", PRINTED.value))
    }
    members = [
        member.name
        for member in next(iter(sets["fast"].values())).members
        if member.name in {other.name for other in next(iter(sets["printed"].values())).members}
    ]
    if not members:
        raise SyscallLMError("--fast and --printed hold no member of the same name")
    benchmark = data.benchmark(archive)
    result: dict[str, Any] = {"archive": archive.path.name, "data": data.fingerprint(benchmark.traces)}
    result["models"] = {name: trained.describe(models) for name, models in sets.items()}
    result["members"] = {member: compare(member, sets, benchmark) for member in members}
    histories = {name: [history(model) for model in models.values()] for name, models in sets.items()}
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "recipes.png") as temporary:
        figures.save(figure(histories, members), temporary)
    comparison.write(output, "recipes", main, result, table(result))


def compare(member: str, sets: dict[str, dict[int, Model]], benchmark: data.Benchmark) -> dict[str, Any]:
    """One member under both recipes: its runs, and the difference of their mean AUC, printed less fast."""
    result: dict[str, Any] = {}
    areas: dict[str, np.ndarray] = {}
    for name, models in sets.items():
        runs, samples = [], []
        for seed, model in models.items():
            (params,) = (one for one in model.members if one.name == member)
            scores = TrainedMember(params).decision_function(benchmark.traces)
            runs.append({"seed": seed, **costs(model, member), **benchmark.summaries(scores)})
            samples.append(evaluation.bootstrap_aucs(scores[~benchmark.is_attack], scores[benchmark.is_attack]))
        result[name] = {"runs": runs}
        areas[name] = np.mean(samples, axis=0)
    low, high = np.quantile(areas["printed"] - areas["fast"], [0.025, 0.975])
    means = {name: np.mean([run["all"]["auc"] for run in result[name]["runs"]]) for name in sets}
    result["difference"] = {
        "auc": float(means["printed"] - means["fast"]),
        "interval": [float(low), float(high)],
    }
    return result


def costs(model: Model, member: str) -> dict[str, Any]:
    """What training took: epochs, calls, seconds by its own speed; and the held-out loss."""
    told = model.info["results"][member]
    calls = told["epochs"] * model.info["training"]["calls"]
    return {
        "held_out_nll": told["held_out_nll"],
        "best_epoch": told["best_epoch"],
        "epochs": told["epochs"],
        "calls": calls,
        "minutes": calls / told["calls_per_second"] / 60,
    }


def history(model: Model) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`: one an epoch and shape.

    Raises:
      SyscallLMError: it is missing or damaged.
    """
    path = model.path / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SyscallLMError(f"{path}: missing or damaged; it tells how the model was trained") from error


def table(result: dict[str, Any]) -> str:
    """Both recipes, a row a member, as Markdown."""
    lines = ["| | " + " | ".join(result["models"]) + " |", "|---|---|---|"]
    lines += [
        f"| {key} | {' | '.join(recipe(models, key) for models in result['models'].values())} |" for key in RECIPE
    ]
    lines += ["", "Minutes: calls trained on, by the median speed that training measured, on a machine that did more."]
    lines += ["FA@d: false alarm rate at detection rate d. ±: standard deviation over the seeds.", ""]
    lines += [
        "| member | recipe | seeds | held-out nats | best epoch | epochs | million calls | minutes | AUC | FA@90 % "
    ]
    lines[-1] += "| FA@95 % | FA@99 % | AUC without copies |"
    lines += ["|---" * 13 + "|"]
    for member, both in result["members"].items():
        for name in result["models"]:
            runs = both[name]["runs"]
            cells = [spread([run[key] for run in runs], form) for key, form in COLUMNS]
            cells[3] = spread([run["calls"] / 1e6 for run in runs], ".1f")
            cells.append(spread([run["all"]["auc"] for run in runs], ".3f"))
            for rate in RATES:
                rates = [100 * run["all"]["false_alarms_at_detection"][rate] for run in runs]
                cells.append(spread(rates, ".1f") + " %")
            cells.append(spread([run["without_copies"]["auc"] for run in runs], ".3f"))
            lines.append(f"| {member} | {name} | {len(runs)} | {' | '.join(cells)} |")
    lines.append("")
    for member, both in result["members"].items():
        low, high = both["difference"]["interval"]
        lines.append(
            f"{member}: the printed recipe's AUC less the fast one's is {both['difference']['auc']:+.3f} "
            f"(95 % interval over traces {low:+.3f} to {high:+.3f})."
        )
    return "\n".join(lines) + "\n"


COLUMNS = (("held_out_nll", ".3f"), ("best_epoch", ".0f"), ("epochs", ".0f"), ("calls", ".0f"), ("minutes", ".0f"))


def recipe(models: Sequence[dict[str, Any]], key: str) -> str:
    """A setting, or all that occur."""
    return ", ".join(dict.fromkeys(f"{model['configuration'].get(key)}" for model in models))


def figure(histories: dict[str, list[list[dict[str, Any]]]], members: Sequence[str]) -> Figure:
    """Held-out loss against calls trained on, a panel a shape, a line a seed."""
    shapes = list(dict.fromkeys(member.partition(".")[0] for member in members))
    drawing = Figure(figsize=(1 + 4.5 * len(shapes), 4), layout="constrained")
    panels = drawing.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
    for axes, shape in zip(panels, shapes, strict=True):
        for number, (name, models) in enumerate(histories.items()):
            for place, rows in enumerate(models):
                chosen = [row for row in rows if row["shape"] == shape]
                axes.plot(
                    [row["epoch"] for row in chosen],
                    [np.mean(row["held_out_nll"]) for row in chosen],
                    color=f"C{number}",
                    lw=1,
                    marker=".",
                    ms=3,
                    label=name if place == 0 else None,
                )
        axes.set(title=shape, xlabel="epoch", xscale="log")
        axes.legend(frameon=False)
    panels[0].set_ylabel("held-out loss, nats per call")
    return drawing


if __name__ == "__main__":
    command.run(main)
