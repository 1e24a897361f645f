"""Figures, drawn with matplotlib off the screen, for light and for dark paper.

Figures with text are 5 inches wide with 11 pt letters, so that they stay legible where a phone shows them 360 pixels
wide. Normal traces are blue and attacks vermilion (Okabe and Ito), which colour-blind readers tell apart; surprisal
runs from the paper's colour to the far end of the orange, one step a nat.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from syscall_lm.evaluation import Curve

LEVELS = 10  # colours of surprisal: 0 to 1 nat, 1 to 2, ..., 9 and more
STRIP_COLUMNS = 480
DPI = 180


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure (and, through reports/html.py, of the page around it).

    Attributes:
      text, muted, rule, paper: letters, secondary letters, lines, background.
      normal, attack: the two kinds of traces.
      surprisal: colours from no surprise to `LEVELS` nats, to be interpolated.
    """

    text: str
    muted: str
    rule: str
    paper: str
    normal: str
    attack: str
    surprisal: tuple[str, ...]

    def colour_of(self, nats: np.ndarray) -> np.ndarray:
        """Colours `[..., 4]` for surprisals `[...]` in nats."""
        scale = colors.LinearSegmentedColormap.from_list("surprisal", self.surprisal)
        return scale(np.clip(np.asarray(nats, np.float64) / LEVELS, 0, 1))

    def levels(self) -> list[tuple[str, str]]:
        """For each of the `LEVELS` steps its colour and the colour in which letters on it are best read."""
        fills = self.colour_of(np.arange(LEVELS) + 0.5)[:, :3]
        return [(colors.to_hex(fill), _readable_on(fill)) for fill in fills]


LIGHT = Theme(
    text="#1c2024",
    muted="#5b646d",
    rule="#d5d9dd",
    paper="#ffffff",
    normal="#0072b2",
    attack="#d55e00",
    surprisal=("#f1f2f3", "#fbdcb0", "#f2a654", "#d55e00", "#8f2f02", "#4a1600"),
)
DARK = Theme(
    text="#e6e8ea",
    muted="#9aa4ad",
    rule="#3a424a",
    paper="#15181b",
    normal="#56b4e9",
    attack="#f28e2b",
    surprisal=("#252a2f", "#54371f", "#8f4d16", "#d9731a", "#ffab52", "#ffe6c2"),
)


