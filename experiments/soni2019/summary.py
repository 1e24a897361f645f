"""Soni et al. (2019): one page from all results: table.md.

  syscall-lm soni2019.summary --results=results/soni2019

Reads training-*.json, detection-*.json, epoch_time.json and gpu/epoch_time.json, as far as they are there, and writes
table.md: accuracy on normal windows beside detection (the paper concludes from the former alone), tables 1 and 2, and
the detectors that these two are compared with. Seconds.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison
from syscall_lm.experiments.soni2019 import settings, speeds

RESULTS = flags.DEFINE_string("results", "results/soni2019", "directory with the results, for table.md")

WINDOWS_TRACES = (
    "the paper's Windows traces: private, not obtainable, nor was another data set of Windows system calls (AWSCTD can "
    "be read, but was not to be had)"
)
COMMANDS = """\
Made by

    syscall-lm soni2019.train --archive=ARCHIVE --workdir=soni --output=results/soni2019
    syscall-lm soni2019.detection --archive=ARCHIVE --workdir=soni --models=MODEL_OF_EACH_SEED --output=results/soni2019
    syscall-lm soni2019.figures --training=results/soni2019/training-ARCHIVE.json --output=results/soni2019
    syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results/soni2019
    syscall-lm soni2019.summary --results=results/soni2019

