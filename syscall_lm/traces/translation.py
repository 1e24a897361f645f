"""One archive's call ids in the vocabulary of what was learned from another, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import filters
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.vocabulary import Vocabulary


def between(archive: TraceArchive, normal: TraceArchive) -> np.ndarray:
    """As `to`, for detectors that learn from the archive `normal`."""
    numbering, filtered = normal.metadata.get("numbering"), filters.of_calls(normal.metadata)
    return to(archive, str(normal.path), normal.vocabulary, numbering, filtered)


def to(
    archive: TraceArchive,
    learned: str,
    vocabulary: Vocabulary,
    numbering: Any,
    filtered: Sequence[Mapping[str, Any]] | None,
) -> np.ndarray:
    """The table that turns an archive's call ids into others, by name (see `Vocabulary.map_from`).

    Args:
      archive: whose ids.
      learned: the name, for messages, of what was learned from.
      vocabulary: of that.
      numbering: by which that counts its calls, if it says so.
      filtered: what filters did to that (`filters.of_calls`); None if it is not known.

    Raises:
      SyscallLMError: no name is known to both, or the two count calls by different numberings, or their calls were
        filtered differently.
    """
    theirs = archive.metadata.get("numbering")
    if numbering and theirs and numbering != theirs:
        raise SyscallLMError(
            f"{archive.path}: numbers its calls by numbering {theirs}, but {learned} by numbering {numbering}; their "
            "names do not mean the same calls"
        )
    found = filters.of_calls(archive.metadata)
    if filtered is not None and found != filtered:
        raise SyscallLMError(
            f"{archive.path}: {filters.told(found)}, but {learned} is {filters.told(filtered)}; `filter` makes an "
            "archive of an archive"
        )
    table = vocabulary.map_from(archive.vocabulary)
    if (table == vocabulary.unk).all():
        raise SyscallLMError(
            f"{archive.path}: its vocabulary ({archive.vocabulary.origin}) has no call name in common with that of "
            f"{learned} ({vocabulary.origin})"
        )
    return table
