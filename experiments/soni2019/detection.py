r"""Soni et al. (2019), section VI: which of the two models is better at detecting, beside STIDE and a language model.

  for seed in 0 1 2; do
    syscall-lm train --archive=adfa.parquet --model=runs/seed$seed --members=1x200,1x400,2x400 --seed=$seed
  done
  syscall-lm soni2019.detection --archive=adfa.parquet --workdir=soni --models=runs/seed0,runs/seed1,runs/seed2 \
    --output=results/soni2019

Takes the models that soni2019.train left in --workdir (the same command there must have ended) and judges the archive's
split "test" with each of three seeds, in the same way as every other detector; writes detection-ARCHIVE.json. The paper
concludes that the encoder-decoder of L = 10 is best, from its accuracy on normal windows (97.2 %, against the
autoencoder's 86 %); it prints no detection or false alarm rates. A published LSTM autoencoder reaches an AUC of 0.66 on
ADFA-LD's windows.

The same command after an interruption goes on after the last model that was judged. ADFA-LD took 3 minutes on two cores
that other work shared, and another two for each seed's language models of 1x200, 1x400 and 2x400. Likewise the embedded
corpus, whose language models are of 1x200 alone: --archive=syscall_lm/corpus/corpus.parquet.

A trace's score is the mean over its calls, or over those 60 calls where it is highest; both are reported, and no attack
chose anything. A threshold for 1 % false alarms comes from the held-out normal traces.
"""

import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from syscall_lm import evaluation, files
from syscall_lm.detectors import catalogue, ensemble
from syscall_lm.detectors.base import conformal_threshold
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.detectors.stide import Stide
from syscall_lm.detectors.window_models import AGGREGATES, WindowDetector, aggregated
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.experiments.data import Benchmark
from syscall_lm.experiments.kim2017 import trained
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.experiments.soni2019 import settings
from syscall_lm.models.store import Model
from syscall_lm.traces.archive import TraceArchive

FAR = 0.01
LANGUAGE_MODEL = "language model"

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "directory with the checkpoints of soni2019.train", required=True)
MODELS = flags.DEFINE_list("models", [], "model directories that `train` made on it, one a seed, to compare with")
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory with training-ARCHIVE.json, for the results")


@profiled()
def main() -> None:
    """Scores with every model and seed, writes the figures."""
    archive = TraceArchive(ARCHIVE.value)
    output = pathlib.Path(OUTPUT.value)
    source = output / f"training-{archive.path.stem}.json"
    training = settings.read_results(source, "train")
    with files.exclusive(WORKDIR.value):
        run = settings.Experiment(archive, settings.of_results(training, source), pathlib.Path(WORKDIR.value))
        if training["training"]["data"] != data.fingerprint(run.train):
            raise SyscallLMError(f"{archive.path}: not the traces that {source.name} learned from")
        benchmark = data.benchmark(archive)
        path = output / f"detection-{archive.path.stem}.json"
        result = begun(path, archive, run, benchmark)
        language_models = trained.load(MODELS.value, archive) if MODELS.value else {}
        detectors, commit = result["detectors"], provenance.environment()["commit"]

        def keep(name: str, figures: dict[str, Any], **about: Any) -> None:
            found = detectors.setdefault(name, {"runs": []})
            found.update(about)
            found["runs"].append({**figures, "commit": commit})
            print(f"  {name}: AUC {figures['all']['auc']:.3f}", file=sys.stderr, flush=True)

        def save() -> None:
            files.write_text(path, json.dumps(result, indent=1) + "\n")

        for entry in training["runs"]:
            length, model = entry["length"], entry["model"]
            losses = [best["held_out_nll"] for best in entry["best"]]  # tell one training from another
            names = {aggregate: f"{model}, L = {length}, {aggregate}" for aggregate in AGGREGATES}
            earlier = [detectors[name] for name in names.values() if name in detectors]
            if any(found.get("held_out_nll") != losses for found in earlier):
                for found in earlier:
                    found["runs"].clear()
            done = min(len(detectors.get(name, {"runs": []})["runs"]) for name in names.values())
            members = run.members(model, length, losses) if done < run.settings.seeds else ()
            for seed, params in enumerate(members):
                if seed >= done:
                    detector = catalogue.OF_WINDOWS[model].of_trained(
                        run.shape(model, length), params, false_alarm_rate=FAR
                    )
                    for aggregate, figures in judge(detector, run, benchmark).items():
                        about = {"model": model, "length": length, "aggregate": aggregate, "held_out_nll": losses}
                        keep(names[aggregate], {"seed": seed, **figures}, **about)
                    save()
        if "stide" not in detectors:
            keep("stide", benchmark.summaries(Stide().fit(benchmark.train).decision_function(benchmark.traces)))
            save()
        for seed, name, figures in of_language_models(language_models, benchmark, result):
            keep(name, {"seed": seed, **figures}, model=LANGUAGE_MODEL)
            save()
    print(f"results: {path}")


