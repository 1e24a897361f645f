"""STIDE equals its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm import evaluation
from syscall_lm.detectors.stide import Stide
from syscall_lm.traces import ingest
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.readers import Options
from syscall_lm.traces.trace import ATTACK, Sequences

traces = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)


def windows(trace, k):
    trace = [*trace, *["pad"] * (k - len(trace))]
    return [tuple(trace[i : i + k]) for i in range(len(trace) - k + 1)]


@given(traces, traces, st.integers(1, 7))
def test_equals_a_set_of_windows(normal, queries, k):
    known = {window for trace in normal for window in windows(trace, k)}
    expected = [np.mean([window not in known for window in windows(trace, k)]) for trace in queries]
    scores = Stide(k).fit(Sequences.from_list(normal)).decision_function(Sequences.from_list(queries))
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@given(traces)
def test_training_traces_score_zero(normal):
    sequences = Sequences.from_list(normal)
    assert (Stide().fit(sequences).decision_function(sequences) == 0).all()


def test_large_call_ids_do_not_collide():
    sequences = Sequences.from_list([[65535, 0, 65535, 1], [65534, 65535, 0, 0]])
    detector = Stide(2).fit(sequences.take([0]))
    np.testing.assert_allclose(detector.decision_function(sequences), [0, 2 / 3])


def test_known_figures_on_adfa_ld(shared_data, tmp_path):
    """AUC 0.827 and 26.7 % false alarms at 90 % detection were found independently of this code."""
    path = tmp_path / "adfa.parquet"
    ingest.ingest([str(shared_data / "adfa_ld" / "ADFA-LD.zip")], path, "adfa_ld", Options())
    batch = TraceArchive(path).read()
    train, test = (batch.take(batch.column("split") == split) for split in ("train", "test"))
    scores = Stide(6).fit(train.calls).decision_function(test.calls)
    attack = test.column("label") == ATTACK
    roc = evaluation.curve(scores[~attack], scores[attack])
    assert roc.auc == pytest.approx(0.827, abs=5e-4)
    assert roc.false_alarms_at(0.90) == pytest.approx(0.267, abs=5e-4)
