"""What the file names of ADFA-LD's attacks say of the processes in them."""

import collections
from typing import Any

import numpy as np

DEVELOPMENT = ("Adduser", "Hydra_SSH", "Meterpreter")  # families of the study's development half, see `halves`


def processes(ids: np.ndarray) -> np.ndarray:
    """The process ids, as `recurring_processes` explains them, str `[N]`."""
    return np.array([_parts(name)[1] for name in ids], str)


def _parts(name: str) -> tuple[str, str]:
    recording, _, process = str(name).rpartition("-")
    return recording, process


def recurring_processes(ids: np.ndarray, families: np.ndarray) -> dict[str, Any]:
    """Attack traces whose process id, as their names seem to tell it, occurs in several recordings.

    A file is named "UAD-Adduser-2-1371": an attack, its recording, and what looks like a process id. A program that was
    attacked would hardly have the same one in every recording; one that ran beside it all day would.

    Args:
      ids: of the attack traces, ending so.
      families: theirs.

    Returns:
      attack traces, those with a process id of several recordings, the five most frequent ids with their traces, and of
      families outside the study's development half the share whose id occurs within it.
    """
    recordings, numbers = np.array([_parts(name) for name in ids]).reshape(-1, 2).T
    pairs = np.unique(np.stack([numbers, recordings]), axis=1)[0]
    distinct, count = np.unique(pairs, return_counts=True)
    again = np.isin(numbers, distinct[count > 1])
    frequent = collections.Counter(numbers[again].tolist()).most_common(5)
    development = np.isin(families, DEVELOPMENT)
    shared = np.isin(numbers[~development], numbers[development])
    return {
        "attacks": len(ids),
        "recurring": int(again.sum()),
        "frequent": dict(frequent),
        "shared_with_development": float(shared.mean()) if len(shared) else 0.0,
    }
