"""Beyond normal traces: a detector that the study's development half has taught, judged on all of ADFA-LD.

  syscall-lm kim2017.taught --archive=adfa.parquet

Halves and protocol are those of kim2017.study (STUDY.md): what is chosen, here also the weights of the judge, is chosen
on the development half, and the reported half is new to it. The development half itself is judged out of fold: attacks
of a process, normal traces of a block of 50 file numbers, and copies of each other stay together in one of five parts,
each judged by what the other four taught. "All" joins both halves.

The halves themselves share processes and a few copies. In the row "by strangers" such traces of the reported half, too,
are judged by what four of the parts taught, so that nothing is judged by what learned its label, its copy's or its
process's. The column "new processes" has none of these attacks at all. Training traces, which all detectors know to be
normal, teach as well; of the test's normal traces 422 copy one.

Beside it stand `sets-and-mixture`, which sees normal traces only and is one of the numbers that the judge looks at, and
the parts of the judge alone. More tables: how few examples do; what is left where nothing alike was taught, a family,
its processes and a third of the normal file numbers being withheld; and what padding leaves. Two minutes on one core.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import evaluation
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.evidence import Evidence
from syscall_lm.detectors.taught import Examples, Judge, Taught
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.kim2017 import halves, padding, results
from syscall_lm.experiments.kim2017.halves import Half
from syscall_lm.traces.archive import TraceArchive

STRICT = "taught, by strangers"
FEW = (10, 30, 100)  # attacks to be taught by
ARCHIVE = flags.DEFINE_string("archive", None, "ADFA-LD with the splits train and test", required=True)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for taught.json and taught.md")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of the trees, the folds, and the padding")


def main() -> None:
    """Gathers evidence, teaches, judges, pads, writes."""
    seeds = comparison.parse_seeds(SEEDS.value)
    archive = TraceArchive(ARCHIVE.value)
    half = Half.of(archive)
    benchmark, development = half.benchmark, half.development
    evidence = Evidence(archive.vocabulary.size)
    usual = evidence.fit(benchmark.train).transform(benchmark.train)
    x = evidence.transform(benchmark.traces)
    untaught = {"seed": seeds[0], **halves.by_scope(x[:, 0], benchmark, half.scopes, full=True)}
    detectors: dict[str, Any] = {"sets-and-mixture": {"runs": [untaught]}}
    few: dict[str, Any] = {}
    for seed in seeds:
        for name, scores in judged(half, x, usual, seed).items():
            runs = detectors.setdefault(name, {"runs": []})["runs"]
            runs.append({"seed": seed, **halves.by_scope(scores, benchmark, half.scopes, full=True)})
            halves.report(name, runs)
        for attacks in FEW:
            chosen = some(half, attacks, seed)
            scores = Judge(seed).fit(x[chosen], benchmark.is_attack[chosen], usual).log_odds(x)
            curve = evaluation.curve(*half.apart(scores, ~development))
            normal = int((~benchmark.is_attack[chosen]).sum())
            run = {"seed": seed, "normal": normal, "auc": curve.auc, "false_alarms": curve.false_alarms_at(0.9)}
            few.setdefault(str(attacks), []).append(run)
    examples = Examples(benchmark.traces.take(development), benchmark.is_attack[development])
    fitted = {
        "sets-and-mixture": catalogue.build(["sets-and-mixture"], archive.vocabulary.size)["sets-and-mixture"],
        "taught": Taught(evidence, examples, seeds[0]),
    }
    hidden = {name: hide(detector.learn(benchmark.train), half.reported, seeds) for name, detector in fitted.items()}
    result = {
        "archive": archive.path.name,
        "data": data.fingerprint(benchmark.traces),
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "development": {
            "attacks": int((development & benchmark.is_attack).sum()),
            "normal": int((development & ~benchmark.is_attack).sum()),
        },
        "new": int((half.scopes[halves.NEW] & benchmark.is_attack).sum()),
        "detectors": detectors,
        "few": few,
        "elsewhere": elsewhere(half, x, usual, seeds),
        "padding": hidden,
    }
    results.write(pathlib.Path(OUTPUT.value), "taught", main, result, table)


def judged(half: Half, x: np.ndarray, usual: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Scores of all traces, those of the development half out of fold, `[N]` each.

    Args:
      half: who may teach whom.
      x: evidence `[N, F]`.
      usual: that of the training traces.
      seed: of the folds and the trees.

    Returns:
      of the judge; of the judge where traces of the reported half, too, are judged by a fold without their process and
      copies; of the judge's two parts.
    """
    parts = {"taught": Judge.log_odds, "taught, linear alone": Judge.linear, "taught, trees alone": Judge.votes}
    scores = {name: np.empty(len(x)) for name in ("taught", STRICT, *parts)}
    outside = np.flatnonzero(~half.development)
    for teach, judge in ((np.flatnonzero(half.development), outside), *half.folds(seed)):
        taught = Judge(seed).fit(x[teach], half.benchmark.is_attack[teach], usual)
        for name, score in parts.items():
            scores[name][judge] = score(taught, x[judge])
        withheld = judge if judge is outside else np.flatnonzero(np.isin(half.groups, half.groups[judge]))
        scores[STRICT][withheld] = taught.log_odds(x[withheld])
    return scores


def hide(detector: Detector, reported: data.Benchmark, seeds: list[int]) -> list[dict[str, float]]:
    """`padding.effect` on a fitted detector, for each seed; "none" is the AUC without padding."""
    scores = detector.decision_function(reported.traces)
    none = evaluation.curve(scores[~reported.is_attack], scores[reported.is_attack]).auc
    return [{"none": none, **padding.effect(detector, scores, reported, seed)} for seed in seeds]


