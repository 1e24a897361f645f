"""Beyond normal traces: a detector that the study's development half has taught, judged on all of ADFA-LD.

  syscall-lm kim2017.taught --archive=adfa.parquet

Halves and protocol are those of kim2017.study (STUDY.md): what is chosen, here also the weights of the judge, is chosen
on the development half, and the reported half is new to it. The development half itself is judged out of fold: its
attacks are dealt out by their process ids, its normal traces by blocks of 50 file numbers, copies together, and each of
five parts is judged by what the other four taught. "All" joins both halves: no trace is judged by what learned its
label or its copy. "New processes" leaves out of the reported half the attacks whose process id occurs in the
development half; in the row "by other processes" these are judged by a fold that their process did not teach.

Beside it stand `sets-and-mixture`, which sees normal traces only and is one of the numbers that the judge looks at, and
the parts of the judge alone. Two more tables: how few examples do, and what is left where nothing alike was taught, a
family, its processes and a third of the normal file numbers being withheld. Two minutes on one core.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import evaluation
from syscall_lm.detectors.evidence import Evidence
from syscall_lm.detectors.taught import Examples, Judge, Taught
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.kim2017 import halves, padding, results
from syscall_lm.experiments.kim2017.halves import Half
from syscall_lm.traces.archive import TraceArchive

STRICT = "taught, by other processes"
FEW = (10, 30, 100)  # attacks to be taught by
HEADS = {
    "development": "development",
    "reported": "reported",
    halves.NEW: "reported, new processes",
    "all": "all",
    "all_without_copies": "all, no copies",
    "reported_without_copies": "reported, no copies",
}

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
    school = School(x, benchmark.is_attack, usual)
    untaught = {"seed": seeds[0], **halves.by_scope(x[:, 0], benchmark, half.scopes, full=True)}
    detectors: dict[str, Any] = {"sets-and-mixture": {"runs": [untaught]}}
    few: dict[str, Any] = {}
    for seed in seeds:
        for name, scores in judged(half, school, seed).items():
            runs = detectors.setdefault(name, {"runs": []})["runs"]
            runs.append({"seed": seed, **halves.by_scope(scores, benchmark, half.scopes, full=True)})
            halves.report(name, runs)
        for attacks in FEW:
            scores = school.judge(some(half, attacks, seed), seed).log_odds(x)
            curve = evaluation.curve(*half.apart(scores, ~development))
            run = {"seed": seed, "auc": curve.auc, "false_alarms": curve.false_alarms_at(0.9)}
            few.setdefault(str(attacks), []).append(run)
    examples = Examples(benchmark.traces.take(development), benchmark.is_attack[development])
    taught = Taught(evidence, examples, seeds[0]).learn(benchmark.train)
    reported = half.reported
    scores = taught.decision_function(reported.traces)
    hidden = [padding.effect(taught, scores, reported, seed) for seed in seeds]
    result = {
        "archive": archive.path.name,
        "data": data.fingerprint(benchmark.traces),
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "development": {
            "attacks": int((development & benchmark.is_attack).sum()),
            "normal": int((development & ~benchmark.is_attack).sum()),
        },
        "new_processes": int((half.scopes[halves.NEW] & benchmark.is_attack).sum()),
        "detectors": detectors,
        "few": few,
        "elsewhere": elsewhere(half, school, seeds),
        "padding": hidden,
    }
    results.write(pathlib.Path(OUTPUT.value), "taught", main, result, table)


@dataclasses.dataclass(frozen=True)
class School:
    """What there is to learn from: evidence of the N traces `[N, F]`, their labels, evidence of training traces."""

    x: np.ndarray
    is_attack: np.ndarray
    usual: np.ndarray

    def judge(self, teach: np.ndarray, seed: int) -> Judge:
        """Taught by some of the N traces, int or bool, and by the training traces, as `Taught` does it."""
        x, labels = np.concatenate([self.x[teach], self.usual]), self.is_attack[teach]
        return Judge(seed).fit(x, np.append(labels, np.zeros(len(self.usual), bool)))


def judged(half: Half, school: School, seed: int) -> dict[str, np.ndarray]:
    """Scores of all traces, those of the development half out of fold, `[N]` each.

    Returns:
      of the judge; of the judge where an attack of the reported half, too, is judged by a fold that its process did not
      teach; of the judge's two parts.
    """
    parts = {"taught": Judge.log_odds, "taught, linear alone": Judge.linear, "taught, trees alone": Judge.votes}
    x = school.x
    scores = {name: np.empty(len(x)) for name in ("taught", STRICT, *parts)}
    outside = np.flatnonzero(~half.development)
    for teach, judge in ((np.flatnonzero(half.development), outside), *half.folds(seed)):
        taught = school.judge(teach, seed)
        for name, score in parts.items():
            scores[name][judge] = score(taught, x[judge])
        withheld = judge if judge is outside else np.flatnonzero(np.isin(half.groups, half.groups[judge]))
        scores[STRICT][withheld] = taught.log_odds(x[withheld])
    return scores


def some(half: Half, attacks: int, seed: int) -> np.ndarray:
    """That many attacks of the development half, and its share of normal traces, at random; int."""
    rng, attack = np.random.default_rng(seed), half.benchmark.is_attack
    all_attacks, all_normal = (np.flatnonzero(half.development & kind) for kind in (attack, ~attack))
    count = min(attacks, len(all_attacks))
    normal = max(1, round(len(all_normal) * count / len(all_attacks)))
    return np.concatenate([rng.permutation(all_attacks)[:count], rng.permutation(all_normal)[:normal]])


def elsewhere(half: Half, school: School, seeds: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Within the development half: AUC where nothing alike was taught, by how normal traces and attacks were withheld.

    Withheld from the teacher are a family with its processes, in other families too, and a third of the normal traces.
    Those are every third block of 400 file numbers, or a third of all in a row.

    Returns:
      how -> family -> detector -> AUC, mean over thirds and seeds.
    """
    attack, inside = half.benchmark.is_attack, half.development
    normal = halves.blocks(half.ids, half.benchmark, 2 * halves.BLOCK)
    family, process = half.of_attacks(half.benchmark.families), half.of_attacks(half.processes)
    bounds = np.quantile(normal[inside[~attack]], [1 / 3, 2 / 3])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for how, thirds in {"by turns": normal % 3, "in a row": np.digitize(normal, bounds, right=True)}.items():
        third = np.concatenate([thirds, np.full(int(attack.sum()), -1)])
        for name in sorted(set(family[inside & attack])):
            same = np.isin(process, process[family == name])
            if not (inside & attack & ~same).any():
                continue  # it is the only family
            aucs: dict[str, list[float]] = {"sets-and-mixture": [], "taught": []}
            for number in np.unique(thirds[inside[~attack]]):
                judged = inside & np.where(attack, family == name, third == number)
                teach = inside & np.where(attack, ~same, third != number)
                aucs["sets-and-mixture"].append(evaluation.curve(*half.apart(school.x[:, 0], judged)).auc)
                for seed in seeds:
                    scores = school.judge(teach, seed).log_odds(school.x)
                    aucs["taught"].append(evaluation.curve(*half.apart(scores, judged)).auc)
            found.setdefault(how, {})[name] = {detector: float(np.mean(values)) for detector, values in aucs.items()}
    return found