def begun(path: pathlib.Path, archive: TraceArchive, run: settings.Experiment, benchmark: Benchmark) -> dict[str, Any]:
    """The results so far, if an earlier run judged the same traces with the same models; or the head of new ones."""
    head = {
        **run.description(),
        "notice": archive.notice,
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "data": data.fingerprint(benchmark.traces),
    }
    if path.exists():
        earlier = settings.read_results(path, "detection")
        head = json.loads(json.dumps(head))
        if all(earlier.get(name) == head[name] for name in head if name != "settings"):  # losses tell trainings apart
            return earlier | head
    return {**head, "environment": provenance.environment(), "detectors": {}}


def judge(detector: WindowDetector, run: settings.Experiment, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """One trained model's figures for each way to make a trace's score of its windows'."""
    detector.fit(run.train, run.held_out)
    held_out = detector.surprisal(run.held_out)
    started = time.monotonic()
    surprisal = detector.surprisal(benchmark.traces)
    seconds = time.monotonic() - started
    windows = detector.verdicts(benchmark.traces, surprisal)
    of_attack = benchmark.is_attack[windows.trace]
    found = {}
    for aggregate in AGGREGATES:
        scores = aggregated(surprisal, benchmark.traces, aggregate)
        threshold = conformal_threshold(aggregated(held_out, run.held_out, aggregate), FAR)
        found[aggregate] = {
            **benchmark.summaries(scores),
            "operating_point": settings.operating_point(scores, benchmark.is_attack, threshold, FAR),
            "score_seconds": round(seconds, 2),
        }
    found["mean"]["windows"] = {
        "auc": evaluation.curve(windows.score[~of_attack], windows.score[of_attack]).auc,
        **settings.operating_point(windows.score, of_attack, detector.window_threshold_, FAR),
    }
    return found


def of_language_models(
    models: dict[int, Model], benchmark: Benchmark, result: dict[str, Any]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Seed, name and figures of each member of the models, and of each ensemble, that `result` lacks.

    Figures of other models than these are taken out of it; without models it keeps what it has.
    """
    if not models:
        return
    described = [
        {"seed": seed, "identity": model["identity"]}
        for seed, model in zip(models, trained.describe(models), strict=True)
    ]
    if result.get("language_models") != described:
        result["language_models"] = described
        for name in [name for name in result["detectors"] if name.startswith(LANGUAGE_MODEL)]:
            del result["detectors"][name]
    for seed, model in models.items():
        names = [f"{LANGUAGE_MODEL} {member.name}" for member in model.members]
        if len(names) > 1:
            names.append(f"{LANGUAGE_MODEL}, ensemble")
        missing = [
            n for n in names if all(run["seed"] != seed for run in result["detectors"].get(n, {"runs": []})["runs"])
        ]
        if missing:
            detector = LanguageModelDetector.load(model)
            members = detector.member_scores(benchmark.traces)
            scores = [*members, detector.calibration.combine(members, ensemble.METHODS[0])]
            for name, one in zip(names, scores, strict=False):  # of one member the ensemble is left out
                if name in missing:
                    yield seed, name, benchmark.summaries(one)


if __name__ == "__main__":
    command.run(main)
