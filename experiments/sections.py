"""Finds the sections of traces that are surprising, and those that are not: the longest of each, and how likely it is.

  syscall-lm sections --archive=traces.parquet --model=model --output=sections.parquet

A trace's likelihood is a product over its calls, so any section of it has one too (Kim et al., section 4). For each
trace a row holds the longest section whose average surprisal is at least a level, which shows an attack hidden among
normal calls, and the longest one whose average is at most the level, which shows what of a suspicious trace is
familiar. The level is --level, in nats per call; without it the threshold that held-out normal traces exceed with the
probability --far. Surprisals are the members' average. The output appears under its name only when it is complete.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tqdm
from absl import flags

from syscall_lm import files, scoring
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.detectors.sections import longest_section, section_means
from syscall_lm.experiments import command, data
from syscall_lm.experiments.highest import Highest
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import store
from syscall_lm.models.store import Model
from syscall_lm.traces.archive import TraceArchive

SECTION = {"start": pa.int64(), "length": pa.int64(), "nll": pa.float64(), "log_likelihood": pa.float64()}
SCHEMA = pa.schema(
    {
        **{"trace": pa.string(), "length": pa.int64(), "nll": pa.float64()},
        **{f"{side}_{name}": kind for side in ("above", "below") for name, kind in SECTION.items()},
    }
)

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to look at (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Parquet file for the sections", required=True)
LEVEL = flags.DEFINE_float("level", None, "nats per call; without it the model's threshold", lower_bound=0)
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate of the model's threshold")
TOP = flags.DEFINE_integer("top", 10, "how many of the longest sections above the level to print", lower_bound=0)


@profiled()
def main() -> None:
    """Looks at the archive batch by batch."""
    archive = TraceArchive(ARCHIVE.value)
    model = store.load(pathlib.Path(MODEL.value))
    files.require_no_input(OUTPUT.value, [archive.path, MODEL.value])
    detector = LanguageModelDetector.load(model, "average", FAR.value)
    if LEVEL.value is None:
        data.note_of_calibration(detector.calibration, FAR.value)
    level = detector.threshold_ if LEVEL.value is None else LEVEL.value
    traces, longest = 0, Highest(TOP.value, "above_length", line)
    with files.complete_file(OUTPUT.value) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        with tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None) as bar:
            for rows in found(detector, model, archive, level):
                writer.write_table(rows)
                longest.add(rows.filter(pc.field("above_length") > 0))
                traces += len(rows)
                bar.update(sum(rows["length"].to_pylist()))
    print(f"{traces:,} traces; the longest sections of {level:.4f} nats per call or more:")
    for text in longest.lines:
        print("  " + text)
    command.print_notice(archive.notice)
    print(f"sections: {OUTPUT.value}")


def found(detector: LanguageModelDetector, model: Model, archive: TraceArchive, level: float) -> Iterator[pa.Table]:
    """The rows of each batch of traces, in the archive's order."""
    table = model.translation(archive)
    for batch in archive.batches():
        traces = batch.calls.translate(table)
        surprisal = detector.scorer.surprisal(traces).mean(0)
        columns = [batch.info["id"].combine_chunks(), traces.lengths, scoring.means(surprisal, traces)]
        for above in (True, False):
            pairs = zip(traces.offsets[:-1], traces.offsets[1:], strict=True)
            sections = np.array([longest_section(surprisal[i:j], level, above) for i, j in pairs], np.int64)
            starts, lengths = sections.reshape(-1, 2)[:, 0], np.diff(sections.reshape(-1, 2), axis=1)[:, 0]
            exists = lengths > 0
            begins = (traces.offsets[:-1] + starts)[exists]
            means = np.full(len(traces), np.nan)
            means[exists] = section_means(surprisal, begins, begins + lengths[exists])
            columns += [starts, lengths, means, np.where(exists, -means * lengths, 0.0)]
        arrays = [pa.array(values, from_pandas=True) for values in columns]  # a section that is empty has no average
        yield pa.table(arrays, names=SCHEMA.names).cast(SCHEMA)


def line(row: Mapping[str, Any]) -> str:
    """A trace's longest section above the level, for people, who count from 1."""
    text = (
        f"{row['above_length']:>8,} calls  {row['trace']}, calls {row['above_start'] + 1:,} to "
        f"{row['above_start'] + row['above_length']:,} of {row['length']:,}: {row['above_nll']:.4f} nats per call"
    )
    return command.printable(text)


if __name__ == "__main__":
    command.run(main)
