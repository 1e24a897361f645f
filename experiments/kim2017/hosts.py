"""The normal traces and attacks of one host, split as the paper splits UNM and KDD98."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import bsm_sessions
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import ATTACK, Sequences
from syscall_lm.traces.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Host:
    """Traces of one host, ids in its own vocabulary.

    Attributes:
      name: for people.
      vocabulary: its call names.
      train: a sixth of the normal traces.
      validation: the others (Kim et al., section 3.1: 1:5, the ratio of ADFA-LD).
      attack: attack traces.
      families: the kind of each attack.
    """

    name: str
    vocabulary: Vocabulary
    train: Sequences
    validation: Sequences
    attack: Sequences
    families: np.ndarray

    @classmethod
    def read(cls, name: str, archives: Sequence[str], seed: int) -> "Host":
        """Reads archives of one vocabulary; traces labelled as attacks are attacks, all others normal.

        The paper does not say which sixth of the normal traces it learned from; here `seed` draws them.

        Raises:
          SyscallLMError: the archives' vocabularies differ, or there are too few traces.
        """
        opened = [TraceArchive(path) for path in archives]
        if len({archive.vocabulary.hash for archive in opened}) != 1:
            raise SyscallLMError(f"{name}: needs archives of one vocabulary, found {len(opened)} archives that differ")
        numberings = {archive.metadata.get("numbering") for archive in opened}
        if len(numberings) > 1:
            raise SyscallLMError(f"{name}: the archives number their calls differently: {sorted(map(str, numberings))}")
        batches = [archive.read() for archive in opened]
        traces = Sequences.from_list(calls for batch in batches for calls in batch.calls)
        is_attack = np.concatenate([batch.column("label") == ATTACK for batch in batches])
        families = np.concatenate([batch.column("family") for batch in batches])[is_attack].astype(str)
        normal = np.flatnonzero(~is_attack)
        if len(normal) < 6 or not is_attack.any():
            raise SyscallLMError(
                f"{name}: needs 6 normal traces and an attack, found {len(normal)} and {is_attack.sum()}"
            )
        learn = np.zeros(len(normal), bool)
        learn[np.random.default_rng(seed).permutation(len(normal))[: round(len(normal) / 6)]] = True
        train, validation, attack = (traces.take(part) for part in (normal[learn], normal[~learn], is_attack))
        return cls(name, opened[0].vocabulary, train, validation, attack, families)

    @classmethod
    def kdd98(cls, folder: str, events: str, seed: int) -> "Host":
        """Reads KDD98's audit trails, and the `bsm.list` beside each that tells its sessions.

        Args:
          folder: with the trails and lists, at any depth.
          events: the `audit_event` file that names their events.
          seed: see `read`.
        """
        if not events:
            raise SyscallLMError("--kdd98_events: name the audit_event file of the system that wrote the trails")
        with tempfile.TemporaryDirectory() as temporary:
            path = str(pathlib.Path(temporary) / "kdd98.parquet")
            bsm_sessions.ingest(folder, path, events)
            return cls.read("KDD98", [path], seed)
