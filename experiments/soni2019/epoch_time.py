"""Soni et al. (2019), tables 1 and 2: time per epoch for L = 3, 10 and 15, both models; and the latency of a stream.

  syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results/soni2019
  pip install 'syscall-lm[cuda]' && syscall-lm soni2019.epoch_time --archive=adfa.parquet --output=results/soni2019/gpu

The second line does the same on a GPU. The paper prints 180, 370 and 530 ms (encoder-decoder) and
230, 460 and 610 ms (autoencoder) without saying on what; some 140,000 windows in 0.4 seconds are 3.8 million calls a
second, so perhaps its unit is another one than an epoch.

Times --steps steps of training for each model, in --rounds rounds in which all take turns; the median turn's share of a
step times the steps of an epoch is the time of an epoch. That leaves out compilation and the held-out windows, and
counts what the host does for a minibatch and, measured apart, for the order of an epoch. In the same rounds run
language models of the same H and the same calls a minibatch, without dropout, and one with the default recipe. A call
counts when it is predicted: L a window, though windows of stride 2 predict most calls L / 2 times; and as often as it
is predicted, though of equal windows in a minibatch one is computed.

Latency is the time from a call to its answer, in as many rounds in which all models and ways take turns: `push` of a
stream with carried state, `push` of a detector's watch (which also judges each window), and a model that reads the
call's whole window anew. Beside the median of all stand the lowest and the highest median of a round: differences
within that range mean nothing. Less than five minutes on two cores.
"""

import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from syscall_lm import files, optimisation, training, window_training
from syscall_lm.detectors.window_models import Watch
from syscall_lm.experiments import command, data, provenance
from syscall_lm.experiments.soni2019 import settings
from syscall_lm.models import encoder_decoder, lstm, shapes
from syscall_lm.objective import Objective
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import WindowScorer

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to learn from", required=True)
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory for epoch_time.json")
ROUNDS = flags.DEFINE_integer("rounds", 20, "in which all models take turns", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 16, "of each model in a round", lower_bound=1)
LENGTHS = flags.DEFINE_list("lengths", [str(length) for length in settings.LENGTHS], "L, calls in a window")
PUSHES = flags.DEFINE_integer("pushes", 2000, "calls of a stream, in all rounds together", lower_bound=1)

WARM_UP = 3


class Contender:
    """One model in training."""

    def __init__(self, objective: Objective, recipe: optimisation.Optimisation):
        ordering = []
        for epoch in range(4):
            started = time.perf_counter()
            next(iter(objective.plans(epoch)))
            ordering.append(time.perf_counter() - started)
        self.ordering_seconds = float(np.median(ordering[1:]))  # an epoch; what the first one makes is kept
        plans = list(objective.plans(1))
        self.steps_an_epoch = len(plans)
        self.lanes = float(np.mean([plan.shape[-1] for plan in plans]))
        self._plans = (plan for epoch in itertools.count(1) for plan in objective.plans(epoch))
        whole, self._step = optimisation.begin(objective, [0], recipe, recipe.epochs * len(plans))
        self._state = self._step.spread(whole)
        for plan in {plan.shape: plan for plan in plans}.values():  # each is compiled; turns begin with this epoch
            for run in itertools.islice(
                optimisation.in_runs(itertools.repeat(plan, WARM_UP * optimisation.TOGETHER)), WARM_UP
            ):
                self._state = jax.block_until_ready(self._step(self._state, *run))
        self._calls = float(self._step.sums(self._state)["calls"][0])
        self.seconds: list[float] = []  # of a turn
        self.calls: list[float] = []

    def turn(self) -> None:
        """Makes `--steps` steps, as `train` does: the host prepares the next while the devices are at one."""
        started = time.perf_counter()
        for run in optimisation.in_runs(itertools.islice(self._plans, STEPS.value)):
            self._state = self._step(self._state, *run)
        jax.block_until_ready(self._state)
        order = self.ordering_seconds * STEPS.value / self.steps_an_epoch
        self.seconds.append(time.perf_counter() - started + order)
        before, self._calls = self._calls, float(self._step.sums(self._state)["calls"][0])
        self.calls.append(self._calls - before)

    @property
    def params(self) -> Any:
        """The parameters as they are now, with a leading axis of one member."""
        return self._state["params"]

    @property
    def rates(self) -> np.ndarray:
        """Calls that were learned from per second, in each turn."""
        return np.array(self.calls) / self.seconds

    def figures(self) -> dict[str, Any]:
        """What was measured."""
        steps = np.array(self.seconds) / STEPS.value
        return {
            "seconds_per_step": float(np.median(steps)),
            "quartiles": np.quantile(steps, [0.25, 0.75]).tolist(),
            "steps_an_epoch": self.steps_an_epoch,
            "ordering_seconds": round(self.ordering_seconds, 4),
            "lanes_a_minibatch": round(self.lanes, 1),
            "seconds_per_epoch": float(np.median(steps)) * self.steps_an_epoch,
            "calls_per_second": float(np.median(self.rates)),
            "rounds": np.round(self.rates).tolist(),  # calls per second in each
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params)),
        }