Little was to be expected of the autoencoder: a published LSTM autoencoder reaches an AUC of 0.66 on ADFA-LD's windows.
And accuracy on normal windows says little of detection: the tables show both side by side."""
OPERATING = ("false_alarm_rate", "detection_rate")


def main() -> None:
    """Writes the page."""
    folder = pathlib.Path(RESULTS.value)
    trainings = sorted(folder.glob("training-*.json"))
    if not trainings:
        raise SyscallLMError(f"{folder}: no training-*.json; run soni2019.train first")
    lines = ["# Soni et al. (2019): encoder-decoder and autoencoder", "", COMMANDS, ""]
    for path in trainings:
        lines += of_archive(path, folder / path.name.replace("training-", "detection-"))
    if (folder / "epoch_time.json").exists():
        gpu = folder / "gpu" / "epoch_time.json"
        lines += speeds.times(
            settings.read_results(folder / "epoch_time.json", "epoch_time"),
            settings.read_results(gpu, "epoch_time") if gpu.exists() else None,
        )
    files.write_text(folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def of_archive(training_file: pathlib.Path, detection_file: pathlib.Path) -> list[str]:
    """Accuracy and detection on one archive."""
    training = settings.read_results(training_file, "train")
    detection = settings.read_results(detection_file, "detection") if detection_file.exists() else None
    chosen = training["settings"]
    lines = [
        f"## {training['archive']}",
        "",
        *([detection["notice"], ""] if detection and detection.get("notice") else []),
        f"{training['windows']:,} windows to learn from, {training['held_out_windows']:,} held out, stride "
        f"{chosen['stride']}, H = {chosen['cells']}; mean ± standard deviation of "
        f"{chosen['seeds']} seeds. Why these epochs: experiments/soni2019/train.py.",
        "",
        "Exact is the paper's accuracy: windows predicted (reconstructed) exactly / windows, on normal traces; beside "
        "it calls predicted / calls. The loss is in nats per call; training figures are averages over the best epoch, "
        "while it learns. The AUC tells attacks from normal traces, by a trace's mean, by its highest 60 calls, and "
        "for single windows; false alarms and detections are those at the threshold from held-out traces for 1 %. Time "
        "is that of all epochs and seeds together, without the held-out windows, on "
        f"{trained_on(training)}, which other work may have shared. A window that its trace's end cuts off is none of "
        "these; one at its beginning is, whose input is "
        "partly filled up. The seeds differ in their initialisation; the order of the windows and the held-out traces "
        "are the same. The traces are as they were recorded, none of the paper's filters is used: these recordings "
        "tell neither times nor doubles, and repeated calls belong to what is normal. The paper's figures are for "
        "traces of its own.",
        "",
        "| model | L | epochs | time, s | loss, held out | exact, training | exact, held out | calls, held out | "
        "AUC, mean | AUC, highest | AUC, windows | false alarms / detections | paper: exact, loss |",
        "|---" * 13 + "|",
    ]
    for run in training["runs"]:
        model, length, best = run["model"], run["length"], run["best"]
        cells = [
            spread([row[name] for row in best], percent)
            for name, percent in (
                ("held_out_nll", False),
                ("train_window_accuracy", True),
                ("held_out_window_accuracy", True),
                ("held_out_call_accuracy", True),
            )
        ]
        cells = [str(len(run["history"])), f"{run['seconds']:,.0f}" if run["seconds"] else "", *cells]
        lines.append(f"| {model} | {length} | {' | '.join([*cells, *detected(detection, model, length)])} |")
    lines += [f"| {WINDOWS_TRACES} | | | | | | | | | | | | not run |", ""]
    drawn = sorted(training_file.parent.glob(f"figure*-{pathlib.Path(training['archive']).stem}.png"))
    if drawn:
        named = " and ".join(
            f"[figure {path.name.removeprefix('figure').partition('-')[0]}]({path.name})" for path in drawn
        )
        lines += [f"Loss and accuracy against epoch: {named}.", ""]
    if detection is None:
        return lines
    lines += [*conclusions(training, detection), ""]
    traces = detection["traces"]
    detectors = detection["detectors"]
    lines += [
        f"{traces['normal']:,} normal traces, of which {traces['copies']:,} copy a training trace; "
        f"{traces['attack']:,} attacks. FA@d: false alarm rate at detection rate d.{scoring_time(detection)}",
        *("", "### All normal traces", "", *comparison.rows(detectors, "all")),
        *("", "### Without copies of training traces", "", *comparison.rows(detectors, "without_copies")),
        *("", "### AUC by attack family, all normal traces", "", *comparison.family_rows(detectors), ""),
    ]
    return lines


def scoring_time(detection: dict[str, Any]) -> str:
    """How long the models took to score all traces: the range over models and seeds of each kind."""
    told = []
    for model in settings.MODELS:
        runs = [found["runs"] for found in detection["detectors"].values() if found.get("model") == model]
        seconds = [run["score_seconds"] for of_one in runs for run in of_one if "score_seconds" in run]
        if seconds:
            told.append(f"{model} {min(seconds):.1f} to {max(seconds):.1f} s")
    return f" To score all of them once took: {', '.join(told)}, compilation included." if told else ""


def trained_on(training: dict[str, Any]) -> str:
    """The device, or the devices by what was trained on each."""
    models: dict[str, list[str]] = {}
    for run in training["runs"]:
        device = run.get("environment", training.get("environment"))["device"]
        models.setdefault(device, []).append(run["model"])
    if len(models) == 1:
        return next(iter(models))
    return " and ".join(f"{device} ({', '.join(dict.fromkeys(named))})" for device, named in models.items())


def conclusions(training: dict[str, Any], detection: dict[str, Any]) -> list[str]:
    """What these results say of the paper's conclusions, a line each, and which runs might have gone on learning."""
    exact = {
        (run["model"], run["length"]): [best["held_out_window_accuracy"] for best in run["best"]]
        for run in training["runs"]
    }
    aucs: dict[tuple[str, int], list[float]] = {}
    intervals = {}
    for (model, length), name in {key: f"{key[0]}, L = {key[1]}, mean" for key in exact}.items():
        if name in detection["detectors"]:
            judged = [run["all"] for run in detection["detectors"][name]["runs"]]
            aucs[model, length] = [one["auc"] for one in judged]
            intervals[model, length] = _interval(judged)
    lines = [
        'What becomes of the paper\'s conclusions; "cannot be told" where means differ by no more than one standard '
        "deviation over the seeds:",
        "",
    ]
    for model in settings.MODELS:
        by_length = {length: values for (name, length), values in exact.items() if name == model}
        judged = {length: values for (name, length), values in aucs.items() if name == model}
        if {10} < by_length.keys() and {10} < judged.keys():
            lines.append(
                f"- L = 10 is best for the {model}: {_best_of(by_length)} for windows predicted exactly "
                f"({_listed(by_length, '.1%')}), {_best_of(judged)} for detecting (AUC {_listed(judged, '.3f')})."
            )
    both = [length for length in settings.LENGTHS if {(model, length) for model in settings.MODELS} <= aucs.keys()]
    for name, values, form in (("predicts more windows exactly", exact, ".1%"), ("detects better", aucs, ".3f")):
        pairs = {length: [values[model, length] for model in settings.MODELS] for length in both}
        if pairs:
            told = ", ".join(
                f"L = {length}: {np.mean(a):{form}} against {np.mean(b):{form}}" for length, (a, b) in pairs.items()
            )
            verdicts = {length: _exceeds(a, b) for length, (a, b) in pairs.items()}
            if len(set(verdicts.values())) == 1:
                verdict = verdicts[both[0]]
            else:
                verdict = ", ".join(f"{verdict} for L = {length}" for length, verdict in verdicts.items())
            lines.append(f"- The encoder-decoder {name} than the autoencoder: {verdict} ({told}).")
    if aucs:
        best = _best(aucs)
        low, high = intervals[best]
        others = {_named(key): interval for key, interval in intervals.items() if key != best}
        for name, found in detection["detectors"].items():
            if "model" not in found or found["model"] not in settings.MODELS:
                others[name] = _interval([run["all"] for run in found["runs"]])
        near = [name for name, interval in others.items() if interval[1] >= low and interval[0] <= high]
        lines.append(
            f"- Of these models {_named(best)} has the highest AUC, {np.mean(aucs[best]):.3f} (95 % interval over "
            f"traces {low:.3f} to {high:.3f}); the intervals of {', '.join(near) or 'no other detector'} overlap "
            "with it."
        )
    capped = [
        _named((run["model"], run["length"]))
        for run in training["runs"]
        if np.mean([best["epoch"] for best in run["best"]]) > len(run["history"]) - 0.5
    ]
    if capped:
        lines.append(f"- At its best in its last epoch, so that more might lower the loss: {', '.join(capped)}.")
    return lines


