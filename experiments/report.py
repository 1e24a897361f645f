"""Writes a report on an archive that people read: one HTML file that needs nothing else, and its figures as PNG.

  syscall-lm report --model=model --archive=traces.parquet --output=report

It says how many traces are abnormal at which threshold, what the model was trained on, how well its scores tell
attacks from normal traces (where the archive has labels), what was skipped, and it shows the most suspicious traces
call by call. --scores saves the time to score the archive again. `report.html` is written last.

ADFA-LD's 2.7 million calls with one member of 32 cells take 7 seconds on two cores, 5 with --scores.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags
from matplotlib.figure import Figure

from syscall_lm import evaluation, files, scoring
from syscall_lm.detectors import ensemble
from syscall_lm.detectors.base import traces_needed
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.report_tally import Candidate, SavedScores, Tally, counters
from syscall_lm.models import lstm, store
from syscall_lm.models.store import Model
from syscall_lm.reports import figures, html
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences

MODEL = flags.DEFINE_string("model", None, "model directory (made by `train`)", required=True)
ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to report on (made by `ingest`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "directory for report.html and its figures", required=True)
SCORES = flags.DEFINE_string("scores", "", "scores of this archive under this model (made by `score`), to save time")
ENSEMBLE = flags.DEFINE_enum("ensemble", "leaky_relu", ensemble.METHODS, "how the members' scores become one")
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the threshold is set for")
STRETCH = flags.DEFINE_integer("stretch", 20, "calls in the most surprising stretch", lower_bound=1)
TOP = flags.DEFINE_integer("top", 10, "how many of the most suspicious traces to show", lower_bound=1)

CALLS_PER_BATCH = 2**21
MOST_ROWS = 12  # of a table whose length the archive decides
SCORE_MEANINGS = {
    "leaky_relu": "how far its average surprisal, in nats per call, lies above the median of normal training traces, "
    "averaged over the members (below a median only a thousandth counts)",
    "average": "its average surprisal in nats per call, averaged over the members",
    "vote": "how far its average surprisal lies above the median of normal training traces, in interquartile ranges, "
    "for the majority of the members",
}


def main() -> None:
    """Scores the archive (or reads its scores), draws, writes."""
    output = pathlib.Path(OUTPUT.value)
    if output.exists() and not output.is_dir():
        raise SyscallLMError(f"{output}: is a file; name a directory for the report")
    model = store.load(pathlib.Path(MODEL.value))
    archive = TraceArchive(ARCHIVE.value)
    table = model.translation(archive)
    saved = SavedScores(SCORES.value, [member.name for member in model.members], archive) if SCORES.value else None
    method, rate = ENSEMBLE.value, FAR.value
    if saved is not None:  # what was decided when scoring stands, unless a flag says otherwise
        method = method if ENSEMBLE.present else str(saved.header["ensemble"])
        rate = rate if FAR.present else float(saved.header["far"])
    detector = LanguageModelDetector.load(model, method, rate)

    tally = Tally(archive, table, model.vocabulary.unk, detector.calibration, method, TOP.value)
    with tqdm.tqdm(total=archive.num_calls, unit="call", unit_scale=True, disable=None) as bar:
        for batch in archive.batches(CALLS_PER_BATCH):
            if saved is not None:
                tally.add(batch, saved.take(batch))
            else:
                tally.add(batch, detector.member_scores(batch.calls.translate(table)))
            bar.update(len(batch.calls.calls))

    report = gather(model, detector, archive, tally)
    threshold = report.threshold
    pictures = [*report.pictures.values(), *(suspect.strip for suspect in report.suspects)]
    for picture in pictures:
        with files.complete_file(output / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.light)
    for stale in set(output.glob("trace-*.png")) - {output / f"{picture.name}.png" for picture in pictures}:
        stale.unlink()  # of a report with more traces
    files.write_text(output / "report.json", json.dumps(_numbers(report), indent=1) + "\n")
    files.write_text(output / "report.html", html.render(report))
    print(
        f"{report.traces:,} traces, {report.calls:,} calls: {report.abnormal:,} abnormal "
        f"(score above {threshold:.4f}, {method}, far {rate:g})"
    )
    if saved is not None and (method, rate) == (saved.header["ensemble"], saved.header["far"]):
        if not math.isclose(saved.threshold, threshold, abs_tol=1e-6):
            before = f"{saved.threshold:.4f}, the threshold before the model was calibrated again"
            print(f"note: {SCORES.value} judged by {before}")
    print(f"report: {output / 'report.html'}")


def gather(model: Model, detector: LanguageModelDetector, archive: TraceArchive, tally: Tally) -> html.Report:
    """Everything that the page says, from what was kept of the archive."""
    threshold, method = detector.threshold_, detector.method
    scores = detector.calibration.combine(tally.members, method)
    abnormal = scores > threshold
    judged = tally.evaluate(scores, threshold, detector.scorer.names, str(model.info.get("archive")))
    held_out = detector.calibration.held_out.shape[1]
    return html.Report(
        model=model.path.resolve().name,
        archive=archive.path.name,
        notice=archive.notice,
        traces=len(scores),
        calls=tally.calls,
        abnormal=int(abnormal.sum()),
        score_meaning=SCORE_MEANINGS[method],
        method=method,
        threshold=threshold,
        false_alarm_rate=detector.false_alarm_rate,
        needed=traces_needed(detector.false_alarm_rate),
        differ=detector.calibration.distinct,
        held_out=held_out,
        learned_here=model.info.get("archive") == archive.path.name,
        calibration=detector.calibration.source or f"{held_out:,} held-out normal traces",
        groups=tally.groups(abnormal, MOST_ROWS),
        kinds=_kinds(model),
        members=_members(model, detector),
        facts=_facts(model),
        evaluation=judged,
        pictures=_pictures(detector, tally, scores, judged is not None),
        suspects=_suspects(model, detector, tally.worst),
        unknown_calls=tally.unknown,
        unknown_names=tally.unknown_names(MOST_ROWS),
        counters=counters(archive.metadata, MOST_ROWS),
        environment=provenance.environment(),
    )


def _pictures(
    detector: LanguageModelDetector, tally: Tally, scores: np.ndarray, labelled: bool
) -> dict[str, html.Picture]:
    threshold = detector.threshold_
    if not labelled:
        held_out = detector.calibration.combine(detector.calibration.held_out, detector.method)
        groups = {"held-out normal traces": held_out, "this archive": scores}
        alt = "Histograms of the scores of held-out normal traces and of this archive, with the threshold"
        return {"scores": _picture("scores", alt, lambda theme: figures.histogram(groups, threshold, theme))}
    normal, attack = tally.test_traces()
    curves = {"ensemble": evaluation.curve(scores[normal], scores[attack])}
    if len(detector.scorer.names) > 1:
        members = zip(detector.scorer.names, tally.members, strict=True)
        curves |= {name: evaluation.curve(one[normal], one[attack]) for name, one in members}
    else:
        curves = {detector.scorer.names[0]: curves["ensemble"]}
    point = float(np.mean(scores[normal] > threshold)), float(np.mean(scores[attack] > threshold))
    groups = {"normal traces": scores[normal], "attacks": scores[attack]}
    return {
        "roc": _picture(
            "roc",
            f"ROC curve; at the threshold {100 * point[0]:.1f} % false alarms and {100 * point[1]:.1f} % detections",
            lambda theme: figures.roc(curves, point, theme),
        ),
        "scores": _picture(
            "scores",
            "Histograms of the scores of normal traces and of attacks, with the threshold",
            lambda theme: figures.histogram(groups, threshold, theme),
        ),
    }


def _picture(name: str, alt: str, draw: Callable[[figures.Theme], Figure]) -> html.Picture:
    return html.Picture(name, alt, figures.png(draw(figures.LIGHT)), figures.png(draw(figures.DARK)))


def _suspects(model: Model, detector: LanguageModelDetector, worst: list[Candidate]) -> list[html.Suspect]:
    """Scores the most suspicious traces again, now call by call."""
    traces = Sequences.from_list(one.calls for one in worst)
    by_member = detector.scorer.surprisal(traces)
    for one, again in zip(worst, scoring.means(by_member, traces).T, strict=True):
        if not np.allclose(one.members, again, rtol=0.01, atol=0.01):
            raise SyscallLMError(
                f"{SCORES.value}: trace {one.info['id']!r} scores {one.members.mean():.4f} there, but "
                f"{again.mean():.4f} under {model.path}; score the archive again"
            )
    surprisal = by_member.mean(axis=0)
    starts, lengths, means = scoring.most_surprising_stretches(surprisal, traces, STRETCH.value)
    least_expected, _ = scoring.least_expected(surprisal, traces)
    suspects: list[html.Suspect] = []
    for i, one in enumerate(worst):
        nats = surprisal[traces.offsets[i] : traces.offsets[i + 1]]
        start, length = int(starts[i]), int(lengths[i])
        names = [model.vocabulary.name(int(call)) for call in one.calls[start : start + length]]
        least = int(least_expected[i])
        earlier = [k + 1 for k in range(i) if np.array_equal(worst[k].calls, one.calls)]
        suspects.append(
            html.Suspect(
                info=one.info,
                length=len(nats),
                unknown=int((one.calls == model.vocabulary.unk).sum()),
                score=one.score,
                abnormal=one.score > detector.threshold_,
                strip=_strip(f"trace-{i + 1:02}", nats, start, length),
                calls_per_column=figures.binned(nats)[1],
                start=start,
                mean=float(means[i]),
                stretch=list(zip(names, nats[start : start + length].tolist(), strict=True)),
                least_expected=(least, model.vocabulary.name(int(one.calls[least])), float(nats[least])),
                same_as=earlier[0] if earlier else None,
            )
        )
    return suspects


def _strip(name: str, nats: np.ndarray, start: int, length: int) -> html.Picture:
    alt = f"Surprisal of all {len(nats):,} calls; the most surprising stretch starts at call {start + 1:,}"
    return _picture(name, alt, lambda theme: figures.strip(nats, start, length, theme))


def _kinds(model: Model) -> str:
    windows = sum(not isinstance(member.shape, lstm.Shape) for member in model.members)
    counted = (
        (len(model.members) - windows, "LSTM language model", "Kim et al., arXiv 1611.01726"),
        (windows, "model of windows of calls", "Soni et al. 2019"),
    )
    return " and ".join(f"{number} {kind}{'s' * (number > 1)} ({paper})" for number, kind, paper in counted if number)


def _members(model: Model, detector: LanguageModelDetector) -> list[dict[str, Any]]:
    results = _object(model.info.get("results"))
    rows = []
    for number, member in enumerate(model.members):
        result = _object(results.get(member.name))
        nll, best, epochs = (result.get(key) for key in ("held_out_nll", "best_epoch", "epochs"))
        rows.append(
            {
                "name": member.name,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(member.params)),
                "median": float(detector.calibration.medians[number]),
                "held_out_nll": f"{nll:.4f}" if isinstance(nll, float) else "",
                "epochs": f"{best} of {epochs}" if epochs else "",
            }
        )
    return rows


def _facts(model: Model) -> dict[str, list[tuple[str, str]]]:
    """How the model was made, as far as it tells."""
    info, vocabulary = model.info, model.vocabulary
    configuration, made = _object(info.get("configuration")), _object(info.get("environment"))
    training, held_out = _object(info.get("training")), _object(info.get("held_out"))
    learned = {
        "archive": info.get("archive"),
        "training traces": training.get("traces"),
        "training calls": training.get("calls"),
        "held-out traces": held_out.get("traces"),
        "held-out calls": held_out.get("calls"),
        "vocabulary": vocabulary.origin,
        "call names": len(vocabulary.names),
        "numbering": info.get("numbering"),
    }
    recipe = {
        key.replace("_", " "): value
        for key, value in configuration.items()
        if key not in ("members", "vocabulary", "training_data", "held_out_data", "windows")
    }
    for name, values in _object(configuration.get("windows")).items():  # models of windows: what they have of their own
        own = {key: value for key, value in _object(values).items() if configuration.get(key) != value}
        recipe[name] = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())
    return {"Learned from": _rows(learned), "Recipe": _rows(recipe), "Made with": _rows(made)}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    return [(key, text(value)) for key, value in facts.items() if value not in (None, "")]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # a model card is a file, and files may be edited


def _numbers(report: html.Report) -> dict[str, Any]:
    """The report as plain JSON values, without pictures, with what it was made with."""
    skipped = ("pictures", "suspects")
    fields = [field.name for field in dataclasses.fields(report) if field.name not in skipped]
    plain = {name: getattr(report, name) for name in fields}
    if report.evaluation is not None:
        plain["evaluation"] = dataclasses.asdict(report.evaluation)
    plain["suspects"] = [
        {
            **suspect.info,
            "score": suspect.score,
            "abnormal": suspect.abnormal,
            "length": suspect.length,
            "unknown": suspect.unknown,
            "stretch_start": suspect.start,
            "stretch": [list(call) for call in suspect.stretch],
            "least_expected": list(suspect.least_expected),
        }
        for suspect in report.suspects
    ]
    return {**plain, "configuration": provenance.configuration(main)}


if __name__ == "__main__":
    command.run(main)