def roc(
    curves: Mapping[str, Curve], operating_point: tuple[float, float] | None = None, theme: Theme = LIGHT
) -> Figure:
    """ROC curves of several detectors.

    Args:
      curves: name -> curve; the first is drawn in front of the others.
      operating_point: false alarm and detection rate at a threshold, to be marked.
      theme: colours.
    """
    figure, axes = _axes(5, 4.6, theme)
    # The first curve is the subject where a point is marked; without one, all are peers in matplotlib's own colours.
    subject = operating_point is not None
    for number, (name, one) in enumerate(curves.items()):
        style: dict[str, Any] = {"lw": 2.2, "zorder": 3} if number == 0 or not subject else {"lw": 1.1, "alpha": 0.7}
        if subject:
            style |= {"color": theme.normal if number == 0 else theme.muted, "ls": ("-", "--", ":", "-.")[number % 4]}
        axes.plot(one.false_alarm_rate, one.detection_rate, label=f"{name} (AUC {one.auc:.3f})", **style)
    axes.plot([0, 1], [0, 1], color=theme.rule, lw=1, zorder=0)
    if operating_point is not None:
        axes.plot(
            operating_point[:1], operating_point[1:], "o", label="at the threshold",
            ms=9, mfc=theme.attack, mec=theme.paper, mew=1.5, zorder=5, clip_on=False,
        )  # fmt: skip
    axes.set(xlabel="false alarm rate", ylabel="detection rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    legend = axes.legend(loc="lower right", frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_color(theme.text)
    return figure


def histogram(groups: Mapping[str, np.ndarray], threshold: float, theme: Theme = LIGHT, bins: int = 60) -> Figure:
    """Scores of one or two groups of traces, one above the other on a common axis, with the threshold.

    A few extreme scores would squeeze everything else together: what lies beyond the 99.5 % quantile (and well beyond
    the threshold) is counted in the last bar, and the axis says so.

    Args:
      groups: name -> scores `[n]`; the first is drawn as normal, the second as attack.
      threshold: above which a trace is abnormal.
      theme: colours.
      bins: bars.
    """
    groups = {name: scores for name, scores in groups.items() if len(scores)}
    everything = np.concatenate([*groups.values(), [threshold]])
    low, high = float(everything.min()), float(everything.max())
    cut = max(float(np.quantile(everything, 0.995)), threshold + 0.3 * (threshold - low))
    clipped = high > cut + 0.25 * (cut - low)
    high = cut if clipped else high
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)

    figure = Figure(figsize=(5, 1.1 + 1.75 * len(groups)), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True))
    for axes, (name, scores), colour in zip(all_axes, groups.items(), (theme.normal, theme.attack), strict=False):
        _dress(figure, axes, theme)
        counts, _ = np.histogram(np.minimum(scores, high), edges)
        axes.bar(edges[:-1], 100 * counts / len(scores), np.diff(edges), align="edge", color=colour, lw=0)
        axes.axvline(threshold, color=theme.text, lw=1.2, ls=(0, (4, 2)))
        axes.set_title(f"{name}: {len(scores):,}", loc="left", fontsize=11, color=colour, fontweight="bold")
        share = 100 * float(np.mean(scores > threshold))
        axes.set_title(f"{share:.1f} % above", loc="right", fontsize=11, color=theme.text)
        axes.set_ylabel("% of traces")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=False))
    all_axes[-1].set_xlabel("score" + (" (last bar: all that is higher)" if clipped else ""))
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(6))
    return figure


def binned(surprisal: np.ndarray, columns: int = STRIP_COLUMNS) -> tuple[np.ndarray, int]:
    """At most `columns` values: the highest surprisal of as many equal runs of calls.

    Args:
      surprisal: `[T]`, nats per call.
      columns: how many at most.

    Returns:
      the values, and how many calls each of them stands for (the last may stand for fewer).
    """
    width = -(-len(surprisal) // columns)
    return np.maximum.reduceat(surprisal, np.arange(0, len(surprisal), width)), width


def strip(surprisal: np.ndarray, start: int, length: int, theme: Theme = LIGHT) -> Figure:
    """The surprisal of a whole trace as a strip of colours, with a bar below the most surprising stretch.

    It holds no letters, so that a page may stretch it to any width.

    Args:
      surprisal: `[T]`, nats per call; long traces are binned by their maximum.
      start: the first call of the stretch, from 0.
      length: calls in the stretch.
      theme: colours.
    """
    total = len(surprisal)
    values, width = binned(surprisal)
    figure = Figure(figsize=(8, 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    edges = np.minimum(np.arange(len(values) + 1) * width, total)
    axes.pcolormesh(edges, [0, 1], theme.colour_of(values)[None])
    thin = max(length, 0.008 * total)  # a stretch of 20 calls in 50,000 must still be seen
    left = min(max(0.0, start + length / 2 - thin / 2), total - thin)
    axes.add_patch(Rectangle((left, -0.38), thin, 0.24, color=theme.text, lw=0))
    axes.set(xlim=(0, total), ylim=(-0.42, 1))
    axes.axis("off")
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, format="png", dpi=DPI)


def _axes(width: float, height: float, theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _dress(figure, axes, theme)
    return figure, axes


def _dress(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Quiet axes: no box, thin rules, the theme's colours."""
    figure.set_facecolor(theme.paper)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.rule)
    axes.tick_params(colors=theme.muted, labelsize=10, color=theme.rule)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.text)
        label.set_fontsize(11)


def _readable_on(fill: np.ndarray) -> str:
    """Black or white letters, whichever have the higher contrast (WCAG 2's relative luminance)."""
    linear = np.where(fill <= 0.04045, fill / 12.92, ((fill + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"
