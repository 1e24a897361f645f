"""What a report keeps of an archive that streams by: a few numbers a trace, and the most suspicious traces whole."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm import evaluation
from syscall_lm.detectors.ensemble import Calibration
from syscall_lm.errors import SyscallLMError
from syscall_lm.reports import html
from syscall_lm.traces.archive import METADATA_KEY, TOLD, TraceArchive, TraceBatch
from syscall_lm.traces.trace import ATTACK, NORMAL, Sequences

_ORDER = ("train", "validation", "test", "", NORMAL, ATTACK)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the most suspicious traces so far.

    Attributes:
      score: the ensemble's.
      position: in the archive.
      info: what the archive knows of it.
      calls: ids in the model's vocabulary.
      members: `[M]`, the members' scores.
    """

    score: float
    position: int
    info: dict[str, str]
    calls: np.ndarray
    members: np.ndarray


class Tally:
    """Sums up an archive, batch by batch.

    Args:
      archive: the archive.
      table: turns its ids into the model's.
      unk: the model's UNK.
      calibration: combines the members' scores.
      method: how.
      top: how many of the most suspicious traces to keep.

    Attributes:
      worst: the most suspicious traces, highest score first.
      unknown: calls that the model does not know.
    """

    def __init__(
        self, archive: TraceArchive, table: np.ndarray, unk: int, calibration: Calibration, method: str, top: int
    ):
        self._archive, self._table, self._unk = archive, table, unk
        self._calibration, self._method, self._top = calibration, method, top
        self._members: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._kinds: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._codes: dict[tuple[str, str, str], int] = {}  # (label, family, split) -> code
        self._uses = np.zeros(archive.vocabulary.size, np.int64)
        self._traces = 0
        self.worst: list[Candidate] = []

    def add(self, batch: TraceBatch, members: np.ndarray) -> None:
        """Takes in n traces with their members' scores `[M, n]`."""
        scores = self._calibration.combine(members, self._method)
        label, family, split = ([value or "" for value in batch.column(name)] for name in ("label", "family", "split"))
        kinds = zip(label, family, split, strict=True)
        codes = [self._codes.setdefault(kind, len(self._codes)) for kind in kinds]
        self._members.append(members)
        self._lengths.append(batch.calls.lengths)
        self._kinds.append(np.asarray(codes, np.int32))
        self._digests.append(_digests(batch.calls.translate(self._table)))
        self._uses += np.bincount(batch.calls.calls, minlength=len(self._uses))
        for i in np.argsort(-scores, kind="stable")[: self._top]:
            row = batch.info.select(TOLD).slice(int(i), 1).to_pylist()[0]
            info = {name: value or "" for name, value in row.items()}
            calls = self._table[batch.calls[int(i)]]  # a copy: a view would keep the batch in memory
            self.worst.append(Candidate(float(scores[i]), self._traces + int(i), info, calls, members[:, i].copy()))
        self.worst = sorted(self.worst, key=lambda one: (-one.score, one.position))[: self._top]
        self._traces += len(batch)

    @property
    def members(self) -> np.ndarray:
        """The members' scores of all traces, float64 `[M, N]`."""
        return np.concatenate(self._members, axis=1)

    @property
    def calls(self) -> int:
        """Calls in all traces."""
        return int(self._uses.sum())

    @property
    def unknown(self) -> int:
        """Calls that the model does not know."""
        return int(self._uses[self._table == self._unk].sum())

    def unknown_names(self, most: int) -> list[tuple[str, int]]:
        """The archive's names that the model does not know, with their calls, most frequent first."""
        ids = np.flatnonzero((self._table == self._unk) & (self._uses > 0))
        ids = ids[np.argsort(-self._uses[ids], kind="stable")][:most]
        return [(self._archive.vocabulary.name(int(i)), int(self._uses[i])) for i in ids]

    def column(self, name: str) -> np.ndarray:
        """Label, family or split of all traces, object `[N]`."""
        place = ("label", "family", "split").index(name)
        return np.array([kind[place] for kind in self._codes] + [None], object)[np.concatenate(self._kinds)]

    def groups(self, abnormal: np.ndarray, most: int) -> list[tuple[str, str, int, int, int]]:
        """(label, split, traces, calls, abnormal) of every kind; `abnormal` is bool `[N]`."""
        lengths = np.concatenate(self._lengths)
        label, split = self.column("label"), self.column("split")
        rows = []
        for one in {(kind[0], kind[2]) for kind in self._codes}:
            mask = (label == one[0]) & (split == one[1])
            rows.append((*one, int(mask.sum()), int(lengths[mask].sum()), int(abnormal[mask].sum())))
        rank = {name: place for place, name in enumerate(_ORDER)}
        return sorted(rows, key=lambda row: (rank.get(row[1], 99), rank.get(row[0], 99), row[:2]))[:most]

    def test_traces(self) -> tuple[np.ndarray, np.ndarray]:
        """The normal traces and the attacks by which a model is judged, bool `[N]` each.

        As in `evaluate`: the split "test" and attacks of no training split. Archives without a test split are judged by
        what is labelled normal and has no split.
        """
        label, split = self.column("label"), self.column("split")
        attack = (label == ATTACK) & (split != "train")
        normal = (label != ATTACK) & (split == "test")
        if not normal.any():
            normal = (label == NORMAL) & (split == "")
        return normal, attack

    def evaluate(
        self, scores: np.ndarray, threshold: float, names: list[str], learned_from: str
    ) -> html.Evaluation | None:
        """The figures of labelled traces, or None if there are no labels.

        Args:
          scores: `[N]`, the ensemble's.
          threshold: above which a trace is abnormal.
          names: the members'.
          learned_from: the name of the archive that the model was trained on.
        """
        normal, attack = self.test_traces()
        if not normal.any() or not attack.any():
            return None
        label, split = self.column("label"), self.column("split")
        families = self.column("family")[attack].astype(str)
        digests = np.concatenate(self._digests)
        copies = normal & np.isin(digests, digests[(label != ATTACK) & (split == "train")])
        distinct = normal & ~copies
        abnormal = scores > threshold
        detected = abnormal[attack]
        members = dict(zip(names, self.members, strict=True)) if len(names) > 1 else {}
        return html.Evaluation(
            all=evaluation.summary(scores[normal], scores[attack], families),
            without_copies=(
                evaluation.summary(scores[distinct], scores[attack], families)
                if copies.any() and distinct.any()
                else None
            ),
            copies=int(copies.sum()),
            false_alarms=int(abnormal[normal].sum()),
            detections=int(detected.sum()),
            per_family={str(family): int(detected[families == family].sum()) for family in np.unique(families)},
            members={name: evaluation.curve(one[normal], one[attack]).auc for name, one in members.items()},
            seen=not (split[normal] == "test").any() and learned_from == self._archive.path.name,
        )