def table(result: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    counts, development = result["traces"], result["development"]
    lines = [
        f"{counts['normal']:,} normal test traces ({counts['copies']} copy a training trace), {counts['attack']} "
        f"attacks; evidence from {counts['train']} normal traces of {result['archive']}, taught by the development "
        f"half: {development['normal']:,} normal traces and {development['attacks']} attacks. That half is judged out "
        f"of fold. New processes: the {result['new_processes']} attacks of the reported half whose process id no "
        "attack of the development half has. By other processes: the other attacks of the reported half are judged by "
        "a fold that their process did not teach.",
        "",
        "### AUC, and in brackets the false alarm rate at 90 % detection",
        "",
        "| | " + " | ".join(HEADS.values()) + " |",
        "|---" * (len(HEADS) + 1) + "|",
    ]
    for name, value in result["detectors"].items():
        cells = [halves.cell([run[scope] for run in value["runs"]]) for scope in HEADS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "### AUC with 95 % bootstrap interval, and false alarms at 95 % detection",
        "",
        *halves.interval_rows(result["detectors"]),
        "",
        "### AUC by attack family, all normal traces",
        "",
        *comparison.family_rows(result["detectors"]),
        "",
        "### How many examples: the reported half, taught by some attacks and as many normal traces as they have",
        "",
        "| attacks | AUC | false alarms at 90 % detection |",
        "|---|---|---|",
    ]
    for attacks, runs in result["few"].items():
        auc = comparison.spread([run["auc"] for run in runs], ".3f")
        lines.append(f"| {attacks} | {auc} | {comparison.percent(run['false_alarms'] for run in runs)} |")
    lines += [
        "",
        "### Where nothing alike was taught: AUC within the development half",
        "",
        "A family is judged that was withheld with its processes, against a third of the normal traces that was "
        "withheld too: every third block of 400 file numbers (by turns), or a third of all (in a row). Mean over the "
        "thirds and seeds.",
        "",
        "| withheld | sets-and-mixture | taught |",
        "|---|---|---|",
    ]
    for how, families in result["elsewhere"].items():
        for name, aucs in families.items():
            lines.append(f"| {name}, normal {how} | {aucs['sets-and-mixture']:.3f} | {aucs['taught']:.3f} |")
    every = result["padding"][0]
    auc = comparison.spread([run["reported"]["auc"] for run in result["detectors"]["taught"]["runs"]], ".3f")
    lines += [
        "",
        "### AUC when every attack of the reported half is padded with calls of training traces (mean over seeds)",
        "",
        "| none | " + " | ".join(every) + " |",
        "|---" * (len(every) + 1) + "|",
        f"| {auc} | "
        + " | ".join(f"{np.mean([each[name] for each in result['padding']]):.3f}" for name in every)
        + " |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