def _best(values: dict[Any, list[float]]) -> Any:
    return max(values, key=lambda key: np.mean(values[key]))


def _best_of(values: dict[int, list[float]], length: int = 10) -> str:
    """Whether this L has the highest mean."""
    others = {other: of_other for other, of_other in values.items() if other != length}
    return _exceeds(values[length], others[_best(others)])


def _exceeds(one: Sequence[float], other: Sequence[float]) -> str:
    exceeds = comparison.exceeds(one, other)
    return "cannot be told" if exceeds is None else speeds.holds(exceeds)


def _named(key: tuple[str, int]) -> str:
    return f"the {key[0]} of L = {key[1]}"


def _interval(judged: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.mean([run["auc_interval"] for run in judged], axis=0)


def _listed(values: dict[int, list[float]], form: str) -> str:
    return ", ".join(f"{length}: {np.mean(of_one):{form}}" for length, of_one in values.items())


def detected(detection: dict[str, Any] | None, model: str, length: int) -> list[str]:
    """The last five cells of a model's row."""

    def runs(aggregate: str) -> list[dict[str, Any]]:
        found = (detection or {"detectors": {}})["detectors"].get(f"{model}, L = {length}, {aggregate}", {"runs": []})
        return found["runs"]

    means, highest = runs("mean"), runs("highest")
    paper = settings.PAPER_ACCURACY[model].get(length)
    printed = f"{100 * paper:.1f} %, {settings.PAPER_LOSS[model][length]}" if paper else ""
    if not means:
        return ["", "", "", "", printed]
    point = [spread([run["operating_point"][name] for run in means], True) for name in OPERATING]
    return [
        spread([run["all"]["auc"] for run in means]),
        spread([run["all"]["auc"] for run in highest]),
        spread([run["windows"]["auc"] for run in means]),
        " / ".join(point),
        printed,
    ]


def spread(values: Sequence[float], percent: bool = False) -> str:
    """Mean ± standard deviation."""
    if percent:
        return comparison.spread([100 * value for value in values], ".1f") + " %"
    return comparison.spread(values, ".3f")


if __name__ == "__main__":
    command.run(main)
