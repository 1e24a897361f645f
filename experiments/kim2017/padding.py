"""Attacks hidden among normal calls (Kim et al., section 4, mimicry)."""

from collections.abc import Callable

import numpy as np

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
