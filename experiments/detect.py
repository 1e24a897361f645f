"""Learns normal traces with any detectors of the catalogue, without training a model, and judges an archive with them.

  syscall-lm detect --normal=normal.parquet --archive=suspect.parquet --output=verdicts.parquet --detectors=ngram,stide

For those who want a verdict in seconds, or a second opinion beside a model's: n-grams, STIDE, an HMM and others
(syscall_lm/detectors/catalogue.py) learn from the normal traces of one archive and score every trace of another, whose
calls are mapped by name. A tenth of the normal traces, or their split "validation", is held out; above the score that
these exceed with the probability --far a trace is abnormal. The default pairs an n-gram, which looks at whole traces,
with `sets-and-mixture`, which on ADFA-LD is the best that sees normal traces only, and which an attacker can talk round
with normal calls (results/kim2017/STUDY.md). Who knows some attacks already can have `taught` learn from them as well:
--examples names archives of labelled traces, attacks and normal ones, best such that were false alarms.

The output holds a row a trace, and appears under its name only when it is complete.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags

from syscall_lm import files
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.taught import Examples
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.highest import Highest
from syscall_lm.traces import translation
from syscall_lm.traces.archive import METADATA_KEY, TOLD, TraceArchive, TraceBatch
from syscall_lm.traces.trace import Sequences

CHOICE = (*catalogue.ALONE, *catalogue.TAUGHT)

NORMAL = flags.DEFINE_string("normal", None, "archive of normal traces to learn from (made by `ingest`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to judge (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Parquet file for scores and verdicts", required=True)
DETECTORS = flags.DEFINE_list(
    "detectors", ["ngram", "sets-and-mixture"], f"the first orders what is printed; of {', '.join(CHOICE)}"
)
EXAMPLES = flags.DEFINE_list(
    "examples",
    [],
    f"archives (made by `ingest`) of labelled traces, attacks and normal ones, for {', '.join(catalogue.TAUGHT)}",
)
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the thresholds are set for")
SEED = flags.DEFINE_integer(
    "seed", 0, "of what is held out, and of everything random", lower_bound=0, upper_bound=2**32 - 1
)
TOP = flags.DEFINE_integer(
    "top", 10, "how many of the most suspicious traces to print, equal scores once", lower_bound=0
)


def main() -> None:
    """Learns, then judges batch by batch."""
    if needy := [name for name in DETECTORS.value if name in catalogue.NAMES and name not in CHOICE]:
        raise SyscallLMError(f"--detectors={needy[0]}: looks into a trained model, which `score` judges by")
    names = comparison.parse_detectors(DETECTORS.value, CHOICE)
    taught = [name for name in names if name in catalogue.TAUGHT]
    if taught and not EXAMPLES.value:
        raise SyscallLMError(f"--detectors={taught[0]}: is taught by labelled traces; --examples names their archives")
    if EXAMPLES.value and not taught:
        willing = ", ".join(catalogue.TAUGHT)
        raise SyscallLMError(f"--examples: none of --detectors={','.join(names)} learns from them, as {willing} does")
    if len(set(EXAMPLES.value)) < len(EXAMPLES.value):
        raise SyscallLMError(f"--examples={','.join(EXAMPLES.value)}: an archive that stands twice would count twice")
    normal, archive = TraceArchive(NORMAL.value), TraceArchive(ARCHIVE.value)
    sources = [TraceArchive(path) for path in EXAMPLES.value]
    files.require_no_input(OUTPUT.value, [normal.path, archive.path, *(source.path for source in sources)])
    table = translation.between(archive, normal)
    counts = dict.fromkeys(names, 0)
    unknown = taught_by = 0
    worst = Highest(TOP.value, f"score_{names[0]}", lambda row: line(row, names), alike="with this score")
    with files.complete_file(OUTPUT.value) as temporary:
        train, held_out = data.training_traces(normal, data.HELD_OUT, SEED.value)
        examples = data.examples(sources, normal, train, held_out) if sources else None
        known = {calls.tobytes() for calls in examples.traces} if examples else set()
        detectors = learned(names, normal, train, held_out, examples)
        schema = _schema(detectors, normal, archive, sources, examples)
        bar = tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None)
        with pq.ParquetWriter(temporary, schema) as writer, bar:
            for batch in archive.batches():
                calls = batch.calls.translate(table)
                rows = judged(detectors, batch, calls, normal.vocabulary.unk).cast(schema)
                writer.write_table(rows)
                worst.add(rows)
                for name in names:
                    counts[name] += rows[f"verdict_{name}"].to_pylist().count("abnormal")
                unknown += sum(rows["unknown_calls"].to_pylist())
                taught_by += sum(trace.tobytes() in known for trace in calls) if known else 0
                bar.update(int(batch.calls.offsets[-1]))
    for name, detector in detectors.items():
        above = f"score above {detector.threshold_:.4f}, far {FAR.value:g}"
        print(f"{name}: {counts[name]:,} of {archive.num_traces:,} traces abnormal ({above})")
    if taught_by:
        print(
            f"note: {taught_by:,} of the traces are examples themselves, known to {', '.join(taught)} by their labels"
        )
    if unknown:
        print(f"{unknown:,} calls are unknown to {normal.path}; they were judged as such")
    for text in worst.lines:
        print("  " + text)
    command.print_notice(archive.notice)
    print(f"verdicts: {OUTPUT.value}")


def learned(
    names: list[str], normal: TraceArchive, train: Sequences, held_out: Sequences, examples: Examples | None
) -> dict[str, Detector]:
    """Fitted detectors by name, with thresholds from held-out traces."""
    data.note_of_few(len(held_out), FAR.value, differ=data.distinct(held_out))
    detectors = catalogue.build(names, normal.vocabulary.size, (), SEED.value, examples)
    for name, detector in detectors.items():
        started = time.monotonic()
        detector.false_alarm_rate = FAR.value
        detector.fit(train, held_out)
        print(f"{name}: learned {len(train):,} traces in {time.monotonic() - started:.1f} s", flush=True)
    return detectors


def judged(detectors: dict[str, Detector], batch: TraceBatch, calls: Sequences, unknown: int) -> pa.Table:
    """A row a trace: what is known of it, then score and verdict of each detector.

    Args:
      detectors: fitted.
      batch: N traces.
      calls: theirs, in the detectors' ids.
      unknown: the detectors' id of calls that they do not know.
    """
    columns = {
        **{name: batch.info[name] for name in TOLD},
        "length": calls.lengths,
        "unknown_calls": np.add.reduceat(calls.calls == unknown, calls.offsets[:-1], dtype=np.int64),
    }
    for name, detector in detectors.items():
        scores = detector.decision_function(calls)
        columns[f"score_{name}"] = scores
        columns[f"verdict_{name}"] = np.where(scores > detector.threshold_, "abnormal", "normal")
    return pa.table(columns)


def _schema(
    detectors: dict[str, Detector],
    normal: TraceArchive,
    archive: TraceArchive,
    sources: list[TraceArchive],
    examples: Examples | None,
) -> pa.Schema:
    header = {
        "normal": normal.path.name,
        "archive": archive.path.name,
        "examples": [source.path.name for source in sources],
        "examples_data": data.fingerprint(examples.traces) if examples else "",
        "far": FAR.value,
        "seed": SEED.value,
        "thresholds": {name: detector.threshold_ for name, detector in detectors.items()},
    }
    columns = [*((name, pa.string()) for name in TOLD), ("length", pa.int64()), ("unknown_calls", pa.int64())]
    for name in detectors:
        columns += [(f"score_{name}", pa.float64()), (f"verdict_{name}", pa.string())]
    return pa.schema(columns, metadata={METADATA_KEY: json.dumps(header)})


def line(row: Mapping[str, Any], names: list[str]) -> str:
    """A trace's verdicts, for people."""
    told = ", ".join(f"{name} {row[f'score_{name}']:.4f} {row[f'verdict_{name}']}" for name in names)
    called = f" ({row['command']})" if row["command"] else ""
    return command.printable(f"{row['id']}{called}, {row['length']:,} calls: {told}")


if __name__ == "__main__":
    command.run(main)