def _digests(traces: Sequences) -> np.ndarray:
    """uint64 `[n]`: equal for identical traces, and (all but surely) for no others."""
    joined = b"".join(hashlib.blake2b(calls.tobytes(), digest_size=8).digest() for calls in traces)
    return np.frombuffer(joined, np.uint64)


class SavedScores:
    """Reads what `score` wrote, in step with the archive.

    Raises:
      SyscallLMError: the file is missing or damaged, or belongs to another archive or other members.
    """

    def __init__(self, path: str, names: list[str], archive: TraceArchive):
        self._path = pathlib.Path(path)
        if not self._path.is_file():
            raise SyscallLMError(f"{path}: no such file; expected scores (make them with `score`)")
        try:
            self._file = pq.ParquetFile(self._path)
            columns = self._file.schema_arrow.names
            self.header = json.loads((self._file.metadata.metadata or {})[METADATA_KEY])
            kind = self.header["archive"], self.header["ensemble"], self.header["far"]
            self.threshold = float(self.header["threshold"])
        except KeyError as error:
            raise SyscallLMError(f"{path}: a Parquet file, but no scores; make them with `score`") from error
        except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
            raise SyscallLMError(f"{path}: not a file of scores (Parquet), or truncated") from error
        self._columns = [f"nll_{name}" for name in names]
        members = sorted(name for name in columns if name.startswith("nll_"))
        if members != sorted(self._columns) or "id" not in columns:
            found = ", ".join(name.removeprefix("nll_") for name in members) or "none"
            raise SyscallLMError(f"{path}: scores of the members {found}; the model has {', '.join(names)}")
        if kind[0] != archive.path.name or self._file.metadata.num_rows != archive.num_traces:
            raise SyscallLMError(
                f"{path}: scores of {self._file.metadata.num_rows:,} traces of {kind[0]}, "
                f"but {archive.path} holds {archive.num_traces:,}"
            )
        self._rows = self._read()
        self._rest: pa.Table | None = None

    def _read(self) -> Iterator[pa.Table]:
        for batch in self._file.iter_batches(2**16, columns=["id", *self._columns]):
            yield pa.Table.from_batches([batch])

    def take(self, batch: TraceBatch) -> np.ndarray:
        """The members' scores `[M, n]` of the archive's next n traces."""
        try:
            while self._rest is None or len(self._rest) < len(batch):
                more = next(self._rows)
                self._rest = more if self._rest is None else pa.concat_tables([self._rest, more])
            rows, self._rest = self._rest.slice(0, len(batch)), self._rest.slice(len(batch))
            same = rows["id"].to_pylist() == batch.info["id"].to_pylist()
            scores = np.stack([rows[name].to_numpy().astype(np.float64) for name in self._columns])
        except (pa.ArrowException, OSError, StopIteration, ValueError, TypeError) as error:
            raise SyscallLMError(f"{self._path}: damaged or truncated") from error
        if not same or not np.isfinite(scores).all():
            raise SyscallLMError(f"{self._path}: its rows are not the archive's traces; score the archive again")
        return scores


def counters(metadata: dict, most: int) -> dict[str, list[tuple[str, int]]]:
    """What `ingest` skipped and did not know, heading -> (reason, times), most frequent first."""
    counted = metadata.get("counters")
    counted = counted if isinstance(counted, dict) else {}
    headings = {
        "Skipped while the capture was read": counted.get("skipped"),
        "Files skipped": metadata.get("skipped_files"),
        "Call names outside the archive's vocabulary": counted.get("unknown"),
    }
    result = {}
    for heading, reasons in headings.items():
        rows = list(reasons.items()) if isinstance(reasons, dict) else []
        rows = sorted((row for row in rows if isinstance(row[1], int)), key=lambda row: -row[1])
        others = [(f"and {len(rows) - most:,} others", sum(row[1] for row in rows[most:]))] if len(rows) > most else []
        result[heading] = rows[:most] + others
    return result
