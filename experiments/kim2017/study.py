"""Beating the paper: detectors that were chosen on a declared development half, judged on the other (STUDY.md).

  syscall-lm kim2017.study --archive=adfa.parquet --models=runs/seed0,runs/seed1,runs/seed2

ADFA-LD's official split. Development half: the attacks Adduser, Hydra_SSH and Meterpreter, and the normal test traces
whose file number lies in an even block of 200; a copy goes where the first of its kind went. Everything was chosen on
training traces or on that half; the reported half is the rest. "All" is the whole test split, for comparison with
papers; it contains the development half.

Two tables: the detectors that ship (from the catalogue) with what padding does to them, and the attempts that led
there, one line an idea, failures included (`study_attempts.py`). Transductive attempts look at the archive that they
score, and the row "with labels" at the development half's labels: it is no detector, but shows where the floor is.
Models are those of kim2017.figure3; without --models the attempts with language models are left out, and it takes four
minutes on one core. With them it takes as long again for each model.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from syscall_lm.detectors import catalogue
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.kim2017 import halves, padding, results, study_attempts, trained
from syscall_lm.traces.archive import TraceArchive

DETECTORS = ("stide", "ngram", "ngram-calmest", "mixture", "call-sets", "sets-and-calmest", "sets-and-mixture")

ARCHIVE = flags.DEFINE_string("archive", None, "ADFA-LD with the splits train and test", required=True)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for study.json and study_table.md")
NAMES = flags.DEFINE_list("detectors", list(DETECTORS), "names from syscall_lm/detectors/catalogue.py")
ATTEMPTS = flags.DEFINE_bool("attempts", True, "whether to repeat the attempts")
MODELS = flags.DEFINE_list("models", [], "model directories that `train` made on it, one a seed, for the attempts")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "for what is random, and for the padding")


def main() -> None:
    """Fits, scores, pads, writes."""
    seeds, names = comparison.parse_seeds(SEEDS.value), comparison.parse_detectors(NAMES.value)
    if needy := [name for name in names if name not in catalogue.ALONE]:
        raise SyscallLMError(f"--detectors={needy[0]}: looks into a language model; --models has the study try those")
    archive = TraceArchive(ARCHIVE.value)
    models = trained.load(MODELS.value, archive) if MODELS.value else {}
    benchmark = data.benchmark(archive)
    if not len(benchmark.train) or not benchmark.is_attack.any():
        raise SyscallLMError(f"{archive.path}: needs normal traces in split 'train', and attacks")
    ids = halves.judged_column(archive.read(), "id")[~benchmark.is_attack]
    development = halves.development(ids, benchmark)
    masks = halves.scopes(benchmark, development)
    detectors: dict[str, Any] = {}
    for name in names:
        runs, hidden = [], []
        for seed in seeds if name in catalogue.RANDOM else seeds[:1]:
            detector = benchmark.fit(catalogue.build([name], archive.vocabulary.size, (), seed)[name], seed)
            scores = detector.decision_function(benchmark.traces)
            runs.append({"seed": seed, **halves.by_scope(scores, benchmark, masks, full=True)})
            if seed == seeds[0]:
                hidden = [padding.effect(detector, scores, benchmark, each) for each in seeds]
        detectors[name] = {"runs": runs, "padding": hidden}
        halves.report(name, runs)
    attempts: dict[str, Any] = {}
    if ATTEMPTS.value:
        context = study_attempts.Context(benchmark, development, archive.vocabulary.size)
        for name, make in study_attempts.ATTEMPTS.items():
            repeated = seeds if name in study_attempts.RANDOM else seeds[:1]
            runs = [{"seed": s, **halves.by_scope(make(context, s), benchmark, masks, full=False)} for s in repeated]
            attempts[name] = {"kind": study_attempts.kind(name), "runs": runs}
            halves.report(name, runs)
        for seed, model in models.items():
            for member in map(TrainedMember, model.members):
                for how, settings in study_attempts.ON_MODELS.items():
                    scores = study_attempts.with_language_model(context, member, seed, **settings)
                    name = f"sets-and-calmest, {member.name} {how}"
                    runs = attempts.setdefault(name, {"kind": "inductive", "runs": []})["runs"]
                    runs.append({"seed": seed, **halves.by_scope(scores, benchmark, masks, full=False)})
                    halves.report(name, runs)
    result = {
        "archive": archive.path.name,
        "data": data.fingerprint(benchmark.traces),
        "models": trained.describe(models),
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "development": {
            "attacks": int((development & benchmark.is_attack).sum()),
            "normal": int((development & ~benchmark.is_attack).sum()),
        },
        "detectors": detectors,
        "attempts": attempts,
    }
    results.write(pathlib.Path(OUTPUT.value), "study", main, result, table)


def table(result: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    counts, development = result["traces"], result["development"]
    lines = [
        f"{counts['normal']:,} normal test traces ({counts['copies']} copy a training trace), {counts['attack']} "
        f"attacks; learned from {counts['train']} normal traces of {result['archive']}. Development half: "
        f"{development['normal']:,} normal traces, {development['attacks']} attacks. "
        "AUC, and in brackets the false alarm rate at 90 % detection.",
        "",
        "### Detectors",
        "",
        *halves.rows(result["detectors"]),
        "",
        "### AUC with 95 % bootstrap interval, and false alarms at 95 % detection",
        "",
        *halves.interval_rows(result["detectors"]),
        "",
        "### AUC by attack family, all normal traces",
        "",
        *comparison.family_rows(result["detectors"]),
        "",
        "### AUC when every attack is padded with calls of training traces (mean over seeds)",
        "",
        *padding.rows({name: hidden(value) for name, value in result["detectors"].items()}),
    ]
    titles = {
        "inductive": "Attempts",
        "transductive": "Transductive attempts: they look at the archive that they score",
        "labels": "With labels: no detector; fitted to the development half, so only the reported half means something",
    }
    for kind, title in titles.items():
        chosen = {name: value for name, value in result["attempts"].items() if value["kind"] == kind}
        if chosen:
            lines += ["", f"### {title}", "", *halves.rows(chosen)]
    return "\n".join(lines) + "\n"


def hidden(detector: Mapping[str, Any]) -> list[dict[str, float]]:
    """What `padding.effect` found of a detector, for each seed, after the AUC without padding."""
    none = detector["runs"][0]["all"]["auc"]
    return [{"none": none, **each} for each in detector["padding"]]


if __name__ == "__main__":
    command.run(main)
