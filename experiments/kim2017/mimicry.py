"""Kim et al., section 4: mimicry. An attack hidden among normal calls, and how each detector's score decays.

  syscall-lm kim2017.mimicry --archive=adfa.parquet --output=results/kim2017
  syscall-lm kim2017.mimicry --archive=adfa.parquet --model=model --detectors=stide,ngram-calmest,lstm-calmest,state-knn

The paper names mimicry attacks (Wagner & Soto 2002) as future work and expects sections of a trace to help; it prints
no figure. Here each of a sample of attacks, drawn evenly from all families, is spliced whole into the middle of normal
calls: r normal calls for each call of the attack, half before and half after it, from training traces, which is the
best that an attacker can know. Each detector is judged by the AUC of the padded attacks against the normal validation
traces as they are: an attack at 0.5 or less is hidden. The last column pads with 75 normal calls, all before the
attack, which is what buys the calmest stretch. 20 seconds on two cores without a model.
"""

import pathlib
import sys
from collections.abc import Mapping

import numpy as np
from absl import flags

from syscall_lm import evaluation, files
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.sections import STRETCH
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.kim2017 import comparison
from syscall_lm.models import store
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences

DILUTIONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
MODEL = flags.DEFINE_string("model", "", "a trained model, for detectors that look into one")
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for mimicry.json, mimicry.md and mimicry.png")
DETECTORS = flags.DEFINE_list("detectors", list(catalogue.ALONE), "names from syscall_lm/detectors/catalogue.py")
ATTACKS = flags.DEFINE_integer("attacks", 120, "how many attacks to hide", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "draws attacks and padding", lower_bound=0)


def main(argv: list[str]) -> None:
    """Pads, scores, writes."""
    if argv:
        raise SyscallLMError(f"kim2017.mimicry takes flags only; what is {argv[0]!r}?")
    archive = TraceArchive(ARCHIVE.value)
    model = store.load(pathlib.Path(MODEL.value)) if MODEL.value else None
    vocabulary = model.vocabulary if model else archive.vocabulary
    benchmark = data.benchmark(archive, model.translation(archive) if model else None)
    if not len(benchmark.train) or not benchmark.is_attack.any():
        raise SyscallLMError(f"{archive.path}: needs normal traces in split 'train', and attacks")
    rng = np.random.default_rng(SEED.value)
    chosen = choose_attacks(benchmark.families, ATTACKS.value, rng)
    attacks = benchmark.traces.take(np.flatnonzero(benchmark.is_attack)[chosen])
    normal = benchmark.traces.take(~benchmark.is_attack)
    padded = {f"{ratio:g}": pad(attacks, benchmark.train, ratio, rng) for ratio in DILUTIONS}
    padded[f"{STRETCH} calls"] = Sequences.from_list(
        np.concatenate([normal_calls(benchmark.train, STRETCH, rng), attack]) for attack in attacks
    )
    results = {}
    detectors = catalogue.build(DETECTORS.value, vocabulary.size, model.members if model else (), SEED.value)
    for name, detector in detectors.items():
        results[name] = decay(detector.fit(benchmark.train), normal, padded)
        print(f"  {name}: AUC " + ", ".join(f"{v['auc']:.3f}" for v in results[name].values()), file=sys.stderr)
    result = {
        "archive": archive.path.name,
        "model": model.path.name if model else None,
        "attacks": len(attacks),
        "normal": len(normal),
        "detectors": results,
    }
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "mimicry.png") as temporary:
        figures.save(figure(results), temporary)
    comparison.write(output, "mimicry", main, result, table(result))


def choose_attacks(families: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` attacks (all, if there are fewer), as evenly over the families as they allow."""
    queues = [rng.permutation(np.flatnonzero(families == family)).tolist() for family in sorted(set(families))]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return np.array(sorted(chosen[:count]), np.int64)


def pad(attacks: Sequences, normal: Sequences, ratio: float, rng: np.random.Generator) -> Sequences:
    """Each attack whole between normal calls, `ratio` of them for each of its own, half before and half after."""
    padded = []
    for attack in attacks:
        calls = normal_calls(normal, round(ratio * len(attack)), rng)
        padded.append(np.concatenate([calls[: len(calls) // 2], attack, calls[len(calls) // 2 :]]))
    return Sequences.from_list(padded)


def normal_calls(normal: Sequences, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` calls as normal traces make them: from a random trace's start, and on with others where it ends."""
    parts, missing = [np.zeros(0, np.uint16)], count
    while missing > 0:
        parts.append(normal[int(rng.integers(len(normal)))][:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def decay(detector: Detector, normal: Sequences, padded: Mapping[str, Sequences]) -> dict[str, dict[str, float]]:
    """For each padding the AUC against the normal traces as they are, and the median score."""
    usual = detector.decision_function(normal)
    found = {}
    for name, attacks in padded.items():
        scores = detector.decision_function(attacks)
        found[name] = {"auc": evaluation.curve(usual, scores).auc, "median_score": float(np.median(scores))}
    return found


def table(result: dict) -> str:
    """AUC by padding, as Markdown."""
    results = result["detectors"]
    columns = list(next(iter(results.values())))
    lines = [
        f"AUC of {result['attacks']:,} attacks, padded with normal calls, against {result['normal']:,} normal traces "
        f"of {result['archive']}. Columns: normal calls for each call of the attack; {STRETCH} normal calls before it.",
        "",
        "| detector | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [
        f"| {n} | " + " | ".join(f"{v['auc']:.3f}" for v in values.values()) + " |" for n, values in results.items()
    ]
    return "\n".join(lines) + "\n"


def figure(results: dict) -> figures.Figure:
    """AUC against dilution, a line a detector."""
    drawing = figures.Figure(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    for number, (name, values) in enumerate(results.items()):
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot(range(len(DILUTIONS)), [values[f"{r:g}"]["auc"] for r in DILUTIONS], style, marker=".", label=name)
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(DILUTIONS)), [f"{ratio:g}" for ratio in DILUTIONS])
    axes.set_xlabel("normal calls for each call of the attack")
    axes.set_ylabel("AUC of padded attacks against normal traces")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawing


if __name__ == "__main__":
    command.run(main)
