"""Calibrates a model on normal traces of the host where it is to be used: renews the scores that thresholds come from.

  syscall-lm calibrate --model=model --archive=normal.parquet --split=validation

Everything in the chosen split that is not labelled as an attack counts as normal. The ensemble's medians stay those of
the training traces (Kim et al., eq. 3), unless --medians is given: then they, too, come from these traces, which suits
a model that was trained elsewhere, and mends a calibration that is missing or damaged. Traces that the model learned
from make no promise for new ones; where they are the training archive's, that is said.
"""

import dataclasses
import json
import pathlib

import numpy as np
from absl import flags

from syscall_lm import files, scoring
from syscall_lm.detectors import ensemble
from syscall_lm.detectors.base import traces_needed
from syscall_lm.detectors.language_model import load_calibration, trace_and_window_scores
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "archive with normal traces (made by `ingest`)", required=True)
SPLIT = flags.DEFINE_string("split", "", "split of the archive to use; empty for traces without a split")
MEDIANS = flags.DEFINE_bool("medians", False, "also renew the medians and spreads of the ensemble")
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate to print thresholds for")


@profiled()
def main() -> None:
    """Scores the traces and rewrites the model's calibration."""
    traces_needed(FAR.value)  # no rate is refused before anything is scored
    path = pathlib.Path(MODEL.value)
    model = store.load(path)
    archive = TraceArchive(ARCHIVE.value)
    table = model.translation(archive)
    before = None if MEDIANS.value else load_calibration(path, model.members)
    scorer, sizes = scoring.Scorer(model.members), [member.shape for member in model.members]
    parts, calls = [], 0
    for batch in archive.batches():
        traces = batch.calls.take(data.normal_split(batch, SPLIT.value))
        calls += len(traces.calls)
        parts.append(trace_and_window_scores(scorer, sizes, traces.translate(table)))
    held_out = np.concatenate([scores for scores, _ in parts], axis=1)
    windows = [np.concatenate(of_member) for of_member in zip(*(of_all for _, of_all in parts), strict=True)]
    if not held_out.shape[1]:
        where = f"in split {SPLIT.value!r}" if SPLIT.value else "without a split"
        raise SyscallLMError(f"{archive.path}: no normal traces {where}; name a split with --split")
    source = f"{held_out.shape[1]} normal traces of {archive.path.name}"
    if SPLIT.value:
        source += f", split {SPLIT.value!r}"
    if learned := data.learned_from(model, held_out.shape[1], calls):
        source += ", from which the model learned"
    if before is None:
        calibration = ensemble.Calibration.from_scores(held_out, held_out, source, windows)
    else:
        thinned = tuple(map(ensemble.thinned, windows))
        calibration = dataclasses.replace(before, held_out=held_out, source=source, windows=thinned)
    thresholds = {method: calibration.threshold(method, FAR.value) for method in ensemble.METHODS}
    files.write_text(path / store.CALIBRATION, json.dumps(calibration.to_json(scorer.names)) + "\n")
    print(f"{path}: calibrated on {source}; thresholds for a false alarm rate of {FAR.value:g}:")
    for method, threshold in thresholds.items():
        print(f"  {method}: {threshold:.4f}")
    data.note_of_calibration(calibration, FAR.value)
    if learned:
        print("note: the model learned from these traces; for new ones their thresholds promise nothing")


if __name__ == "__main__":
    command.run(main)
