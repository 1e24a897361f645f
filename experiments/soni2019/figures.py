"""Soni et al. (2019), figures 4 and 5: loss and accuracy against epoch for L = 3, 10 and 15, one figure a model.

  syscall-lm soni2019.figures --training=results/soni2019/training-adfa.json --output=results/soni2019

Draws figure4-adfa.png (encoder-decoder) and figure5-adfa.png (autoencoder) from what soni2019.train measured on that
archive: training and held-out windows, the mean of the seeds and the range between them. Accuracy is the paper's:
windows predicted exactly / windows. In the paper L = 10 ends highest for both: 97.2 % at a loss of 0.08, and 86 % at
0.21. Seconds.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.experiments.soni2019 import settings
from syscall_lm.reports import figures

NUMBERS = dict(zip(settings.MODELS, (4, 5), strict=True))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")  # Okabe and Ito: told apart by the colour-blind

TRAINING = flags.DEFINE_string("training", None, "what soni2019.train measured", required=True)
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory for the figures, which are called by the archive")


def main() -> None:
    """Draws a figure for each model."""
    training = settings.read_results(pathlib.Path(TRAINING.value), "train")
    archive = pathlib.Path(training["archive"]).stem
    for model, number in NUMBERS.items():
        runs = [run for run in training["runs"] if run["model"] == model]
        if len(runs) > len(COLOURS):
            lengths = ", ".join(str(run["length"]) for run in runs)
            raise SyscallLMError(f"{TRAINING.value}: L = {lengths}; a figure tells {len(COLOURS)} of them apart")
        if runs:
            path = pathlib.Path(OUTPUT.value) / f"figure{number}-{archive}.png"  # summary.py links to it
            with files.complete_file(path) as temporary:
                figures.save(figure(model, archive, runs), temporary)
            print(path)


def figure(model: str, archive: str, runs: list[dict[str, Any]]) -> figures.Figure:
    """Loss on the left, accuracy on the right."""
    drawing = figures.Figure(figsize=(9, 4), layout="constrained")
    panels = drawing.subplots(1, 2)
    for axes, metric, label in zip(
        panels, ("nll", "window_accuracy"), ("loss, nats per call", "windows predicted exactly"), strict=True
    ):
        for run, colour in zip(runs, COLOURS[: len(runs)], strict=True):
            epochs = [row["epoch"] for row in run["history"]]
            for part, style in (("train", "--"), ("held_out", "-")):
                values = np.array([row[f"{part}_{metric}"] for row in run["history"]])  # [epochs, seeds]
                name = f"L = {run['length']}, {'training' if part == 'train' else 'held out'}"
                axes.plot(epochs, values.mean(1), style, color=colour, label=name)
                axes.fill_between(epochs, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0, top=1 if metric == "window_accuracy" else None)
    panels[0].legend(fontsize=8)
    drawing.suptitle(f"{model} on {archive}: mean and range of {len(runs[0]['best'])} seeds")
    return drawing


if __name__ == "__main__":
    command.run(main)
