"""Scores an archive with a trained model: a row a trace, with verdict and explanation.

  syscall-lm score --model=model --archive=traces.parquet --output=scores.parquet

A trace's score is its average negative log-likelihood under each member, combined by the ensemble, which by default
subtracts the median of training traces; above the threshold it is abnormal. The threshold is the one that held-out
normal traces exceed with the probability --far. The output holds the most surprising stretch of every trace and its
least expected call, and appears under its name only when it is complete; the manifest in its footer tells the model's
SHA-256, the flags, and how much was scored. A run that was killed is resumed by the same command: what it has scored
lies in OUTPUT.parts. On several accelerators or machines:

  syscall-lm score --engine=ray --model=model --archive=traces.parquet --output=scores.parquet [--ray_address=HOST:6379]

All machines must see model, archive and output under the same paths. The output is the same to the byte.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import pyarrow.parquet as pq
import tqdm
from absl import flags

from syscall_lm import files, scoring
from syscall_lm.detectors import ensemble
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.engines import local, ray, shards
from syscall_lm.engines.scorer import BatchScorer
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.highest import Highest
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to score (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Parquet file for the scores", required=True)
ENSEMBLE = flags.DEFINE_enum("ensemble", "leaky_relu", ensemble.METHODS, "how the members' scores become one")
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the threshold is set for")
STRETCH = flags.DEFINE_integer("stretch", 20, "calls in the most surprising stretch", lower_bound=1)
TOP = flags.DEFINE_integer(
    "top", 10, "how many of the most suspicious traces to print, equal scores once", lower_bound=0
)

OPERANDS = flags.DEFINE_enum(
    "operands", "float32", scoring.OPERANDS,
    "of matrix products on a CPU; bfloat16 is faster on processors with AVX512-BF16 or AMX, slower on others; it moved "
    "a trace's score by 0.09 at most on ADFA-LD",
)  # fmt: skip
SHARD_CALLS = flags.DEFINE_integer("shard_calls", 2**21, "calls that are scored before they are safe on disk", 1)
ENGINE = flags.DEFINE_enum("engine", "local", ["local", "ray"], "what scores: this process, or actors on Ray")
RAY_ADDRESS = flags.DEFINE_string("ray_address", "", "ray: address of a running cluster; empty starts Ray here")
WORKERS = flags.DEFINE_integer(
    "workers", 0, "ray: actors; 0: one for each accelerator, or each core if there is none", 0
)


def main() -> None:
    """Scores the archive batch by batch."""
    if ENGINE.value == "local" and (WORKERS.present or RAY_ADDRESS.present):
        raise SyscallLMError("--workers and --ray_address concern --engine=ray; without it this process scores")
    archive = TraceArchive(ARCHIVE.value)
    files.require_no_input(OUTPUT.value, [MODEL.value])
    with _engine_ready():
        scorer = BatchScorer(MODEL.value, ARCHIVE.value, *_choices())
        detector = scorer.detector
        data.note_of_calibration(detector.calibration, FAR.value)
        engine = _engine(scorer)
        started = time.monotonic()
        bar = tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None)
        with bar, profiled():
            resumed = shards.score_archive(
                archive, engine, scorer.schema, OUTPUT.value, _fingerprint(), SHARD_CALLS.value, bar.update
            )
    seconds = time.monotonic() - started
    if resumed:
        print(f"resumed: {resumed:,} shards had been scored by an earlier run")
    else:
        print(f"{archive.num_calls:,} calls, {archive.num_calls / seconds:,.0f} calls/s")
    _print_summary(detector)
    command.print_notice(archive.notice)
    print(f"scores: {OUTPUT.value}")


def _engine_ready() -> contextlib.AbstractContextManager[None]:
    if ENGINE.value == "local":
        return contextlib.nullcontext()
    jax.config.update("jax_platforms", "cpu")  # this process scores nothing; accelerators are for the actors
    return ray.cluster(RAY_ADDRESS.value, WORKERS.value)


def _engine(scorer: BatchScorer) -> shards.Engine:
    if ENGINE.value == "local":
        return local.engine(scorer)
    paths = os.path.abspath(MODEL.value), os.path.abspath(ARCHIVE.value)
    return ray.engine(paths[1], BatchScorer, (*paths, *_choices()), WORKERS.value)


def _choices() -> tuple[str, float, int, str]:
    """What `BatchScorer` takes beside the two paths."""
    return ENSEMBLE.value, FAR.value, STRETCH.value, OPERANDS.value


def _fingerprint() -> dict[str, Any]:
    """What decides the rows beside the archive: the model's files, and the flags."""
    digest = hashlib.sha256()
    for path in store.files_that_score(pathlib.Path(MODEL.value)):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return {
        "model": digest.hexdigest(),
        "ensemble": ENSEMBLE.value,
        "far": FAR.value,
        "stretch": STRETCH.value,
        "operands": OPERANDS.value,
    }


def _print_summary(detector: LanguageModelDetector) -> None:
    """Counts, and the most suspicious traces, read back a row group at a time."""
    output = pq.ParquetFile(OUTPUT.value)
    abnormal = unknown = 0
    worst = Highest(TOP.value, "score", _line, alike="with this score")
    for group in range(output.num_row_groups):
        rows = output.read_row_group(group)
        abnormal += int((rows["score"].to_numpy() > detector.threshold_).sum())
        unknown += int(rows["unknown_calls"].to_numpy().sum())
        worst.add(rows)
    print(
        f"{output.metadata.num_rows:,} traces: {abnormal:,} abnormal "
        f"(score above {detector.threshold_:.4f}, {ENSEMBLE.value}, far {FAR.value:g})"
    )
    if unknown:
        print(f"{unknown:,} calls are unknown to the model; they were scored as such")
    for text in worst.lines:
        print("  " + text)


def _line(row: Mapping[str, Any]) -> str:
    command_name = f" ({row['command']})" if row["command"] else ""
    calls = " ".join(row["stretch_calls"][:6])
    start, least = row["stretch_start"] + 1, row["least_expected"] + 1  # people count from 1
    text = (
        f"{row['verdict']:<8} {row['score']:8.4f}  {row['id']}{command_name}, {row['length']:,} calls; "
        f"at call {start}: {calls} ... ({row['stretch_nll']:.2f} nats per call); "
        f"least expected: {row['least_expected_call']} at {least}, {row['least_expected_nll']:.1f} nats"
    )
    return command.printable(text)


if __name__ == "__main__":
    command.run(main)
