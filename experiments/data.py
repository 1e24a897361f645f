"""Which traces of an archive an experiment uses, and the checks that several experiments share."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from syscall_lm import evaluation, scoring, training
from syscall_lm.detectors.base import Detector, traces_needed
from syscall_lm.detectors.ensemble import Calibration
from syscall_lm.detectors.taught import Examples
from syscall_lm.errors import SyscallLMError
from syscall_lm.models.store import Model
from syscall_lm.traces import translation
from syscall_lm.traces.archive import TraceArchive, TraceBatch
from syscall_lm.traces.trace import ATTACK, NORMAL, Sequences

FEW_ATTACKS = 30  # fewer examples than these may do harm (results/kim2017/taught.md)
HELD_OUT = 0.1  # of the normal traces, unless a split says which


def normal_split(batch: TraceBatch, split: str) -> np.ndarray:
    """Bool `[N]`: traces of a split that are not labelled as attacks (a missing label counts as normal)."""
    return (batch.column("split") == split) & (batch.column("label") != ATTACK)


def training_traces(archive: TraceArchive, held_out: float, seed: int) -> tuple[Sequences, Sequences]:
    """Normal traces to learn from and to hold out.

    The archive's "train" split is learned from (all normal traces, if it has no splits); its "validation" split is held
    out, or, where there is none, a share `held_out` of what is learned from.

    Raises:
      SyscallLMError: no normal traces to learn from.
    """
    batch = archive.read()
    train = normal_split(batch, "train")
    if not train.any():
        train = normal_split(batch, "")
    if not train.any():
        raise SyscallLMError(f"{archive.path}: no normal traces to learn from (in split 'train' or without a split)")
    validation = batch.calls.take(normal_split(batch, "validation"))
    return training.with_held_out(batch.calls.take(train), validation, seed, held_out)


def distinct(traces: Sequences) -> int:
    """How many of the traces differ."""
    return len(traces.distinct()[0])


def told(traces: Sequences) -> str:
    """How many traces there are, and how many of them differ where some are copies."""
    differ = distinct(traces)
    return f"{len(traces):,}" + (f" ({differ:,} distinct)" if differ < len(traces) else "")


def note_of_few(held_out: int, false_alarm_rate: float, what: str = "traces", differ: int | None = None) -> None:
    """Says on the terminal where too few held-out traces, or windows, set a threshold; `differ`: how many differ."""
    needed = traces_needed(false_alarm_rate)
    differ = held_out if differ is None else differ
    if held_out < needed:
        which = f" ({differ} distinct)" if differ < held_out else ""
        print(
            f"note: {held_out} held-out {what}{which} cannot promise a false alarm rate of {false_alarm_rate:g} "
            f"({needed} could); the threshold is their highest score"
        )
    elif differ < needed:
        print(
            f"note: of {held_out:,} held-out {what} only {differ:,} differ; a false alarm rate of {false_alarm_rate:g} "
            "is promised to traces that repeat as these do"
        )


def fit(detector: Detector, train: Sequences, seed: int, validation: Sequences | None = None) -> Detector:
    """Fits a detector to normal traces; if its scores need held-out ones, it learns from the others only.

    They are those that a language model of the same seed holds out: `validation` or, where there are none, a tenth.
    """
    if not detector.needs_held_out:
        return detector.fit(train)
    return detector.fit(*training.with_held_out(train, validation, seed, HELD_OUT))


def examples(archives: Iterable[TraceArchive], normal: TraceArchive, train: Sequences, held_out: Sequences) -> Examples:
    """The labelled traces of several archives, with ids of the archive `normal`; says on the terminal what they are.

    Left out are traces without a label, and those that equal a held-out one: to set a threshold they must be unknown.
    An attack that equals a trace labelled normal, there or in `normal`, is told.

    Raises:
      SyscallLMError: attacks or normal traces are missing, or calls cannot be mapped (see `translation.between`).
    """
    unknown_to = {calls.tobytes() for calls in held_out}
    found: dict[str, list[np.ndarray]] = {NORMAL: [], ATTACK: []}
    for archive in archives:
        batch, table = archive.read(), translation.between(archive, normal)
        labels = batch.column("label")
        told = [f"{int((labels == ATTACK).sum()):,} attacks", f"{int((labels == NORMAL).sum()):,} normal traces"]
        held = 0
        for label, traces in found.items():
            labelled = list(batch.calls.take(labels == label).translate(table))
            new = [calls for calls in labelled if calls.tobytes() not in unknown_to]
            held += len(labelled) - len(new)
            traces += new
        unlabelled = int(((labels != ATTACK) & (labels != NORMAL)).sum())
        told += [f"{unlabelled:,} without a label left out"] * (unlabelled > 0)
        told += [f"{held:,} left out that set the threshold"] * (held > 0)
        print(f"examples of {archive.path}: {', '.join(told)}")
    is_attack = np.repeat([False, True], [len(found[NORMAL]), len(found[ATTACK])])
    taught_by = Examples(Sequences.from_list([*found[NORMAL], *found[ATTACK]]), is_attack)
    usual = {calls.tobytes() for calls in [*train, *found[NORMAL]]}
    if both := sum(calls.tobytes() in usual for calls in found[ATTACK]):
        print(f"note: {both:,} of these attacks equal a normal trace, call by call")
    if len(found[ATTACK]) < FEW_ATTACKS:
        few = f"{len(found[ATTACK])} attacks are few to be taught by"
        print(f"note: {few}; on ADFA-LD {FEW_ATTACKS} gained nothing yet, and 10 did harm")
    return taught_by


def note_of_calibration(calibration: Calibration, false_alarm_rate: float) -> None:
    """The same of the traces that a model's thresholds come from."""
    note_of_few(calibration.held_out.shape[1], false_alarm_rate, differ=calibration.distinct)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Labelled traces on which detectors are compared, ids in one vocabulary.

    Attributes:
      train: normal traces to learn from.
      traces: N traces to judge, normal ones first.
      is_attack: bool `[N]`.
      families: the kind of each attack, `[attacks]`.
      copies: bool `[N]`, normal traces that equal a training trace, call by call.
      validation: normal traces that are held out, if a split says which.
    """

    train: Sequences
    traces: Sequences
    is_attack: np.ndarray
    families: np.ndarray
    copies: np.ndarray
    validation: Sequences | None = None

    @classmethod
    def of(
        cls,
        train: Sequences,
        normal: Sequences,
        attack: Sequences,
        families: np.ndarray,
        validation: Sequences | None = None,
    ) -> "Benchmark":
        """Joins normal traces and attacks, and finds the copies."""
        traces = Sequences.from_list([*normal, *attack])
        is_attack = np.arange(len(traces)) >= len(normal)
        return cls(train, traces, is_attack, families, copies_of(train, traces) & ~is_attack, validation)

    def fit(self, detector: Detector, seed: int) -> Detector:
        """See `fit`."""
        return fit(detector, self.train, seed, self.validation)

    @property
    def counts(self) -> dict[str, int]:
        """How many traces of each kind, for results."""
        attacks, copies = int(self.is_attack.sum()), int(self.copies.sum())
        return {"normal": len(self.traces) - attacks, "attack": attacks, "copies": copies}

    def summaries(self, scores: np.ndarray) -> dict[str, dict[str, Any]]:
        """`evaluation.summary` of scores `[N]`, for all traces and without the copies."""
        attack = scores[self.is_attack]
        return {
            "all": evaluation.summary(scores[~self.is_attack], attack, self.families),
            "without_copies": evaluation.summary(scores[~self.is_attack & ~self.copies], attack, self.families),
        }

    def effect(self, found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
        """What arithmetic does to surprisals (nats, of every call of `traces`), to scores, their ranks and the AUC."""
        from scipy.stats import rankdata  # takes half a second, which other commands need not wait for

        scores, expected = (scoring.means(surprisal, self.traces) for surprisal in (found, exact))
        auc, changed = (
            evaluation.curve(values[~self.is_attack], values[self.is_attack]).auc for values in (expected, scores)
        )
        return {
            "largest_difference": float(np.abs(found - exact).max()),
            "mean_difference": float(np.abs(found - exact).mean(dtype=np.float64)),
            "largest_difference_of_a_score": float(np.abs(scores - expected).max()),
            "rank_correlation": float(np.corrcoef(rankdata(scores), rankdata(expected))[0, 1]),
            "auc_float32": auc,
            "auc_difference": changed - auc,
        }


def copies_of(train: Sequences, traces: Sequences) -> np.ndarray:
    """Bool `[N]`: traces that equal a training trace, call by call."""
    known = {calls.tobytes() for calls in train}
    return np.array([calls.tobytes() in known for calls in traces], bool)


def benchmark(archive: TraceArchive, table: np.ndarray | None = None) -> Benchmark:
    """An archive's split "train" (normal traces) against its split "test" and all attacks outside "train".

    Args:
      archive: labelled traces.
      table: turns the archive's ids into others (see `Model.translation`); None keeps them.
    """
    batch = archive.read()
    attack = (batch.column("split") != "train") & (batch.column("label") == ATTACK)
    splits = (*(normal_split(batch, split) for split in ("train", "validation", "test")), attack)
    parts = [batch.calls.take(part) for part in splits]
    if table is not None:
        parts = [part.translate(table) for part in parts]
    train, validation, normal, attacks = parts
    return Benchmark.of(train, normal, attacks, batch.column("family")[attack].astype(str), validation)


def fingerprint(sequences: Sequences) -> str:
    """16 hexadecimal digits that change with any call or trace boundary."""
    digest = hashlib.sha256(np.ascontiguousarray(sequences.calls, np.uint16).tobytes())
    digest.update(np.ascontiguousarray(sequences.offsets, np.int64).tobytes())
    return digest.hexdigest()[:16]


def learned_from(model: Model, traces: int, calls: int) -> bool:
    """Whether so many traces with so many calls are those of a model's training, with or without the held-out ones."""
    sizes = [model.info.get(part, {}) for part in ("training", "held_out")]
    trained, held_out = ((size.get("traces", 0), size.get("calls", 0)) for size in sizes)
    return (traces, calls) in (trained, (trained[0] + held_out[0], trained[1] + held_out[1]))


def require_trained_on(model: Model, archive: TraceArchive) -> None:
    """Refuses a model that did not learn from this archive, with its seed and `HELD_OUT` of the traces held out.

    Raises:
      SyscallLMError: it did not.
    """
    configuration = model.info.get("configuration", {})
    train, held_out = training_traces(archive, HELD_OUT, int(configuration.get("seed", 0)))
    expected = {
        "training_data": fingerprint(train),
        "held_out_data": fingerprint(held_out),
        "vocabulary": archive.vocabulary.hash,
    }
    for name, value in expected.items():
        if configuration.get(name) != value:
            raise SyscallLMError(
                f"{model.path}: was not trained on {archive.path} with --held_out={HELD_OUT:g}: its {name} is "
                f"{configuration.get(name)!r}, not {value!r}"
            )
