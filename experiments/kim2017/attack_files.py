"""What the file names of ADFA-LD's attacks say of the processes in them."""

import collections
import re
from typing import Any

import numpy as np

DEVELOPMENT = ("Adduser", "Hydra_SSH", "Meterpreter")  # families of the study's development half, see `halves`


def processes(sources: np.ndarray) -> np.ndarray:
    """The process ids that the file names of attacks seem to end in, str `[N]`.

    A file is named ".../Hydra_SSH_2/UAD-Hydra-SSH-2-1371.txt": a family, its recording, and what looks like a process
    id. The hyphen before the id may be missing ("UAD-Hydra-FTP-61371.txt" lies in Hydra_FTP_6), or be "=" or "-=". A
    file that is named otherwise counts as a process of its own.

    Args:
      sources: of the attack traces, where they were read.
    """
    return np.array([_parts(source)[1] for source in sources], str)


def _parts(source: str) -> tuple[str, str]:
    """Recording (a folder) and process."""
    folder, _, file = str(source).rpartition("/")
    number = folder.rpartition("_")[2]
    tail = re.findall(r"[0-9=-]*$", file.removesuffix(".txt"))[0]
    process = tail.lstrip("-").removeprefix(number).lstrip("-=")
    return folder, process or str(source)


def recurring_processes(sources: np.ndarray, families: np.ndarray) -> dict[str, Any]:
    """Attack traces whose process id (see `processes`) occurs in several recordings.

    A program that was attacked would hardly have the same one in every recording; one that ran beside it all day would.

    Args:
      sources: of the attack traces.
      families: theirs.

    Returns:
      attack traces, those with a process id of several recordings, the five most frequent ids with their traces, and of
      families outside the study's development half the share whose id occurs within it.
    """
    recordings, numbers = np.array([_parts(source) for source in sources]).reshape(-1, 2).T
    pairs = np.unique(np.stack([numbers, recordings]), axis=1)[0]
    distinct, count = np.unique(pairs, return_counts=True)
    again = np.isin(numbers, distinct[count > 1])
    frequent = collections.Counter(numbers[again].tolist()).most_common(5)
    development = np.isin(families, DEVELOPMENT)
    shared = np.isin(numbers[~development], numbers[development])
    return {
        "attacks": len(sources),
        "recurring": int(again.sum()),
        "frequent": dict(frequent),
        "shared_with_development": float(shared.mean()) if len(shared) else 0.0,
    }