def main() -> None:
    """Measures and writes."""
    lengths = settings.lengths(LENGTHS.value)
    archive = TraceArchive(ARCHIVE.value)
    chosen = settings.Settings()
    train, held_out = data.training_traces(archive, chosen.held_out, chosen.seed)
    vocabulary_size = archive.vocabulary.size
    language_models = {
        length: language_model(chosen.cells, minibatch_calls(chosen, length), 0.0, vocabulary_size, train, held_out)
        for length in lengths
    }
    default = training.Recipe()
    default_language_model = language_model(
        chosen.cells, default.minibatch_calls, default.dropout, vocabulary_size, train, held_out
    )
    models: dict[tuple[str, int], Contender] = {}
    for model in settings.MODELS:
        for length in lengths:
            recipe, shape = (
                chosen.recipe(model, length),
                shapes.window_shape(model, vocabulary_size, length, chosen.cells),
            )
            objective = window_training.WindowPrediction(shape, recipe, train, held_out)
            models[model, length] = Contender(objective, recipe)
    for _ in range(ROUNDS.value):
        for contender in [*models.values(), *language_models.values(), default_language_model]:
            contender.turn()
    latencies: dict[tuple[str, int], dict[str, Latency]] = {}
    for (model, length), contender in models.items():
        scorer = WindowScorer(shapes.window_shape(model, vocabulary_size, length, chosen.cells), contender.params)
        latencies[model, length] = ways(scorer, train)
    for _ in range(ROUNDS.value):
        for of_model in latencies.values():
            for latency in of_model.values():
                latency.turn()
    rows = []
    for (model, length), contender in models.items():
        equal = language_models[length].figures()
        row = {
            "model": model,
            "length": length,
            "together": chosen.recipe(model, length).together,
            **contender.figures(),
            "language_model_calls_per_second": equal["calls_per_second"],
            "language_model_ratio": ratio(contender.rates / language_models[length].rates),
            **{name: latency.figures() for name, latency in latencies[model, length].items()},
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
        "vocabulary_size": vocabulary_size,
        "calls_that_occur": len(np.unique(train.calls)),
        "windows": settings.windows(train, chosen.stride),
        "minibatch_windows": chosen.recipe(encoder_decoder.NAME, 3).minibatch_windows,
        "cells": chosen.cells,
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


def ratio(of_rounds: np.ndarray) -> list[float]:
    """The median of the rounds' ratios, and a 95 % bootstrap interval of it over rounds."""
    drawn = np.random.default_rng(0).choice(of_rounds, (2000, len(of_rounds)))
    low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
    return [float(np.median(of_rounds)), float(low), float(high)]


def minibatch_calls(chosen: settings.Settings, length: int) -> int:
    """Calls that a minibatch of windows predicts."""
    return chosen.recipe(encoder_decoder.NAME, length).minibatch_windows * length


def language_model(
    cells: int, minibatch: int, dropout: float, vocabulary_size: int, train: Sequences, held_out: Sequences
) -> Contender:
    """A language model of one layer; `train` chooses its steps in time as here."""
    steps = training.Recipe().steps if minibatch >= training.Recipe().minibatch_calls else 32
    recipe = training.Recipe(dropout=dropout, minibatch_calls=minibatch, steps=steps)
    shape = lstm.Shape(vocabulary_size, cells)
    return Contender(training.LanguageModelling(shape, recipe, train, held_out), recipe)


class Latency:
    """From a question to its answer.

    Args:
      answer: gives it.
      questions: are asked in turn, again and again.
      count: how many of them in a round.
    """

    def __init__(self, answer: Callable[[Any], Any], questions: list[Any], count: int):
        self._answer, self._questions, self._count = answer, itertools.cycle(questions), count
        self._rounds: list[list[float]] = []
        for _ in range(100):  # the first ones compile
            answer(next(self._questions))

    def turn(self) -> None:
        """Makes a round; what the processor's caches held of others is out after the first tenth."""
        seconds = []
        for _ in range(self._count + self._count // 10):
            question = next(self._questions)
            started = time.perf_counter()
            self._answer(question)
            seconds.append(time.perf_counter() - started)
        self._rounds.append(seconds[self._count // 10 :])

    def figures(self) -> dict[str, Any]:
        """Median and 99th percentile of all, and each round's median, in microseconds."""
        median, most = np.quantile(self._rounds, [0.5, 0.99])
        rounds = [round(float(np.median(seconds)) * 1e6, 1) for seconds in self._rounds]
        return {"median": round(float(median) * 1e6, 1), "99 %": round(float(most) * 1e6, 1), "rounds": rounds}


def ways(scorer: WindowScorer, traces: Sequences) -> dict[str, Latency]:
    """The ways to an answer, by their name in the results."""
    count = -(-PUSHES.value // ROUNDS.value)
    calls = traces.calls[:10_000]
    windows = scorer.windows(traces)
    return {
        "latency_microseconds": Latency(scorer.stream().push, [np.array([call]) for call in calls], count),
        "watch_microseconds": Latency(Watch(scorer.stream(), math.inf).push, calls.tolist(), count),
        "whole_window_microseconds": Latency(
            scorer.read, [windows.gather(np.array([i])) for i in range(min(len(windows), 500))], -(-count // 4)
        ),
    }


if __name__ == "__main__":
    command.run(main)
