"""Soni et al. (2019), tables 1 and 2: time per epoch for L = 3, 10 and 15, both models; and the latency of a stream.

  syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results/soni2019
  pip install 'syscall-lm[cuda]' && syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results-gpu

The second line does the same on a GPU; it was not measured. The paper prints 180, 370 and 530 ms (encoder-decoder) and
230, 460 and 610 ms (autoencoder) without saying on what; some 140,000 windows in 0.4 seconds are 3.8 million calls a
second, so perhaps its unit is another one than an epoch.

Times --steps steps of training for each model, in --rounds rounds in which all take turns; the median step times the
steps of an epoch is the time of an epoch. That leaves out compilation and the held-out windows. In the same rounds run
language models of the same H and the same calls a minibatch, without dropout, and one with the default recipe. A call
counts when it is predicted: L a window, though windows of stride 2 predict most calls L / 2 times.

Latency is the time from a call to its answer: of a stream with carried state, and of a model that reads the call's
whole window anew. Less than two minutes on two cores.
"""

import itertools
import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import files, loop, training, window_training
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.experiments.soni2019 import study
from syscall_lm.models import encoder_decoder, lstm, shapes
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import WindowScorer

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to learn from", required=True)
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory for epoch_time.json")
ROUNDS = flags.DEFINE_integer("rounds", 5, "in which all models take turns", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 8, "of each model in a round", lower_bound=1)
LENGTHS = flags.DEFINE_list("lengths", [str(length) for length in study.LENGTHS], "L, calls in a window")
PUSHES = flags.DEFINE_integer("pushes", 2000, "calls of a stream", lower_bound=1)

WARM_UP = 3


class Contender:
    """One model in training."""

    def __init__(self, objective: loop.Objective, recipe: loop.Optimisation):
        plans = list(objective.plans(0))
        calls = [int(objective.gather(plan).mask.sum()) for plan in plans[: WARM_UP + STEPS.value]]
        self.steps_an_epoch = len(plans)
        self._plans = list(itertools.islice(itertools.cycle(plans), WARM_UP + STEPS.value))
        self._state, self._step = loop.begin(objective, [0], recipe, recipe.epochs * len(plans))
        self._calls_a_step = float(np.mean(calls))
        self.seconds: list[float] = []
        for plan in self._plans[:WARM_UP]:
            self._run(plan)
        self.seconds.clear()

    def turn(self) -> None:
        """Makes `--steps` steps, each from the host's arrays to the new parameters."""
        for plan in self._plans[WARM_UP:]:
            self._run(plan)

    def _run(self, plan: np.ndarray) -> None:
        started = time.perf_counter()
        self._state = jax.block_until_ready(self._step(self._state, plan))
        self.seconds.append(time.perf_counter() - started)

    @property
    def params(self) -> Any:
        """The parameters as they are now, with a leading axis of one member."""
        return self._state["params"]

    def figures(self) -> dict[str, Any]:
        """What was measured."""
        step = float(np.median(self.seconds))
        return {
            "seconds_per_step": step,
            "quartiles": np.quantile(self.seconds, [0.25, 0.75]).tolist(),
            "steps_an_epoch": self.steps_an_epoch,
            "seconds_per_epoch": step * self.steps_an_epoch,
            "calls_per_second": self._calls_a_step / step,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params)),
        }


