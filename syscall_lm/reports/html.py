"""The HTML report: one file that needs nothing else, made from plain data.

Names that come from traces were written by the traced processes. Every value is escaped (jinja2's autoescape), control
characters are shown visibly, what is endlessly long is cut, and the page forbids itself to load or run anything.
"""

import base64
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from syscall_lm.reports import figures

LONGEST_NAME = 240


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure for light and for dark paper.

    Attributes:
      name: of its file beside the report, without ".png".
      alt: what it shows, for those who cannot see it.
      light, dark: PNG files.
    """

    name: str
    alt: str
    light: bytes
    dark: bytes


@dataclasses.dataclass(frozen=True)
class Suspect:
    """One of the most suspicious traces.

    Attributes:
      info: what the archive knows: id, source, command, host, label, family, split.
      length: calls.
      unknown: how many of them the model does not know.
      score: the ensemble's.
      abnormal: the verdict.
      strip: the whole trace's surprisal.
      calls_per_column: of the strip.
      start: the first call of the most surprising stretch, from 0.
      mean: its surprisal, nats per call.
      stretch: its calls: name and surprisal in nats.
      least_expected: of the whole trace, the call with the highest surprisal: position from 0, name, nats.
      same_as: rank (from 1) of an earlier suspect with exactly these calls, or None.
    """

    info: Mapping[str, str]
    length: int
    unknown: int
    score: float
    abnormal: bool
    strip: Picture
    calls_per_column: int
    start: int
    mean: float
    stretch: Sequence[tuple[str, float]]
    least_expected: tuple[int, str, float]
    same_as: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well the scores separate labelled traces.

    Attributes:
      all: `evaluation.summary` of the test traces.
      without_copies: the same without normal traces that copy a training trace; None if there are none such.
      copies: how many normal traces copy one.
      false_alarms: normal traces above the threshold.
      detections: attacks above the threshold.
      per_family: family -> attacks above the threshold.
      members: member -> AUC; empty if there is only one.
      seen: the model may have learned from the normal traces that it is judged by.
    """

    all: Mapping[str, Any]
    without_copies: Mapping[str, Any] | None
    copies: int
    false_alarms: int
    detections: int
    per_family: Mapping[str, int]
    members: Mapping[str, float]
    seen: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the page says; no field holds markup.

    Attributes:
      model, archive: their names.
      notice: a sentence that the archive wants to stand beside its figures.
      traces, calls, abnormal: how many.
      score_meaning: the unit of a score, a clause.
      method, threshold, false_alarm_rate: what decides.
      needed: held-out traces that the false alarm rate needs.
      differ: how many of the held-out ones differ.
      held_out: held-out traces that there are.
      learned_here: the model was trained on an archive of this name.
      calibration: which traces those were, a noun phrase.
      groups: (label, split, traces, calls, abnormal), one row a kind of trace.
      kinds: how many members of each kind, a noun phrase.
      members: of each its name, parameters, median score, held_out_nll and epochs (texts, empty if not recorded).
      facts: how the model was made: heading -> (what, value).
      evaluation: None without labels.
      pictures: "scores", and "roc" if there are labels.
      suspects: the most suspicious first.
      unknown_calls: calls that the model does not know.
      unknown_names: which they are, most frequent first.
      counters: title -> (reason, how often), as `ingest` recorded them.
      environment: what this report was made with: package -> version, and the commit.
    """

    model: str
    archive: str
    notice: str
    traces: int
    calls: int
    abnormal: int
    score_meaning: str
    method: str
    threshold: float
    false_alarm_rate: float
    needed: int
    differ: int
    held_out: int
    learned_here: bool
    calibration: str
    groups: Sequence[tuple[str, str, int, int, int]]
    kinds: str
    members: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Sequence[tuple[str, str]]]
    evaluation: Evaluation | None
    pictures: Mapping[str, Picture]
    suspects: Sequence[Suspect]
    unknown_calls: int
    unknown_names: Sequence[tuple[str, int]]
    counters: Mapping[str, Sequence[tuple[str, int]]]
    environment: Mapping[str, Any]


def render(report: Report) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "syscall_lm.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": percent,
        "rate": lambda share: Markup(f"{100 * share:g}&nbsp;%"),  # a rate that was asked for, as it was asked
        "level": lambda nats: min(int(max(nats, 0)), figures.LEVELS - 1),
        "uri": lambda data: Markup("data:image/png;base64," + base64.b64encode(data).decode()),
    }
    template = environment.get_template("report.html")
    return template.render(
        report=report,
        light=figures.LIGHT,
        dark=figures.DARK,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def visible(value: Any) -> Any:
    """Text with control characters (also invisible and direction-changing ones) shown as escapes, cut if endless.

    Every value that the template prints goes through this; markup and other types are returned as they are.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    cut = len(value) - LONGEST_NAME
    if cut > 0:
        value = value[:LONGEST_NAME]
    if value.isprintable() and cut <= 0:
        return value
    parts = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in value]
    text = escape("".join(parts))
    return text + Markup("<i>… and {} characters more</i>").format(f"{cut:,}") if cut > 0 else text


def percent(share: float) -> Markup:
    """A share as a percentage: 0.0123 -> "1.2 %", 0.00123 -> "0.12 %"."""
    value = 100 * share
    if 0 < value < 0.01:
        return Markup("below&nbsp;0.01&nbsp;%")
    digits = 0 if value == 0 else 1 if value >= 1 else 2
    return Markup(f"{value:.{digits}f}&nbsp;%")
