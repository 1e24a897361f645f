"""Sections of a trace, by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import LongestSection, Stretch, longest_section, section_means
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

# Quarters add up without rounding, so that averages exactly at the level are decided alike.
surprisals = st.lists(st.integers(0, 12).map(lambda n: n / 4), max_size=25)
levels = st.integers(0, 12).map(lambda n: n / 4)


@given(surprisals, levels, st.booleans())
def test_longest_section_equals_trying_all(values, level, above):
    def qualifies(part):
        return sum(part) >= level * len(part) if above else sum(part) <= level * len(part)

    sections = [(i, j) for i in range(len(values)) for j in range(i + 1, len(values) + 1) if qualifies(values[i:j])]
    expected = max(sections, key=lambda section: (section[1] - section[0], -section[0]), default=(0, 0))
    assert longest_section(np.array(values), level, above) == expected


def test_longest_section_of_a_million_calls():
    """Linear: this takes less than a second, where trying all pairs would take days."""
    values = np.random.default_rng(0).exponential(1, 1_000_000)
    start, end = longest_section(values, 1.001)
    assert values[start:end].mean() >= 1.001
    longer = values[start : end + 1], values[start - 1 : end]
    assert all(part.mean() < 1.001 for part in longer)


@given(surprisals.filter(bool), st.data())
def test_section_means_equal_slices(values, data):
    pairs = st.tuples(st.integers(0, len(values) - 1), st.integers(1, len(values))).filter(lambda p: p[0] < p[1])
    sections = data.draw(st.lists(pairs, max_size=5))
    starts, ends = (np.array([section[i] for section in sections], int) for i in (0, 1))
    expected = [np.mean(values[i:j]) for i, j in sections]
    np.testing.assert_allclose(section_means(np.array(values), starts, ends), expected, rtol=1e-12)


@pytest.mark.parametrize(("start", "end"), [(2, 2), (-1, 2), (0, 4), (2, 1)])
def test_impossible_sections_are_refused(start, end):
    with pytest.raises(SyscallLMError, match="a section must hold calls"):
        section_means(np.zeros(3), np.array([start]), np.array([end]))


@pytest.mark.parametrize("which", ["calmest", "highest"])
def test_stretches_equal_trying_all(which):
    rng = np.random.default_rng(0)
    normal = Sequences.from_list([rng.integers(0, 5, n) for n in (40, 60)])
    queries = Sequences.from_list([rng.integers(0, 5, n) for n in (1, 9, 10, 11, 70)])
    detector = Stretch(NGram(5, 3), which, 10).fit(normal)
    surprisal = NGram(5, 3).fit(normal).surprisal(queries)
    best = min if which == "calmest" else max
    expected = []
    for begin, end in zip(queries.offsets, queries.offsets[1:], strict=False):
        size = min(10, end - begin)
        expected.append(best(surprisal[i : i + size].mean() for i in range(begin, end - size + 1)))
    np.testing.assert_allclose(detector.decision_function(queries), expected, rtol=1e-9)
    assert detector.threshold_ == detector.decision_function(normal).max()


def test_padding_calms_the_calmest_stretch_and_neither_the_highest_nor_the_longest():
    normal = np.tile(np.arange(6), 60)
    attack = np.random.default_rng(0).integers(0, 6, 100)
    padded = np.concatenate([attack, normal[:90]])
    queries = Sequences.from_list([attack, padded])
    training = Sequences.from_list([normal])
    calmest = Stretch(NGram(6, 4), "calmest", 75).fit(training).decision_function(queries)
    highest = Stretch(NGram(6, 4), "highest", 75).fit(training).decision_function(queries)
    assert calmest[1] < calmest[0] / 3 and highest[1] >= highest[0]
    detector = LongestSection(NGram(6, 4)).fit(training)
    longest = detector.decision_function(queries)
    assert longest[1] >= longest[0] > 90
    surprisal = detector.source.surprisal(queries)
    for trace, length in enumerate(longest):
        part = surprisal[queries.offsets[trace] : queries.offsets[trace + 1]]
        start, end = longest_section(part, detector.level_)
        assert end - start == length and part[start:end].mean() >= detector.level_


def test_the_level_of_the_longest_section_is_the_threshold_of_held_out_traces():
    rng = np.random.default_rng(0)
    training, held_out = (Sequences.from_list([rng.integers(0, 6, 40) for _ in range(5)]) for _ in "ab")
    detector = LongestSection(NGram(6, 4)).fit(training, held_out)
    assert detector.needs_held_out and not Stretch(NGram(6)).needs_held_out
    assert detector.level_ == NGram(6, 4).fit(training, held_out).threshold_ > NGram(6, 4).fit(training).threshold_
    before = detector.decision_function(held_out)
    detector.source.threshold_ = 0.0  # as another detector on the same source may set it
    np.testing.assert_array_equal(detector.decision_function(held_out), before)


@pytest.mark.parametrize("wrong", [{"which": "longest"}, {"length": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="must be calmest or highest"):
        Stretch(NGram(3), **wrong)
