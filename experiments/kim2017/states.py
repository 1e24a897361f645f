"""Kim et al., sections 3.2 and 3.4: what the paper says of the LSTM's states, claim by claim.

  syscall-lm kim2017.states --archive=adfa.parquet --models=runs/seed0,runs/seed1,runs/seed2

The paper chose k = 11 for kNN (eq. 4) and k = 1 for k-means (eq. 6) because they did best, found another metric than
the Euclidean no better on average, kNN and k-means alike, ensembles of either unsatisfactory, and attacks of one kind
not to cluster. Here k and the metric are swept over each model's final states, the three models' scores are combined as
those of language models are (eq. 3), and the silhouette of the attack families among the attacks' states is compared
with that of shuffled families. **These figures choose nothing**: the catalogue keeps the paper's k and metric, whatever
comes out.

Models of several seeds; each row is the mean over members and seeds. Two minutes a seed on two cores, nearly all of it
for the states.
"""

import pathlib
import sys
from typing import Any

import numpy as np
from absl import flags

from syscall_lm.detectors import ensemble
from syscall_lm.detectors.clusters import Clusters
from syscall_lm.detectors.features import FinalState
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.detectors.nearest import NEIGHBOURS, Nearest
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.comparison import spread
from syscall_lm.experiments.kim2017 import results, trained
from syscall_lm.traces.archive import TraceArchive

NEAREST = (1, 3, 5, NEIGHBOURS, 21, 51)
METRICS = ("euclidean", "cosine", "manhattan")
CENTRES = (1, 2, 4, 8, 16, 32)
SHUFFLES = 20

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
MODELS = flags.DEFINE_list("models", None, "model directories that `train` made on it, one a seed", required=True)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for states.json and states.md")


def main() -> None:
    """Sweeps, combines, compares, writes."""
    archive = TraceArchive(ARCHIVE.value)
    models = trained.load(MODELS.value or [], archive)
    benchmark = data.benchmark(archive)
    if not len(benchmark.train) or not benchmark.is_attack.any():
        raise SyscallLMError(f"{archive.path}: needs normal traces in split 'train', and attacks")
    runs = []
    for seed, model in models.items():
        members = [TrainedMember(member) for member in model.members]
        scores = {member.name: of_member(member, benchmark, seed) for member in members}
        runs.append(
            {
                "seed": seed,
                "members": {name: found["aucs"] for name, found in scores.items()},
                "silhouettes": {member.name: silhouettes(member, benchmark, seed) for member in members},
                "ensembles": {
                    kind: ensembles([found[kind] for found in scores.values()], benchmark) for kind in ("knn", "kmeans")
                },
            }
        )
        print(f"  seed {seed}: {runs[-1]['ensembles']}", file=sys.stderr, flush=True)
    result = {
        "archive": archive.path.name,
        "models": trained.describe(models),
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "data": data.fingerprint(benchmark.traces),
        "runs": runs,
    }
    results.write(pathlib.Path(OUTPUT.value), "states", main, result, table)


def of_member(member: TrainedMember, benchmark: data.Benchmark, seed: int) -> dict[str, Any]:
    """AUC for each metric and k, and the scores of training and other traces by the paper's choice."""
    detectors = {
        **{f"knn {metric} {k}": Nearest(FinalState(member), k, metric) for metric in METRICS for k in NEAREST},
        **{f"kmeans euclidean {k}": Clusters(FinalState(member), k, seed) for k in CENTRES},
    }
    found: dict[str, Any] = {"aucs": {}}
    chosen = {f"knn euclidean {NEIGHBOURS}": "knn", "kmeans euclidean 1": "kmeans"}
    for name, detector in detectors.items():
        detector.fit(benchmark.train)
        scores = detector.decision_function(benchmark.traces)
        found["aucs"][name] = comparison.curve_of(scores, benchmark).auc
        if name in chosen:
            found[chosen[name]] = detector.decision_function(benchmark.train), scores
    return found


def ensembles(scores: list[tuple[np.ndarray, np.ndarray]], benchmark: data.Benchmark) -> dict[str, float]:
    """AUC of each way to combine the members' scores of the training and the other traces, and of the best member."""
    train, others = (np.stack(part) for part in zip(*scores, strict=True))
    calibration = ensemble.Calibration.from_scores(train, train, "normal training traces")
    combined = {method: calibration.combine(others, method) for method in ensemble.METHODS}
    found = {method: comparison.curve_of(one, benchmark).auc for method, one in combined.items()}
    return {**found, "best member": max(comparison.curve_of(one, benchmark).auc for one in others)}


