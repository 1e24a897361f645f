"""Kim et al., section 3.2: the printed training recipe beside faster ones, and what the difference costs in AUC.

  syscall-lm train --archive=adfa.parquet --model=runs/printed0 --members=1x200 --seed=0 \
      --learning_rate=1e-4 --schedule=constant --batching=traces --epochs=300 --patience=10
  syscall-lm train --archive=adfa.parquet --model=runs/fast24-0 --members=1x200 --seed=0
  syscall-lm kim2017.recipes --archive=adfa.parquet --recipe=printed=runs/printed0,... \
      --recipe=fast24=runs/fast24-0,...

Printed: uniform initialisation, Adam at 1e-4, clipping at 5, dropout 0.5, minibatches of similar length. Epochs,
minibatch size and stopping are not printed: held-out normal loss chooses when to stop, a minibatch holds 4,096 calls as
in the fast recipe. Where dropout sits is not printed either: it is between layers and before the softmax here. Fast:
Adam at 4e-3 decaying to zero over all epochs, truncated back-propagation over packed lanes; 24 epochs are the default
of `train`. On one core a seed of 1x200 takes half an hour by the printed recipe, 3 minutes by 24 fast epochs.

Compared are the members that all sets of models hold. The first recipe named is the one that the others are compared
with: a difference in AUC is of the means over the seeds that both have, its interval a bootstrap over the traces, which
the recipes share, and not over seeds. With trained models a minute on one core.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from syscall_lm import evaluation, files
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.comparison import spread
from syscall_lm.experiments.kim2017 import results, trained
from syscall_lm.models.store import Model
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

RECIPE = ("learning_rate", "schedule", "batching", "minibatch_calls", "steps", "dropout", "clip", "epochs", "patience")

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
RECIPES = flags.DEFINE_multi_string(
    "recipe", None, "NAME=DIRECTORY,...: a recipe and the models that `train` made by it, one a seed; for each recipe",
    required=True,
)  # fmt: skip
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for recipes.json, recipes.md and recipes.png")


def main() -> None:
    """Scores the models of all recipes, compares, writes."""
    archive = TraceArchive(ARCHIVE.value)
    sets = {name: trained.load(paths, archive) for name, paths in parse(RECIPES.value or []).items()}
    held = [[member.name for member in next(iter(models.values())).members] for models in sets.values()]
    members = [name for name in held[0] if all(name in others for others in held)]
    if not members:
        raise SyscallLMError(f"--recipe: the models of {', '.join(sets)} hold no member of the same name")
    benchmark = data.benchmark(archive)
    result: dict[str, Any] = {"archive": archive.path.name, "data": data.fingerprint(benchmark.traces)}
    result["models"] = {name: trained.describe(models) for name, models in sets.items()}
    result["members"] = {member: compare(member, sets, benchmark) for member in members}
    histories = {name: [history(model) for model in models.values()] for name, models in sets.items()}
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "recipes.png") as temporary:
        figures.save(figure(histories, members), temporary)
    results.write(output, "recipes", main, result, table)


def parse(values: Sequence[str]) -> dict[str, list[str]]:
    """Model directories by the name of their recipe.

    Raises:
      SyscallLMError: not NAME=DIRECTORY,... or a name twice.
    """
    found: dict[str, list[str]] = {}
    for value in values:
        name, _, paths = value.partition("=")
        if not name or not paths or name in found:
            raise SyscallLMError(f"--recipe={value}: expected NAME=DIRECTORY,... with a name of its own")
        found[name] = paths.split(",")
    return found


def compare(member: str, sets: dict[str, dict[int, Model]], benchmark: data.Benchmark) -> dict[str, Any]:
    """One member under all recipes: its runs, and how far the AUC of each recipe lies above the first one's.

    Differences are of means over the seeds that both have, if there are any, else over all.
    """
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    resampled: dict[str, dict[int, np.ndarray]] = {}
    for name, models in sets.items():
        runs[name], resampled[name] = {}, {}
        for seed, model in models.items():
            (params,) = (one for one in model.members if one.name == member)
            scores = TrainedMember(params).decision_function(benchmark.traces)
            runs[name][seed] = {"seed": seed, **costs(model, member), **benchmark.summaries(scores)}
            curves = evaluation.bootstrap_aucs(scores[~benchmark.is_attack], scores[benchmark.is_attack])
            resampled[name][seed] = curves
    first, *others = sets
    differences = {}
    for name in others:
        common = sorted(sets[name].keys() & sets[first].keys())
        seeds = [(common or sets[which]) for which in (name, first)]
        aucs = [
            np.mean([runs[which][seed]["all"]["auc"] for seed in some])
            for which, some in zip((name, first), seeds, strict=True)
        ]
        areas = [
            np.mean([resampled[which][seed] for seed in some], axis=0)
            for which, some in zip((name, first), seeds, strict=True)
        ]
        low, high = np.quantile(areas[0] - areas[1], [0.025, 0.975])
        differences[name] = {
            "auc": float(aucs[0] - aucs[1]),
            "interval": [float(low), float(high)],
            "seeds": common,
        }
    return {"runs": {name: list(found.values()) for name, found in runs.items()}, "differences": differences}


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


def table(result: Mapping[str, Any]) -> str:
    """All recipes, a row a member and recipe, as Markdown."""
    models = result["models"]
    lines = [f"| | {' | '.join(models)} |", "|---" * (1 + len(models)) + "|"]
    lines += [f"| {key} | {' | '.join(setting(described, key) for described in models.values())} |" for key in RECIPE]
    lines += ["", "Minutes: calls trained on, by the median speed that training measured, on a machine that did more."]
    lines += ["FA@d: false alarm rate at detection rate d. ±: standard deviation over the seeds.", ""]
    heads = ["member", "recipe", "seeds", "held-out nats", "best epoch", "epochs", "million calls", "minutes", "AUC"]
    heads += [f"FA@{100 * float(rate):g} %" for rate in comparison.DETECTIONS]
    heads += ["AUC without copies"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for member, found in result["members"].items():
        for name, runs in found["runs"].items():
            cells = [member, name, str(len(runs))]
            cells += [spread([run[key] for run in runs], form) for key, form in trained.COLUMNS]
            cells += [spread([run["calls"] / 1e6 for run in runs], ".1f")]
            cells += [spread([run["minutes"] for run in runs], ".0f")]
            cells += [spread([run["all"]["auc"] for run in runs], ".3f")]
            alarms = [run["all"]["false_alarms_at_detection"] for run in runs]
            cells += [comparison.percent(one[rate] for one in alarms) for rate in comparison.DETECTIONS]
            cells += [spread([run["without_copies"]["auc"] for run in runs], ".3f")]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for member, found in result["members"].items():
        for name, difference in found["differences"].items():
            low, high = difference["interval"]
            seeds = ", ".join(map(str, difference["seeds"]))
            lines.append(
                f"- {member}: the AUC of {name} less that of {next(iter(models))} is {difference['auc']:+.3f} "
                f"(95 % interval over traces {low:+.3f} to {high:+.3f}; "
                f"{f'seeds that both have: {seeds}' if seeds else 'of the means over all seeds of each'})."
            )
        for seed, both in common_seeds(found["runs"]).items():
            losses = ", ".join(f"{name} {run['held_out_nll']:.3f}" for name, run in both.items())
            aucs = ", ".join(f"{name} {run['all']['auc']:.3f}" for name, run in both.items())
            lines.append(
                f"- {member}, seed {seed}, which all have: held-out nats on the same traces (each seed holds out "
                f"others) {losses}; AUC {aucs}."
            )
        for name, described in models.items():
            lines += [f"- {member}: {sentence}" for sentence in capped(name, described, found["runs"][name])]
    return "\n".join(lines) + "\n"


def common_seeds(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[int, dict[str, Mapping[str, Any]]]:
    """Runs by recipe, for the seeds that all recipes have."""
    by_seed = {name: {run["seed"]: run for run in some} for name, some in runs.items()}
    common = set.intersection(*map(set, by_seed.values()))
    return {seed: {name: found[seed] for name, found in by_seed.items()} for seed in sorted(common)}


def capped(name: str, described: Sequence[dict[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each run that its cap of epochs ended, not `patience`; a decaying rate ends there by design."""
    sentences = []
    for model, run in zip(described, runs, strict=True):
        configuration = model["configuration"]
        if run["epochs"] == configuration.get("epochs") and configuration.get("schedule") == "constant":
            sentences.append(
                f"{name}, seed {run['seed']}, stopped at its cap (best epoch {run['best_epoch']} of {run['epochs']}): "
                "more epochs may lower its loss and change its AUC."
            )
    return sentences


def setting(described: Sequence[dict[str, Any]], key: str) -> str:
    """A setting, or all that occur."""
    return ", ".join(dict.fromkeys(f"{model['configuration'].get(key)}" for model in described))


def figure(histories: dict[str, list[list[dict[str, Any]]]], members: Sequence[str]) -> Figure:
    """Held-out loss by epoch, a panel a shape, a line a seed."""
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
