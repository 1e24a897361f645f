"""Figures show what they were given, at any size of trace and any spread of scores."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from syscall_lm import evaluation
from syscall_lm.reports import figures

PNG = b"\x89PNG\r\n\x1a\n"


def contrast(one: str, other: str) -> float:
    def luminance(colour):
        values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def rectangles(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("length", [1, 2, 479, 480, 481, 960, 961, 59_565])
def test_binning_keeps_the_maximum_and_never_exceeds_the_columns(length):
    values = np.random.default_rng(length).gamma(1.0, 1.0, length).astype(np.float32)
    bins, width = figures.binned(values)
    assert len(bins) <= figures.STRIP_COLUMNS
    assert (len(bins) - 1) * width < length <= len(bins) * width
    for i in (0, len(bins) // 2, len(bins) - 1):
        assert bins[i] == values[i * width : (i + 1) * width].max()


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
def test_letters_can_be_read_on_every_level_of_surprisal(theme):
    levels = theme.levels()
    assert len(levels) == figures.LEVELS
    assert len({fill for fill, _ in levels}) == figures.LEVELS
    assert all(contrast(fill, letters) >= 4.5 for fill, letters in levels)


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
def test_page_text_and_marks_stand_out_from_the_paper(theme):
    assert contrast(theme.text, theme.paper) >= 7
    assert contrast(theme.muted, theme.paper) >= 4.5
    assert min(contrast(theme.normal, theme.paper), contrast(theme.attack, theme.paper)) >= 3


@pytest.mark.parametrize(("length", "start", "stretch"), [(1, 0, 1), (30, 10, 20), (59_565, 59_545, 20)])
def test_strip_draws_any_trace_and_marks_the_stretch_inside_it(length, start, stretch):
    figure = figures.strip(np.linspace(0, 12, length), start, stretch)
    (mark,) = rectangles(figure.axes[0])
    left, right = mark.get_x(), mark.get_x() + mark.get_width()
    assert 0 <= left <= start + 1e-6 * length
    assert start + stretch <= right + 1e-6 * length <= length * (1 + 2e-6)
    assert figures.png(figure).startswith(PNG)


def test_histogram_counts_every_trace_though_a_score_is_extreme():
    normal = np.concatenate([np.linspace(0, 1, 999), [1e6]])
    figure = figures.histogram({"normal": normal, "attack": np.array([0.5, 2.0])}, 1.0)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in rectangles(axes)) == pytest.approx(100)
        assert max(bar.get_x() + bar.get_width() for bar in rectangles(axes)) < 10
    assert "last bar" in figure.axes[-1].get_xlabel()


@pytest.mark.parametrize("scores", [[1.0], [1.0, 1.0], [0.0, 5.0]])
def test_histogram_of_one_group_and_of_equal_scores(scores):
    figure = figures.histogram({"archive": np.array(scores), "none": np.zeros(0)}, 1.0)
    assert len(figure.axes) == 1
    assert figures.png(figure).startswith(PNG)


def test_roc_marks_the_operating_point():
    curve = evaluation.curve(np.array([0.0, 1.0, 2.0]), np.array([1.5, 3.0]))
    figure = figures.roc({"a": curve, "b": curve}, (0.25, 0.5))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "a (AUC 0.833)",
        "b (AUC 0.833)",
        "at the threshold",
    ]
    assert np.asarray(figure.axes[0].lines[-1].get_xydata()).tolist() == [[0.25, 0.5]]


def test_save_writes_a_png(tmp_path):
    curve = evaluation.curve(np.array([0.0, 1.0]), np.array([2.0]))
    figures.save(figures.roc({"a": curve}), tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(PNG)
