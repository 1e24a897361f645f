"""Judges an archive window by window with an encoder-decoder or an autoencoder: a row a window, and its strangest call.

  syscall-lm train --archive=traces.parquet --model=model --members=encoder-decoder-10x64
  syscall-lm windows --archive=traces.parquet --model=model --output=windows.parquet

The windows of a trace follow one another without overlap (Soni et al. 2019, section IV). A window's score is the
average surprisal of its calls in nats; it is abnormal above the threshold that windows of held-out normal traces exceed
with the probability --far. Each row names the window's least expected call. The output appears under its name only when
it is complete. `score` judges whole traces by the same models, and the library's `watch` live ones, call by call
(syscall_lm/detectors/window_models.py).
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags

from syscall_lm import files
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.highest import Highest
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import shapes, store
from syscall_lm.models.store import Model
from syscall_lm.traces.archive import TraceArchive

SCHEMA = pa.schema(
    {
        "trace": pa.string(),
        "start": pa.int64(),
        "size": pa.int32(),
        "score": pa.float64(),
        "verdict": pa.string(),
        "least_expected": pa.int64(),
        "least_expected_call": pa.string(),
        "least_expected_nll": pa.float64(),
    }
)

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to judge (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Parquet file for the windows", required=True)
MEMBER = flags.DEFINE_string("member", "", "the member to use, by its name; not needed where only one reads windows")
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate, of windows, that the threshold is set for")
TOP = flags.DEFINE_integer("top", 10, "how many of the most suspicious windows to print", lower_bound=0)


@profiled()
def main() -> None:
    """Judges the archive batch by batch."""
    archive = TraceArchive(ARCHIVE.value)
    model = store.load(pathlib.Path(MODEL.value))
    files.require_no_input(OUTPUT.value, [archive.path, MODEL.value])
    detector = load(model, MEMBER.value, FAR.value)
    windows = abnormal = 0
    worst = Highest(TOP.value, "score", line)
    with files.complete_file(OUTPUT.value) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        with tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None) as bar:
            for rows in judged(detector, model, archive):
                writer.write_table(rows)
                worst.add(rows)
                abnormal += rows["verdict"].to_pylist().count("abnormal")
                windows += len(rows)
                bar.update(sum(rows["size"].to_pylist()))
    print(
        f"{windows:,} windows: {abnormal:,} abnormal (score above {detector.window_threshold_:.4f}, far {FAR.value:g})"
    )
    data.note_of_few(detector.held_out_windows_, FAR.value, "windows")
    for text in worst.lines:
        print("  " + text)
    command.print_notice(archive.notice)
    print(f"windows: {OUTPUT.value}")


def load(model: Model, member: str, false_alarm_rate: float) -> WindowDetector:
    """The detector around a member that reads windows.

    Raises:
      SyscallLMError: there is none, there are several and none is named, or see `WindowDetector.load`.
    """
    own = [one for one in model.members if isinstance(one.shape, shapes.WindowShape) and member in ("", one.name)]
    if len(own) != 1:
        names = ", ".join(one.name for one in model.members)
        which = f" called {member!r}" if member else ""
        advice = "name one by --member" if own else "`train --members=encoder-decoder-10x64` makes one"
        raise SyscallLMError(f"{model.path}: {len(own) or 'no'} members{which} read windows, of {names}; {advice}")
    kind = catalogue.OF_WINDOWS[shapes.module_of(own[0].shape).NAME]
    return kind.load(model, own[0].name, false_alarm_rate)


def judged(detector: WindowDetector, model: Model, archive: TraceArchive) -> Iterator[pa.Table]:
    """The verdicts on the windows of each batch of traces, in the archive's order."""
    table, vocabulary = model.translation(archive), archive.vocabulary
    names = np.array([*vocabulary.names, vocabulary.name(vocabulary.unk)], object)
    for batch in archive.batches():
        traces = batch.calls.translate(table)
        found = detector.verdicts(traces)
        own_ids = batch.calls.calls[traces.offsets[:-1][found.trace] + found.least_expected]
        columns = [
            batch.info["id"].combine_chunks().take(pa.array(found.trace)),
            found.start,
            found.size,
            found.score,
            ["abnormal" if one else "normal" for one in found.abnormal],
            found.least_expected,
            names[own_ids],
            found.surprisal,
        ]
        yield pa.table([pa.array(values) for values in columns], names=SCHEMA.names).cast(SCHEMA)


def line(row: Mapping[str, Any]) -> str:
    """A window for people, who count from 1."""
    text = (
        f"{row['verdict']:<8} {row['score']:8.4f}  {row['trace']}, calls {row['start'] + 1} to "
        f"{row['start'] + row['size']}; least expected: {row['least_expected_call']} at {row['least_expected'] + 1}, "
        f"{row['least_expected_nll']:.1f} nats"
    )
    return command.printable(text)


if __name__ == "__main__":
    command.run(main)
