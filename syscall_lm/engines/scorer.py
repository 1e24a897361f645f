"""From a batch of traces to rows of scores, whoever calls it: every engine runs this."""

import json
import os
import pathlib

import numpy as np
import pyarrow as pa

from syscall_lm import scoring
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.models import store
from syscall_lm.traces.archive import METADATA_KEY, TOLD, TraceArchive, TraceBatch


class BatchScorer:
    """Scores and explains the traces of one archive with one model, a batch at a time.

    Args:
      model: path of a model directory.
      archive: path of the archive that the batches are from.
      method: how the members' scores become one, see `ensemble`.
      false_alarm_rate: what the threshold is set for.
      stretch: calls in the most surprising stretch.
      operands: of matrix products, see `Scorer`.

    Attributes:
      detector: the loaded model.
      schema: of the rows; its metadata says how they were made.

    Raises:
      SyscallLMError: model or archive is missing or damaged, or the two do not fit.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        archive: str | os.PathLike[str],
        method: str,
        false_alarm_rate: float,
        stretch: int,
        operands: str,
    ):
        loaded, opened = store.load(pathlib.Path(model)), TraceArchive(archive)
        self.detector = LanguageModelDetector.load(loaded, method, false_alarm_rate, operands)
        self.schema = _schema(self.detector, loaded.path, opened.path)
        self._table = loaded.translation(opened)
        self._vocabulary = loaded.vocabulary
        self._stretch = stretch

    def __call__(self, batch: TraceBatch) -> pa.Table:
        """Scores a batch.

        Args:
          batch: N traces, ids in the archive's vocabulary.

        Returns:
          N rows of `schema`: what is known of the trace, length, unknown calls, a score per member, the ensemble's
          score, verdict, the stretch with the highest mean surprisal (averaged over members), and the least expected
          call.
        """
        detector, vocabulary = self.detector, self._vocabulary
        calls = batch.calls.translate(self._table)
        surprisal = detector.scorer.surprisal(calls)
        members = scoring.means(surprisal, calls)
        scores = detector.calibration.combine(members, detector.method)
        average = surprisal.mean(axis=0)
        starts, lengths, means = scoring.most_surprising_stretches(average, calls, self._stretch)
        least, nats = scoring.least_expected(average, calls)
        first = calls.offsets[:-1] + starts
        names = np.array([*vocabulary.names, vocabulary.name(vocabulary.unk)], object)
        columns = {
            **{name: batch.info[name] for name in TOLD},
            "length": calls.lengths,
            "unknown_calls": np.add.reduceat(calls.calls == vocabulary.unk, calls.offsets[:-1], dtype=np.int64),
            **{f"nll_{name}": members[i] for i, name in enumerate(detector.scorer.names)},
            "score": scores,
            "verdict": np.where(scores > detector.threshold_, "abnormal", "normal"),
            "stretch_start": starts,
            "stretch_length": lengths,
            "stretch_nll": means,
            "stretch_calls": [
                names[calls.calls[begin : begin + length]].tolist()
                for begin, length in zip(first, lengths, strict=True)
            ],
            "least_expected": least,
            "least_expected_call": names[calls.calls[calls.offsets[:-1] + least]],
            "least_expected_nll": nats,
        }
        return pa.table(columns).cast(self.schema)


def _schema(detector: LanguageModelDetector, model: pathlib.Path, archive: pathlib.Path) -> pa.Schema:
    header = {
        "model": model.name,
        "archive": archive.name,
        "ensemble": detector.method,
        "far": detector.false_alarm_rate,
        "threshold": detector.threshold_,
        "calibration": detector.calibration.source,
    }
    return pa.schema(
        [
            *((name, pa.string()) for name in TOLD),
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
