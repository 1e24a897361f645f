"""Scores an archive with a trained model: a row a trace, with verdict and explanation.

  syscall-lm score --model=model --archive=traces.parquet --output=scores.parquet

A trace's score is its average negative log-likelihood under each member, combined by the ensemble; above the threshold
it is abnormal. The threshold is the one that held-out normal traces exceed with the probability --far. The output holds
the most surprising stretch of every trace and its least expected call, and appears under its name only when it is
complete. A run that was killed is resumed by the same command: what it has scored lies in OUTPUT.parts.
"""

import hashlib
import json
import pathlib
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags

from syscall_lm import scoring
from syscall_lm.detectors import ensemble
from syscall_lm.detectors.base import traces_needed
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.engines import local
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.models import store
from syscall_lm.traces.archive import METADATA_KEY, TraceArchive, TraceBatch
from syscall_lm.traces.vocabulary import Vocabulary

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to score (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Parquet file for the scores", required=True)
ENSEMBLE = flags.DEFINE_enum("ensemble", "leaky_relu", ensemble.METHODS, "how the members' scores become one")
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the threshold is set for")
STRETCH = flags.DEFINE_integer("stretch", 20, "calls in the most surprising stretch", lower_bound=1)
TOP = flags.DEFINE_integer("top", 10, "how many of the most suspicious traces to print", lower_bound=0)

SHARD_CALLS = flags.DEFINE_integer("shard_calls", 2**21, "calls that are scored before they are safe on disk", 1)

INFO_COLUMNS = ("id", "source", "command", "host", "label", "family", "split")


def main(argv: list[str]) -> None:
    """Scores the archive batch by batch."""
    if argv:
        raise SyscallLMError(f"score takes flags only; what is {argv[0]!r}?")
    model = store.load(pathlib.Path(MODEL.value))
    detector = LanguageModelDetector.load(model, ENSEMBLE.value, FAR.value)
    archive = TraceArchive(ARCHIVE.value)
    table = data.translation(model, archive)
    held_out = detector.calibration.held_out.shape[1]
    if held_out < traces_needed(FAR.value):
        print(
            f"note: {held_out} held-out traces cannot promise a false alarm rate of {FAR.value:g} "
            f"({traces_needed(FAR.value)} could); the threshold is their highest score"
        )
    started = time.monotonic()
    with tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None) as bar:
        resumed = local.score_archive(
            archive,
            lambda batch: score_batch(detector, batch, table, model.vocabulary, STRETCH.value),
            _schema(detector, archive),
            OUTPUT.value,
            _fingerprint(archive),
            SHARD_CALLS.value,
            bar.update,
        )
    seconds = time.monotonic() - started
    if resumed:
        print(f"resumed: {resumed:,} shards had been scored by an earlier run")
    else:
        print(f"{archive.num_calls:,} calls, {archive.num_calls / seconds:,.0f} calls/s")
    _print_summary(detector)
    if archive.notice:
        print(archive.notice)
    print(f"scores: {OUTPUT.value}")


def _fingerprint(archive: TraceArchive) -> dict[str, Any]:
    """What decides the rows: the model's files, the archive as it is now, and the flags."""
    digest = hashlib.sha256()
    for name in ("model.json", store.CALIBRATION):
        digest.update((pathlib.Path(MODEL.value) / name).read_bytes())
    status = archive.path.stat()
    return {
        "model": digest.hexdigest(),
        "archive": [archive.path.name, status.st_size, status.st_mtime_ns],
        "ensemble": ENSEMBLE.value,
        "far": FAR.value,
        "stretch": STRETCH.value,
    }


def _print_summary(detector: LanguageModelDetector) -> None:
    """Counts, and the most suspicious traces, read back a row group at a time."""
    output = pq.ParquetFile(OUTPUT.value)
    abnormal = unknown = 0
    worst: list[dict] = []
    for group in range(output.num_row_groups):
        rows = output.read_row_group(group)
        scores = rows["score"].to_numpy()
        abnormal += int((scores > detector.threshold_).sum())
        unknown += int(rows["unknown_calls"].to_numpy().sum())
        highest = np.argsort(-scores, kind="stable")[: TOP.value]
        worst = sorted(worst + rows.take(pa.array(highest)).to_pylist(), key=lambda row: -row["score"])[: TOP.value]
    print(
        f"{output.metadata.num_rows:,} traces: {abnormal:,} abnormal "
        f"(score above {detector.threshold_:.4f}, {ENSEMBLE.value}, far {FAR.value:g})"
    )
    if unknown:
        print(f"{unknown:,} calls are unknown to the model; they were scored as such")
    for row in worst:
        print("  " + _line(row))


