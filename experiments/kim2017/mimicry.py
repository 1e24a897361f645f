"""Kim et al., section 4: mimicry. An attack hidden among normal calls, and how each detector's score decays.

  syscall-lm kim2017.mimicry --archive=adfa.parquet --seeds=0,1,2
  syscall-lm kim2017.mimicry --archive=adfa.parquet --models=runs/seed0,runs/seed1,runs/seed2

The paper names mimicry attacks (Wagner & Soto 2002) as future work and expects sections of a trace to help; it prints
no figure. Here each of a sample of attacks, drawn evenly from all families, is spliced whole into the middle of normal
calls: r normal calls for each call of the attack, half before and half after it, from training traces, which is the
best that an attacker can know. Each detector is judged by the AUC of the padded attacks against the normal validation
traces as they are: an attack at 0.5 or less is hidden. The last column pads with 75 normal calls, all before the
attack, which is what buys the calmest stretch. Without models 2.5 minutes on one core.
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import evaluation, files
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.sections import STRETCH
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.comparison import spread
from syscall_lm.experiments.kim2017 import results, trained
from syscall_lm.experiments.kim2017.padding import before, normal_calls, pad
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences

DILUTIONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
MODELS = flags.DEFINE_list("models", [], "model directories that `train` made on it, one a seed")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "draw attacks and padding, where no models bring their seeds")
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for mimicry.json, mimicry.md and mimicry.png")
DETECTORS = flags.DEFINE_list(
    "detectors", [], "names from syscall_lm/detectors/catalogue.py; empty for all that need no model, or all"
)
ATTACKS = flags.DEFINE_integer("attacks", 120, "how many attacks to hide", lower_bound=1)


def main() -> None:
    """Pads, scores, writes."""
    archive = TraceArchive(ARCHIVE.value)
    models = trained.load(MODELS.value, archive) if MODELS.value else {}
    members = {seed: model.members for seed, model in models.items()}
    members = members or dict.fromkeys(comparison.parse_seeds(SEEDS.value), ())
    benchmark = data.benchmark(archive)
    if not len(benchmark.train) or not benchmark.is_attack.any():
        raise SyscallLMError(f"{archive.path}: needs normal traces in split 'train', and attacks")
    names = [name for name in catalogue.QUICK if models or name in catalogue.ALONE]
    if DETECTORS.value:
        names = comparison.parse_detectors(DETECTORS.value)
    normal = benchmark.traces.take(~benchmark.is_attack)
    decays: dict[str, dict[str, Any]] = {}
    attacks = 0
    for seed, trained_members in members.items():
        padded = paddings(benchmark, np.random.default_rng(seed))
        attacks = len(padded["0"])
        detectors = catalogue.build(names, archive.vocabulary.size, trained_members, seed)
        for name, detector in detectors.items():
            found = decay(benchmark.fit(detector, seed), normal, padded)
            decays.setdefault(name, {"runs": []})["runs"].append({"seed": seed, "paddings": found})
            aucs = ", ".join(f"{value['auc']:.3f}" for value in found.values())
            print(f"  {name}, seed {seed}: AUC {aucs}", file=sys.stderr, flush=True)
    result = {
        "archive": archive.path.name,
        "models": trained.describe(models),
        "attacks": attacks,
        "normal": len(normal),
        "detectors": decays,
    }
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "mimicry.png") as temporary:
        figures.save(figure(decays), temporary)
    results.write(output, "mimicry", main, result, table)


def paddings(benchmark: data.Benchmark, rng: np.random.Generator) -> dict[str, Sequences]:
    """A sample of the attacks, padded in each way."""
    chosen = choose_attacks(benchmark.families, ATTACKS.value, rng)
    attacks = benchmark.traces.take(np.flatnonzero(benchmark.is_attack)[chosen])
    padded = {f"{ratio:g}": pad(attacks, benchmark.train, ratio, rng) for ratio in DILUTIONS}
    padded[f"{STRETCH} calls"] = before(attacks, lambda: normal_calls(benchmark.train, STRETCH, rng))
    return padded


def choose_attacks(families: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` attacks (all, if there are fewer), as evenly over the families as they allow."""
    queues = [rng.permutation(np.flatnonzero(families == family)).tolist() for family in sorted(set(families))]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return np.array(sorted(chosen[:count]), np.int64)


def decay(detector: Detector, normal: Sequences, padded: Mapping[str, Sequences]) -> dict[str, dict[str, float]]:
    """For each padding the AUC against the normal traces as they are, and the median score."""
    usual = detector.decision_function(normal)
    found = {}
    for name, attacks in padded.items():
        scores = detector.decision_function(attacks)
        found[name] = {"auc": evaluation.curve(usual, scores).auc, "median_score": float(np.median(scores))}
    return found


def table(result: dict[str, Any]) -> str:
    """AUC by padding, as Markdown."""
    decays = result["detectors"]
    columns = list(next(iter(decays.values()))["runs"][0]["paddings"])
    seeds = max(len(found["runs"]) for found in decays.values())
    lines = [
        f"AUC of {result['attacks']:,} attacks, padded with normal calls, against {result['normal']:,} normal traces "
        f"of {result['archive']}. Columns: normal calls for each call of the attack; {STRETCH} normal calls before it. "
        f"Mean and standard deviation over {seeds} seeds, which draw attacks, padding"
        f"{' and models' if result['models'] else ''}.",
        "",
        "A padded attack is up to nine times as long as it was, the normal traces are as they were. Detectors by a "
        "maximum or a length (`-highest`, `-longest`) find longer traces more abnormal whatever these hold: where an "
        "AUC rises from left to right, that is why. It says that padding does not hide the attack, not that it helps "
        "to find it. Padding stands before and behind the attack here, never among its calls, where an attacker could "
        "put it too (Wagner & Soto's no-ops).",
        "",
        "| detector | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, found in decays.items():
        cells = [spread([run["paddings"][column]["auc"] for run in found["runs"]], ".3f") for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(decays: dict[str, dict[str, Any]]) -> figures.Figure:
    """Mean AUC against dilution, a line a detector, in a panel a kind."""
    panels = {
        "alone": [name for name in decays if name in catalogue.ALONE],
        "on language models": [name for name in decays if name not in catalogue.ALONE],
    }
    panels = {title: names for title, names in panels.items() if names}
    drawing = figures.Figure(figsize=(1 + 6.5 * len(panels), 5.5), layout="constrained")
    for axes, (title, names) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, name in enumerate(names):
            style = ("-", "--", ":")[number // 10 % 3]
            values = [
                np.mean([run["paddings"][f"{ratio:g}"]["auc"] for run in decays[name]["runs"]]) for ratio in DILUTIONS
            ]
            axes.plot(range(len(DILUTIONS)), values, style, marker=".", label=name)
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(DILUTIONS)), [f"{ratio:g}" for ratio in DILUTIONS])
        axes.set(title=f"detectors {title}", xlabel="normal calls for each call of the attack", ylim=(0, 1))
        axes.set_ylabel("AUC of padded attacks against normal traces")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=4)
    return drawing


if __name__ == "__main__":
    command.run(main)
