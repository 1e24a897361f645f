"""Figures, drawn with matplotlib off the screen."""

import pathlib
from collections.abc import Mapping

from matplotlib.figure import Figure

from syscall_lm.evaluation import Curve


def roc(curves: Mapping[str, Curve]) -> Figure:
    """ROC curves of several detectors."""
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    for name, one in curves.items():
        axes.plot(one.false_alarm_rate, one.detection_rate, lw=1.6, label=f"{name} (AUC {one.auc:.3f})")
    axes.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    axes.set(xlabel="false alarm rate", ylabel="detection rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right", frameon=False)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, format="png", dpi=120)