def silhouettes(member: TrainedMember, benchmark: data.Benchmark, seed: int) -> dict[str, float]:
    """How well families of attacks are apart by their states: -1 to 1; the mean for shuffled families, and their most.

    An attack that equals an earlier one, call by call, is left out: it would lie on it.
    """
    from sklearn.metrics import silhouette_score  # slow to load

    attacks = benchmark.traces.take(benchmark.is_attack)
    first = attacks.distinct()[0]
    states, families = member.final_states(benchmark.traces)[benchmark.is_attack][first], benchmark.families[first]
    if not 1 < len(set(families)) < len(families):
        return {}
    rng = np.random.default_rng(seed)
    shuffled = [silhouette_score(states, rng.permutation(families)) for _ in range(SHUFFLES)]
    return {
        "families": float(silhouette_score(states, families)),
        "shuffled": float(np.mean(shuffled)),
        "shuffled, at most": float(max(shuffled)),
    }


def table(result: dict[str, Any]) -> str:
    """The claims with their verdicts, and the figures behind them, as Markdown."""
    runs = result["runs"]
    names = list(next(iter(runs[0]["members"].values())))
    aucs = {name: [aucs[name] for run in runs for aucs in run["members"].values()] for name in names}
    means = {name: float(np.mean(values)) for name, values in aucs.items()}
    apart = [found for run in runs for found in run["silhouettes"].values() if found]
    lines = [
        results.traces_line(result),
        "",
        *trained.table(result["models"]),
        "",
        "What the paper says, by the mean AUC of all models:",
        "",
        claim(
            f"k = {NEIGHBOURS} is best for kNN",
            _best(means, "knn euclidean") == f"knn euclidean {NEIGHBOURS}",
            _listed(means, "knn euclidean"),
        ),
        claim(
            "k = 1 is best for k-means",
            _best(means, "kmeans") == "kmeans euclidean 1",
            _listed(means, "kmeans euclidean"),
        ),
        claim(
            "Another metric is no better",
            all(means[f"knn euclidean {NEIGHBOURS}"] >= means[f"knn {metric} {NEIGHBOURS}"] for metric in METRICS),
            ", ".join(f"{metric}: {means[f'knn {metric} {NEIGHBOURS}']:.3f}" for metric in METRICS),
        ),
        claim(
            "kNN and k-means are alike (within 0.02)",
            abs(means[f"knn euclidean {NEIGHBOURS}"] - means["kmeans euclidean 1"]) <= 0.02,
            f"{means[f'knn euclidean {NEIGHBOURS}']:.3f} and {means['kmeans euclidean 1']:.3f}",
        ),
    ]
    for kind, told in (("knn", "kNN"), ("kmeans", "k-means")):
        found = {name: np.mean([run["ensembles"][kind][name] for run in runs]) for name in runs[0]["ensembles"][kind]}
        better = any(found[method] > found["best member"] + 0.005 for method in ensemble.METHODS)
        shown = ", ".join(f"{name}: {value:.3f}" for name, value in found.items())
        lines.append(claim(f"Ensembles of {told} are no better than their best member (by 0.005)", not better, shown))
    if apart:
        families, shuffled, most = (np.mean([one[name] for one in apart]) for name in apart[0])
        shown = f"silhouette {families:.3f}, of shuffled families {shuffled:.3f}, at most {most:.3f}"
        lines.append(claim("Attacks of one kind do not cluster (silhouette below 0.25)", bool(families < 0.25), shown))
    members = list(runs[0]["members"])
    lines += ["", f"| AUC | {' | '.join(members)} |", "|---" * (len(members) + 1) + "|"]
    for name in names:
        cells = [spread([run["members"][member][name] for run in runs], ".3f") for member in members]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claim(text: str, holds: bool, shown: str) -> str:
    """One line of the list."""
    return f"- {text}: **{'holds' if holds else 'does not hold'}** ({shown})."


def _best(means: dict[str, float], prefix: str) -> str:
    return max((name for name in means if name.startswith(prefix)), key=means.__getitem__)


def _listed(means: dict[str, float], prefix: str) -> str:
    return ", ".join(f"{name.rpartition(' ')[2]}: {value:.3f}" for name, value in means.items() if prefix in name)


if __name__ == "__main__":
    command.run(main)