def main(argv: list[str]) -> None:
    """Measures and writes."""
    if argv:
        raise SyscallLMError(f"soni2019.epoch_time takes flags only; what is {argv[0]!r}?")
    lengths = study.lengths(LENGTHS.value)
    archive = TraceArchive(ARCHIVE.value)
    settings = study.Settings()
    train, held_out = data.training_traces(archive, settings.held_out, settings.seed)
    vocabulary_size = archive.vocabulary.size
    language_models = {
        length: language_model(settings.cells, minibatch_calls(settings, length), 0.0, vocabulary_size, train, held_out)
        for length in lengths
    }
    default = training.Recipe()
    default_language_model = language_model(
        settings.cells, default.minibatch_calls, default.dropout, vocabulary_size, train, held_out
    )
    models: dict[tuple[str, int], Contender] = {}
    for model in study.MODELS:
        for length in lengths:
            recipe, shape = (
                settings.recipe(model, length),
                shapes.window_shape(model, vocabulary_size, length, settings.cells),
            )
            objective = window_training.WindowPrediction(shape, recipe, train, held_out)
            models[model, length] = Contender(objective, recipe)
    for _ in range(ROUNDS.value):
        for contender in [*models.values(), *language_models.values(), default_language_model]:
            contender.turn()
    rows = []
    for (model, length), contender in models.items():
        equal = language_models[length].figures()
        scorer = WindowScorer(shapes.window_shape(model, vocabulary_size, length, settings.cells), contender.params)
        row = {
            "model": model,
            "length": length,
            **contender.figures(),
            "language_model_calls_per_second": equal["calls_per_second"],
            "latency_microseconds": streaming(scorer, train.calls),
            "whole_window_microseconds": recomputing(scorer, train),
        }
        rows.append(row)
        print(
            f"  {model}, L = {length}: {row['seconds_per_epoch']:.2f} s an epoch, {row['calls_per_second']:,.0f} "
            f"calls/s (language model {equal['calls_per_second']:,.0f}); a call "
            f"{row['latency_microseconds']['median']} µs",
            flush=True,
        )
    result = {
        "archive": archive.path.name,
        "windows": study.windows(train, settings.stride),
        "minibatch_windows": settings.recipe(encoder_decoder.NAME, 3).minibatch_windows,
        "cells": settings.cells,
        "cores": len(os.sched_getaffinity(0)),
        "rounds": ROUNDS.value,
        "steps": STEPS.value,
        "rows": rows,
        "default_language_model": {"dropout": default.dropout, **default_language_model.figures()},
        "environment": provenance.environment(),
    }
    path = pathlib.Path(OUTPUT.value) / "epoch_time.json"
    files.write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"results: {path}")


def minibatch_calls(settings: study.Settings, length: int) -> int:
    """Calls that a minibatch of windows predicts."""
    return settings.recipe(encoder_decoder.NAME, length).minibatch_windows * length


def language_model(
    cells: int, minibatch: int, dropout: float, vocabulary_size: int, train: Sequences, held_out: Sequences
) -> Contender:
    """A language model of one layer; `train` chooses its steps in time as here."""
    steps = training.Recipe().steps if minibatch >= training.Recipe().minibatch_calls else 32
    recipe = training.Recipe(dropout=dropout, minibatch_calls=minibatch, steps=steps)
    shape = lstm.Shape(vocabulary_size, cells)
    return Contender(training.LanguageModelling(shape, recipe, train, held_out), recipe)


def streaming(scorer: WindowScorer, calls: np.ndarray) -> dict[str, int]:
    """From a call to its answer, with carried state."""
    stream = scorer.stream()
    return latency(stream.push, [np.array([call]) for call in np.resize(calls, PUSHES.value + 100)])


def recomputing(scorer: WindowScorer, traces: Sequences) -> dict[str, int]:
    """From a call to its answer, if its whole window is read anew."""
    windows = scorer.windows(traces)
    return latency(scorer.read, [windows.gather(np.array([i % len(windows)])) for i in range(PUSHES.value // 4 + 100)])


def latency(answer: Any, questions: list[Any]) -> dict[str, int]:
    """Median and 99th percentile in microseconds; the first questions are left out, since they compile."""
    seconds = []
    for question in questions:
        started = time.perf_counter()
        answer(question)
        seconds.append(time.perf_counter() - started)
    median, most = np.quantile(seconds[100:], [0.5, 0.99])
    return {"median": round(median * 1e6), "99 %": round(most * 1e6)}


if __name__ == "__main__":
    command.run(main)