def some(half: Half, attacks: int, seed: int) -> np.ndarray:
    """That many attacks of the development half, and its share of normal traces, at random; int."""
    rng, attack = np.random.default_rng(seed), half.benchmark.is_attack
    all_attacks, all_normal = (np.flatnonzero(half.development & kind) for kind in (attack, ~attack))
    count = min(attacks, len(all_attacks))
    normal = max(1, round(len(all_normal) * count / len(all_attacks)))
    return np.concatenate([rng.permutation(all_attacks)[:count], rng.permutation(all_normal)[:normal]])


def elsewhere(half: Half, x: np.ndarray, usual: np.ndarray, seeds: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Within the development half: AUC where nothing alike was taught, by how normal traces and attacks were withheld.

    Withheld from the teacher are a family with its processes and copies, in other families too, and a third of the
    normal traces. Those are every third block of 400 file numbers, or a third of all in a row.

    Returns:
      how -> family -> detector -> AUC, mean over thirds and seeds.
    """
    attack, inside = half.benchmark.is_attack, half.development
    normal = halves.blocks(half.ids, half.benchmark, 2 * halves.BLOCK)
    family = half.of_attacks(half.benchmark.families)
    bounds = np.quantile(normal[inside[~attack]], [1 / 3, 2 / 3])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for how, thirds in {"by turns": normal % 3, "in a row": np.digitize(normal, bounds, right=True)}.items():
        third = np.concatenate([thirds, np.full(int(attack.sum()), -1)])
        for name in sorted(set(family[inside & attack])):
            same = np.isin(half.groups, half.groups[attack & (family == name)])
            if not (inside & attack & ~same).any():
                continue  # it is the only family
            aucs: dict[str, list[float]] = {"sets-and-mixture": [], "taught": []}
            for number in np.unique(thirds[inside[~attack]]):
                judged = inside & np.where(attack, family == name, third == number)
                teach = inside & ~same & (attack | (third != number))
                aucs["sets-and-mixture"].append(evaluation.curve(*half.apart(x[:, 0], judged)).auc)
                for seed in seeds:
                    scores = Judge(seed).fit(x[teach], attack[teach], usual).log_odds(x)
                    aucs["taught"].append(evaluation.curve(*half.apart(scores, judged)).auc)
            found.setdefault(how, {})[name] = {detector: float(np.mean(values)) for detector, values in aucs.items()}
    return found


def table(result: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    counts, development, detectors = result["traces"], result["development"], result["detectors"]
    lines = [
        f"{counts['normal']:,} normal test traces ({counts['copies']} copy a training trace), {counts['attack']} "
        f"attacks; evidence from {counts['train']} normal traces of {result['archive']}, taught by them and by the "
        f"development half: {development['normal']:,} normal traces and {development['attacks']} attacks. That half is "
        f"judged out of fold. New processes: the {result['new']} attacks of the reported half of whose process and "
        "copies the development half holds none. By strangers: traces of the reported half, too, are judged by folds "
        "that neither their process nor a copy taught.",
        "",
        "### AUC, and in brackets the false alarm rate at 90 % detection",
        "",
        *halves.rows(detectors),
        "",
        "### AUC with 95 % bootstrap interval over traces, and false alarms at 95 % detection",
        "",
        *halves.interval_rows(detectors),
        "",
        "### Detection at few false alarms",
        "",
        *detection_rows(detectors),
        "",
        "### AUC by attack family, all normal traces",
        "",
        *comparison.family_rows(detectors),
        "",
        "### How many examples: the reported half, taught by so many attacks, their share of the normal "
        "traces, and the training traces",
        "",
        "| attacks | normal traces | AUC | false alarms at 90 % detection |",
        "|---|---|---|---|",
    ]
    for attacks, runs in result["few"].items():
        auc = comparison.spread([run["auc"] for run in runs], ".3f")
        lines.append(
            f"| {attacks} | {runs[0]['normal']} | {auc} | {comparison.percent(run['false_alarms'] for run in runs)} |"
        )
    lines += [
        "",
        "### Where nothing alike was taught: AUC within the development half",
        "",
        "A family is judged that was withheld with its processes and copies, against a third of the normal traces that "
        "was withheld too: every third block of 400 file numbers (by turns), or a third of all (in a row). Mean over "
        "the thirds and seeds.",
        "",
        "| withheld | sets-and-mixture | taught |",
        "|---|---|---|",
    ]
    for how, families in result["elsewhere"].items():
        for name, aucs in families.items():
            lines.append(f"| {name}, normal {how} | {aucs['sets-and-mixture']:.3f} | {aucs['taught']:.3f} |")
    lines += [
        "",
        "### AUC on the reported half when every attack is padded with calls of training traces (mean over seeds)",
        "",
        *padding.rows(result["padding"]),
    ]
    return "\n".join(lines) + "\n"


def detection_rows(found: Mapping[str, Any]) -> list[str]:
    """A row a detector: detection at 1 % and 5 % false alarms."""
    shown = [(scope, rate) for scope in ("development", "reported", halves.NEW, "all") for rate in ("0.01", "0.05")]
    lines = ["| | " + " | ".join(f"{halves.HEADS[scope]}, D@{100 * float(rate):g} %" for scope, rate in shown) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for name, value in found.items():
        rates = [[run[scope]["detection_at_false_alarms"][rate] for run in value["runs"]] for scope, rate in shown]
        lines.append(f"| {name} | {' | '.join(comparison.percent(each) for each in rates)} |")
    return lines


if __name__ == "__main__":
    command.run(main)
