"""The n-gram model equals its recursion written out, is a distribution, and has the known figures on ADFA-LD."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm import evaluation
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import stretch_means
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import ingest
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.readers import Options
from syscall_lm.traces.trace import ATTACK, Sequences

V = 4
traces = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=14), min_size=1, max_size=6)


def witten_bell(normal, order):
    """P(call | context tuple) by the recursion, from dictionaries of every context's followers."""
    followers = collections.defaultdict(collections.Counter)
    for trace in normal:
        trace = ["start"] * (order - 1) + list(trace)
        for t in range(order - 1, len(trace)):
            for length in range(order):
                followers[tuple(trace[t - length : t])][trace[t]] += 1

    def probability(call, context):
        lower = probability(call, context[1:]) if context else 1 / V
        seen = followers[context]
        if not seen:
            return lower
        return (seen[call] + len(seen) * lower) / (seen.total() + len(seen))

    return probability


@given(traces, traces, st.integers(1, 9))
def test_equals_the_recursion(normal, queries, order):
    probability = witten_bell(normal, order)
    expected = []
    for trace in queries:
        padded = ["start"] * (order - 1) + trace
        for t in range(order - 1, len(padded)):
            expected.append(-math.log(probability(padded[t], tuple(padded[t - order + 1 : t]))))
    model = NGram(V, order).fit(Sequences.from_list(normal))
    np.testing.assert_allclose(model.surprisal(Sequences.from_list(queries)), expected, rtol=1e-12)


@given(traces, st.lists(st.integers(0, V - 1), max_size=10), st.integers(1, 6))
def test_probabilities_of_all_next_calls_sum_to_one(normal, history, order):
    model = NGram(V, order).fit(Sequences.from_list(normal))
    continued = Sequences.from_list([[*history, call] for call in range(V)])
    last = model.surprisal(continued)[continued.offsets[1:] - 1]
    np.testing.assert_allclose(np.exp(-last).sum(), 1, rtol=1e-12)


def test_the_score_is_the_mean_surprisal():
    rng = np.random.default_rng(0)
    sequences = Sequences.from_list([rng.integers(0, V, n) for n in (1, 30, 7)])
    model = NGram(V, 3).fit(sequences)
    surprisal = model.surprisal(sequences)
    means = [surprisal[a:b].mean() for a, b in zip(sequences.offsets, sequences.offsets[1:], strict=False)]
    np.testing.assert_allclose(model.decision_function(sequences), means, rtol=1e-12)


def test_large_call_ids():
    sequences = Sequences.from_list([[65535, 0, 65535, 1, 65535]])
    surprisal = NGram(65536, 3).fit(sequences).surprisal(sequences)
    assert np.isfinite(surprisal).all() and (surprisal < math.log(4)).all()


@pytest.mark.parametrize("wrong", [(0, 3), (4, 0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SyscallLMError, match="n-gram model cannot have"):
        NGram(*wrong)


def test_known_figures_on_adfa_ld(shared_data, tmp_path):
    """Found independently: order 8, AUC 0.844 and 23.3 % false alarms at 90 % detection; calmest 75 calls 0.869."""
    path = tmp_path / "adfa.parquet"
    ingest.ingest([str(shared_data / "adfa_ld" / "ADFA-LD.zip")], path, "adfa_ld", Options())
    archive = TraceArchive(path)
    batch = archive.read()
    train, test = (batch.take(batch.column("split") == split) for split in ("train", "test"))
    model = NGram(archive.vocabulary.size, 8).fit(train.calls)
    attack = test.column("label") == ATTACK
    mean = model.decision_function(test.calls)
    roc = evaluation.curve(mean[~attack], mean[attack])
    assert roc.auc == pytest.approx(0.844, abs=5e-4)
    assert roc.false_alarms_at(0.90) == pytest.approx(0.233, abs=5e-4)
    calmest = stretch_means(model.surprisal(test.calls), test.calls, "calmest", 75)
    assert evaluation.curve(calmest[~attack], calmest[attack]).auc == pytest.approx(0.869, abs=5e-4)
