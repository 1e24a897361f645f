"""Attacks hidden among normal calls (Kim et al., section 4, mimicry)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from syscall_lm import evaluation
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.sections import STRETCH
from syscall_lm.experiments import data
from syscall_lm.traces.trace import Sequences


def pad(attacks: Sequences, normal: Sequences, ratio: float, rng: np.random.Generator) -> Sequences:
    """Each attack whole between normal calls, `ratio` of them for each of its own, half before and half after."""
    padded = []
    for attack in attacks:
        calls = normal_calls(normal, round(ratio * len(attack)), rng)
        padded.append(np.concatenate([calls[: len(calls) // 2], attack, calls[len(calls) // 2 :]]))
    return Sequences.from_list(padded)


def before(attacks: Sequences, calls: Callable[[], np.ndarray]) -> Sequences:
    """Each attack with other calls in front of it."""
    return Sequences.from_list(np.concatenate([calls(), attack]) for attack in attacks)


def normal_calls(normal: Sequences, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` calls as normal traces make them: from a random trace's start, and on with others where it ends."""
    parts, missing = [np.zeros(0, np.uint16)], count
    while missing > 0:
        parts.append(normal[int(rng.integers(len(normal)))][:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def effect(detector: Detector, scores: np.ndarray, benchmark: data.Benchmark, seed: int) -> dict[str, float]:
    """AUC of all attacks against all normal traces when each attack is padded with calls of training traces.

    75 calls stand before it; or as many, or eight times as many as it has, half before and half after it; or one whole
    training trace stands before it.
    """
    rng = np.random.default_rng(seed)
    attacks = benchmark.traces.take(benchmark.is_attack)
    train = benchmark.train
    choices: dict[str, Callable[[], Sequences]] = {
        f"{STRETCH} calls": lambda: before(attacks, lambda: normal_calls(train, STRETCH, rng)),
        "x 1": lambda: pad(attacks, train, 1.0, rng),
        "x 8": lambda: pad(attacks, train, 8.0, rng),
        "a normal trace": lambda: before(attacks, lambda: train[int(rng.integers(len(train)))]),
    }
    usual = scores[~benchmark.is_attack]
    return {name: evaluation.curve(usual, detector.decision_function(make())).auc for name, make in choices.items()}


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """A row a detector, a column a kind of padding."""
    columns = list(next(iter(found.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in found.items():
        lines.append(f"| {name} | {' | '.join(f'{np.mean([run[c] for run in runs]):.3f}' for c in columns)} |")
    return lines
