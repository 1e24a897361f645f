"""What the experiments of this folder share: which models are trained how, and where a finished one is found again."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from syscall_lm import loop, window_training
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import data
from syscall_lm.models import autoencoder, encoder_decoder, shapes, store
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Params

MODELS = (encoder_decoder.NAME, autoencoder.NAME)
LENGTHS = (3, 10, 15)
_RECIPES = window_training.RECIPES

# The paper's own numbers, by model and L: tables 1 and 2; section V prints accuracy and loss for L = 10 alone.
PAPER_MS_PER_EPOCH = {MODELS[0]: {3: 180, 10: 370, 15: 530}, MODELS[1]: {3: 230, 10: 460, 15: 610}}
PAPER_ACCURACY = {MODELS[0]: {10: 0.972}, MODELS[1]: {10: 0.86}}
PAPER_LOSS = {MODELS[0]: {10: 0.08}, MODELS[1]: {10: 0.21}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How every model is trained.

    Attributes:
      seeds: M, members that are trained side by side and differ in their initialisation.
      cells: H.
      learning_rate, autoencoder_learning_rate: Adam's, at its peak, for either model.
      epochs, autoencoder_epochs: likewise; the autoencoder makes all of them.
      patience: of the encoder-decoder, see `window_training.WindowRecipe`.
      schedule, stride, seed: see there.
      held_out: the share of the normal traces to hold out, where the archive has no split for it.
    """

    seeds: int = 3
    cells: int = 64
    epochs: int = _RECIPES[encoder_decoder.NAME]["epochs"]
    autoencoder_epochs: int = _RECIPES[autoencoder.NAME]["epochs"]
    learning_rate: float = _RECIPES[encoder_decoder.NAME]["learning_rate"]
    autoencoder_learning_rate: float = _RECIPES[autoencoder.NAME]["learning_rate"]
    schedule: str = "cosine"
    patience: int = _RECIPES[encoder_decoder.NAME]["patience"]
    stride: int = 2
    seed: int = 0
    held_out: float = 0.1

    def recipe(self, model: str, length: int) -> window_training.WindowRecipe:
        """The recipe for a model of windows of one length."""
        epochs, patience, learning_rate = self.epochs, self.patience, self.learning_rate
        if model == autoencoder.NAME:
            epochs, patience, learning_rate = (self.autoencoder_epochs,) * 2 + (self.autoencoder_learning_rate,)
        return window_training.WindowRecipe.of(
            model,
            epochs=epochs,
            learning_rate=learning_rate,
            schedule=self.schedule,
            patience=patience,
            seed=self.seed,
            length=length,
            stride=self.stride,
        )


