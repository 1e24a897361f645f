"""Soni et al. (2019), tables 1 and 2: time per epoch for L = 3, 10 and 15, both models; and the latency of a stream.

  syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results/soni2019
  pip install 'syscall-lm[cuda]' && syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results-gpu

The second line does the same on a GPU; it was not measured. The paper prints 180, 370 and 530 ms (encoder-decoder) and
230, 460 and 610 ms (autoencoder) without saying on what; some 140,000 windows in 0.4 seconds are 3.8 million calls a
second, so perhaps its unit is another one than an epoch.

Trains one model of each kind for a few epochs without checkpoints and takes the median of all epochs but the first,
which compiles. Beside it: calls predicted per second of training, those of a language model of the same H on the same
traces, and the median time from a call to its answer when a trace is judged call by call. About 3 minutes on two idle
cores.
"""

import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import files, training, window_training
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.experiments.soni2019 import study
from syscall_lm.models import lstm, shapes
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import WindowScorer

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to learn from", required=True)
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory for epoch_time.json")
EPOCHS = flags.DEFINE_integer("epochs", 4, "epochs of each model, of which the first does not count", lower_bound=2)
PUSHES = flags.DEFINE_integer("pushes", 2000, "calls of a stream", lower_bound=1)


def main(argv: list[str]) -> None:
    """Measures and writes."""
    if argv:
        raise SyscallLMError(f"soni2019.epoch_time takes flags only; what is {argv[0]!r}?")
    archive = TraceArchive(ARCHIVE.value)
    settings = study.Settings(epochs=EPOCHS.value, patience=EPOCHS.value)
    train, held_out = data.training_traces(archive, settings.held_out, settings.seed)
    rows = []
    for model in study.MODELS:
        for length in study.LENGTHS:
            rows.append(measure(model, length, settings, archive.vocabulary.size, train, held_out))
            print(f"  {model}, L = {length}: {rows[-1]['seconds_per_epoch']:.2f} s", flush=True)
    recipe = training.Recipe(epochs=EPOCHS.value, patience=EPOCHS.value, dropout=0.0)
    shape = lstm.Shape(archive.vocabulary.size, settings.cells)
    history = training.train_group(shape, [0], recipe, train, held_out, progress=True).history
    result = {
        "archive": archive.path.name,
        "windows": study.windows(train, settings.stride),
        "cells": settings.cells,
        "cores": len(os.sched_getaffinity(0)),
        "rows": rows,
        "language_model": {"shape": str(shape), "calls_per_second": median(history, "calls_per_second")},
        "environment": provenance.environment(),
    }
    path = pathlib.Path(OUTPUT.value) / "epoch_time.json"
    files.write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"results: {path}")


def measure(
    model: str, length: int, settings: study.Settings, vocabulary_size: int, train: Sequences, held_out: Sequences
) -> dict[str, Any]:
    """One model of one length: seconds per epoch, and the latency of its stream."""
    shape = shapes.window_shape(model, vocabulary_size, length, settings.cells)
    recipe = settings.recipe(model, length)
    trained = window_training.train_group(shape, [0], recipe, train, held_out, progress=True)
    stream = WindowScorer(shape, trained.params).stream()
    latencies = []
    for call in np.resize(train.calls, PUSHES.value + 100):
        started = time.perf_counter()
        stream.push(np.array([call]))
        latencies.append(time.perf_counter() - started)
    quantiles = np.quantile(latencies[100:], [0.5, 0.99])  # the first ones compile
    return {
        "model": model,
        "length": length,
        "seconds_per_epoch": median(trained.history, "seconds"),
        "seconds": [row["seconds"] for row in trained.history],
        "calls_per_second": median(trained.history, "calls_per_second"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        "latency_microseconds": {"median": round(quantiles[0] * 1e6), "99 %": round(quantiles[1] * 1e6)},
    }


def median(history: list[dict[str, Any]], name: str) -> float:
    """Over all epochs but the first, which compiles."""
    return float(np.median([row[name] for row in history[1:]]))


if __name__ == "__main__":
    command.run(main)