def score_batch(
    detector: LanguageModelDetector, batch: TraceBatch, table: np.ndarray, vocabulary: Vocabulary, stretch: int
) -> pa.Table:
    """Scores and explains the traces of a batch.

    Args:
      detector: a loaded model.
      batch: N traces of an archive.
      table: turns the archive's ids into the model's.
      vocabulary: the model's.
      stretch: calls in the most surprising stretch.

    Returns:
      N rows: what is known of the trace, length, unknown calls, a score per member, the ensemble's score, verdict, and
      the stretch with the highest mean surprisal (averaged over members) and the single call with the highest.
    """
    calls = batch.calls.translate(table)
    surprisal = detector.scorer.surprisal(calls)
    members = scoring.means(surprisal, calls)
    scores = detector.calibration.combine(members, detector.method)
    average = surprisal.mean(axis=0)
    starts, lengths, means = scoring.most_surprising_stretches(average, calls, stretch)
    least, _, nats = scoring.most_surprising_stretches(average, calls, 1)
    first = calls.offsets[:-1] + starts
    names = np.array([*vocabulary.names, vocabulary.name(vocabulary.unk)], object)
    columns = {
        **{name: batch.info[name] for name in INFO_COLUMNS},
        "length": calls.lengths,
        "unknown_calls": np.add.reduceat(calls.calls == vocabulary.unk, calls.offsets[:-1], dtype=np.int64),
        **{f"nll_{name}": members[i] for i, name in enumerate(detector.scorer.names)},
        "score": scores,
        "verdict": np.where(scores > detector.threshold_, "abnormal", "normal"),
        "stretch_start": starts,
        "stretch_length": lengths,
        "stretch_nll": means,
        "stretch_calls": [
            names[calls.calls[begin : begin + length]].tolist() for begin, length in zip(first, lengths, strict=True)
        ],
        "least_expected": least,
        "least_expected_call": names[calls.calls[calls.offsets[:-1] + least]],
        "least_expected_nll": nats,
    }
    return pa.table(columns)


def _schema(detector: LanguageModelDetector, archive: TraceArchive) -> pa.Schema:
    header = {
        "model": pathlib.Path(MODEL.value).name,
        "archive": archive.path.name,
        "ensemble": detector.method,
        "far": detector.false_alarm_rate,
        "threshold": detector.threshold_,
        "calibration": detector.calibration.source,
    }
    return pa.schema(
        [
            *((name, pa.string()) for name in INFO_COLUMNS),
            ("length", pa.int64()),
            ("unknown_calls", pa.int64()),
            *((f"nll_{name}", pa.float64()) for name in detector.scorer.names),
            ("score", pa.float64()),
            ("verdict", pa.string()),
            ("stretch_start", pa.int64()),
            ("stretch_length", pa.int64()),
            ("stretch_nll", pa.float64()),
            ("stretch_calls", pa.list_(pa.string())),
            ("least_expected", pa.int64()),
            ("least_expected_call", pa.string()),
            ("least_expected_nll", pa.float64()),
        ],
        metadata={METADATA_KEY: json.dumps(header)},
    )


def _line(row: dict) -> str:
    command_name = f" ({row['command']})" if row["command"] else ""
    calls = " ".join(row["stretch_calls"][:6])
    text = (
        f"{row['verdict']:<8} {row['score']:8.4f}  {row['id']}{command_name}, {row['length']:,} calls; "
        f"at call {row['stretch_start']}: {calls} ... ({row['stretch_nll']:.2f} nats per call); "
        f"least expected: {row['least_expected_call']} at {row['least_expected']}, {row['least_expected_nll']:.1f} nats"
    )
    return "".join(c if c.isprintable() else "?" for c in text)  # names come from captures: no terminal codes


if __name__ == "__main__":
    command.run(main)