class Experiment:
    """The normal traces of one archive, and the models that are trained on them.

    Args:
      archive: with normal traces.
      settings: how to train.
      workdir: where checkpoints live. A run is found again by its settings and data, so a directory may hold many.
    """

    def __init__(self, archive: TraceArchive, settings: Settings, workdir: pathlib.Path):
        self.settings = settings
        self.archive = archive
        self.train, self.held_out = data.training_traces(archive, settings.held_out, settings.seed)
        self._workdir = workdir

    def shape(self, model: str, length: int) -> shapes.WindowShape:
        """The shape of a model."""
        return shapes.window_shape(model, self.archive.vocabulary.size, length, self.settings.cells)

    def check(self, models: Sequence[str], lengths: Sequence[int]) -> None:
        """Raises SyscallLMError if one of these cannot be trained, or none is named."""
        if not models:
            raise SyscallLMError(f"--models: name at least one of {', '.join(MODELS)}")
        for model in models:
            if model not in MODELS:
                raise SyscallLMError(f"--models: no model is called {model!r}; there are {', '.join(MODELS)}")
            for length in lengths:
                self.settings.recipe(model, length)
                self.shape(model, length)

    def trained(
        self, model: str, length: int, log: Callable[[list[dict[str, Any]]], None] = lambda rows: None
    ) -> loop.Trained:
        """Trains M members, or goes on where the last checkpoint stands; at once, if they are trained."""
        recipe = self.settings.recipe(model, length)
        return window_training.train_group(
            self.shape(model, length),
            range(self.settings.seeds),
            recipe,
            self.train,
            self.held_out,
            self._folder(model, recipe),
            log=log,
            progress=True,
        )

    def members(self, model: str, length: int, losses: Sequence[float]) -> Iterator[Params]:
        """The trained members, one after another.

        Args:
          model, length: which.
          losses: their held-out losses, as the results of the training tell them.

        Raises:
          SyscallLMError: they were not trained in this workdir, or the results tell of another training.
        """
        folder = self._folder(model, self.settings.recipe(model, length))
        if not folder.exists():
            raise SyscallLMError(f"{folder}: no checkpoints of this model and data; soni2019.train makes them")
        trained = self.trained(model, length)
        if not np.allclose(trained.held_out_nll, losses, rtol=1e-6):
            raise SyscallLMError(f"{folder}: another training than the results tell of; run soni2019.train again")
        for member in range(self.settings.seeds):
            yield jax.tree.map(lambda leaf, i=member: leaf[i], trained.params)

    def description(self) -> dict[str, Any]:
        """What was learned from, and how (plain JSON values)."""
        return {
            "archive": self.archive.path.name,
            "settings": dataclasses.asdict(self.settings),
            "training": {
                "traces": len(self.train),
                "calls": len(self.train.calls),
                "data": data.fingerprint(self.train),
            },
            "held_out": {
                "traces": len(self.held_out),
                "calls": len(self.held_out.calls),
                "data": data.fingerprint(self.held_out),
            },
        }

    def _folder(self, model: str, recipe: window_training.WindowRecipe) -> pathlib.Path:
        identity = {
            **dataclasses.asdict(recipe),
            "cells": self.settings.cells,
            "seeds": self.settings.seeds,
            "data": [data.fingerprint(self.train), data.fingerprint(self.held_out), self.archive.vocabulary.hash],
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return self._workdir / f"{self.archive.path.stem}-{model}-L{recipe.length}-{digest}"


def lengths(texts: list[str]) -> list[int]:
    """The values of a flag --lengths.

    Raises:
      SyscallLMError: one is no length.
    """
    if not texts or not all(text.isdecimal() and int(text) for text in texts):
        raise SyscallLMError(f"--lengths={','.join(texts)}: expected whole numbers from 1, like 3,10,15")
    return [int(text) for text in texts]


def training_seconds(history: list[dict[str, Any]]) -> float | None:
    """What all epochs took together, held-out windows apart; None if one was interrupted, and nobody knows."""
    seconds = [row.get("seconds") for row in history]
    known = [value for value in seconds if value is not None]
    return round(sum(known), 1) if known and len(known) == len(seconds) else None


def windows(sequences: Sequences, stride: int) -> int:
    """How many windows traces are cut into."""
    return int((-(-sequences.lengths // stride)).sum())


RESULTS_HOLD = {"train": ("settings", "runs"), "detection": ("traces", "detectors"), "epoch_time": ("rows", "rounds")}


def read_results(path: pathlib.Path, needed_from: str) -> dict[str, Any]:
    """A JSON result of another experiment of this folder.

    Raises:
      SyscallLMError: it is missing, damaged, or of another experiment than this.
    """
    found = store.read_json(path, f"{path}: missing; run soni2019.{needed_from} first")
    for name in RESULTS_HOLD[needed_from]:
        if name not in found:
            raise SyscallLMError(f"{path}: no results of soni2019.{needed_from} (they hold {name!r})")
    return found


def of_results(training: dict[str, Any], path: pathlib.Path) -> Settings:
    """The settings that results of soni2019.train were made with.

    Raises:
      SyscallLMError: they are none of this version's.
    """
    try:
        return Settings(**training["settings"])
    except TypeError as error:
        raise SyscallLMError(f"{path}: results of another version; run soni2019.train again") from error


def operating_point(scores: np.ndarray, is_attack: np.ndarray, threshold: float, asked: float) -> dict[str, float]:
    """What really happens at a threshold that held-out normal scores set for a false alarm rate."""
    abnormal = scores > threshold
    return {
        "false_alarm_rate_asked": asked,
        "threshold": threshold,
        "false_alarm_rate": float(abnormal[~is_attack].mean()),
        "detection_rate": float(abnormal[is_attack].mean()),
    }
