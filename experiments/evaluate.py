"""Evaluates a model on labelled traces: ROC, AUC, false alarms and detections, per attack family, beside others.

  syscall-lm evaluate --model=model --archive=traces.parquet --output=results --detectors=stide,ngram,hmm

Uses the archive's split "test": normal traces and attacks. The others (syscall_lm/detectors/catalogue.py) learn
from the split "train" of the same archive.
Every figure is given twice: for all normal traces, and without those that exactly copy a training trace.

Kim et al. (arXiv 1611.01726), section 3.2, figure 3. The pipeline is checked by STIDE, whose figures on ADFA-LD's
official split are known independently: windows of 6 give an AUC of 0.827 and 26.7 % false alarms at 90 % detection.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import evaluation, files
from syscall_lm.detectors import catalogue, ensemble
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, comparison, data, provenance
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import store
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "archive with labelled traces (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "directory for results.json, table.md and roc.png", required=True)
DETECTORS = flags.DEFINE_list(
    "detectors", ["stide"], f"to compare with: {', '.join(catalogue.NAMES)}; the model's own are always there"
)
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the model's own threshold is set for")


@profiled()
def main() -> None:
    """Scores with every detector, then writes and prints the figures."""
    model = store.load(pathlib.Path(MODEL.value))
    detector = LanguageModelDetector.load(model, false_alarm_rate=FAR.value)
    archive = TraceArchive(ARCHIVE.value)
    seed = int(model.info.get("configuration", {}).get("seed", 0))
    names = comparison.parse_detectors(DETECTORS.value) if DETECTORS.value else []
    others = catalogue.build(names, model.vocabulary.size, model.members, seed)
    benchmark = data.benchmark(archive, model.translation(archive))
    is_attack = benchmark.is_attack
    if is_attack.all() or not is_attack.any():  # also where there are no traces
        counts = benchmark.counts
        raise SyscallLMError(
            f"{archive.path}: an evaluation needs normal traces of split 'test' ({counts['normal']}) and attacks "
            f"({counts['attack']}); `ingest` takes --label and --split"
        )
    data.note_of_calibration(detector.calibration, FAR.value)
    scores = all_scores(detector, others, benchmark, seed)
    summaries = {name: benchmark.summaries(values) for name, values in scores.items()}
    result = {
        "model": model.path.name,
        "members": detector.scorer.names,
        "archive": archive.path.name,
        "notice": archive.notice,
        "traces": benchmark.counts,
        "data": data.fingerprint(benchmark.traces),
        "operating_points": operating_points(detector, scores, is_attack),
        "detectors": summaries,
        "configuration": provenance.configuration(main),
        "environment": provenance.environment(),
    }
    output = pathlib.Path(OUTPUT.value)
    text = table_of(result)
    curves = {name: evaluation.curve(values[~is_attack], values[is_attack]) for name, values in scores.items()}
    files.write_text(output / "results.json", json.dumps(result, indent=1) + "\n")
    files.write_text(output / "table.md", text)
    with files.complete_file(output / "roc.png") as temporary:
        figures.save(figures.roc(curves), temporary)
    print(text)
    print(f"results: {output}")


def all_scores(
    detector: LanguageModelDetector, others: dict[str, Detector], benchmark: data.Benchmark, seed: int
) -> dict[str, np.ndarray]:
    """Scores `[N]` of every member, every ensemble of several members, and others (if there is what to learn from)."""
    traces = benchmark.traces
    members = detector.member_scores(traces)
    scores = dict(zip(detector.scorer.names, members, strict=True))
    if len(members) > 1:
        scores |= {method: detector.calibration.combine(members, method) for method in ensemble.METHODS}
    if len(benchmark.train):
        others = {name: other for name, other in others.items() if name not in scores}
        scores |= {name: benchmark.fit(other, seed).decision_function(traces) for name, other in others.items()}
    return scores


def operating_points(
    detector: LanguageModelDetector, scores: dict[str, np.ndarray], is_attack: np.ndarray
) -> dict[str, Any]:
    """What really happens at the thresholds that held-out normal traces set."""
    points = {}
    names = detector.scorer.names
    # A member alone is judged alike by every method.
    methods = {method: method for method in ensemble.METHODS} if len(names) > 1 else {names[0]: "average"}
    for name, method in methods.items():
        threshold = detector.calibration.threshold(method, FAR.value)
        abnormal = scores[name] > threshold
        points[name] = {
            "far_asked": FAR.value,
            "threshold": threshold,
            "false_alarm_rate": float(abnormal[~is_attack].mean()),
            "detection_rate": float(abnormal[is_attack].mean()),
        }
    return points


def table_of(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    traces = result["traces"]
    lines = [
        f"{traces['normal']:,} normal traces ({traces['copies']:,} copy a training trace), "
        f"{traces['attack']:,} attacks; archive {result['archive']}, model {result['model']}.",
        *[result["notice"]] * bool(result["notice"]),
        "FA@d: false alarm rate at detection rate d. D@f: detection rate at false alarm rate f. The interval is a "
        "bootstrap over traces.",
        "",
        *comparison.tables({name: {"runs": [both]} for name, both in result["detectors"].items()}, detections=True),
    ]
    if result["operating_points"]:
        lines += ["", "### At the model's own thresholds", ""]
        lines += ["| score | asked false alarm rate | threshold | false alarm rate | detection rate |"]
        lines += ["|---|---|---|---|---|"]
        for name, point in result["operating_points"].items():
            lines.append(
                f"| {name} | {100 * point['far_asked']:g} % | {point['threshold']:.4f} | "
                f"{100 * point['false_alarm_rate']:.1f} % | {100 * point['detection_rate']:.1f} % |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
