"""Scoring whole, in tiles, or call by call gives the same numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm import scoring
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences

V = 13


@pytest.fixture(scope="module")
def members():
    shapes = [lstm.Shape(V, 6), lstm.Shape(V, 4, 2), lstm.Shape(V, 6)]  # two of one shape, one between them
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = [jax.tree.map(lambda x: x * 8, language_model.initialise(k, s)) for k, s in zip(keys, shapes, strict=True)]
    return [Member(f"m{i}", s, p) for i, (s, p) in enumerate(zip(shapes, params, strict=True))]


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(0)
    lengths = [1, 2, 50, 1, 17, 300, 2, 64, 50, 64]
    return Sequences.from_list([rng.integers(0, V, n) for n in lengths])


@pytest.fixture(scope="module")
def alone(members, traces):
    """Each trace alone, in one pass, by the training path."""

    @jax.jit
    def nll(params, inputs, targets, reset):
        h, _ = lstm.run(params, inputs, reset, lstm.initial_state(params, 1))
        return lstm.negative_log_likelihood(params, h, targets)

    parts = []
    for calls in traces:
        rows = []
        for member in members:
            inputs = np.concatenate([[V], calls[:-1]])[:, None]
            reset = (np.arange(len(calls)) == 0)[:, None]
            rows.append(nll(member.params, inputs, calls[:, None].astype(np.int32), reset)[:, 0])
        parts.append(np.stack(rows))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("lanes", "steps"), [(1, 7), (2, 64), (4, 1), (128, 128), (3, 1000)])
def test_packed_tiles_equal_each_trace_alone(members, traces, alone, lanes, steps):
    scores = scoring.Scorer(members, lanes, steps).surprisal(traces)
    np.testing.assert_allclose(scores, alone, rtol=1e-5, atol=1e-5)


def test_as_many_lanes_as_cost_least(members, monkeypatch):
    """Neither half empty, nor one trace more than there are lanes; what an accelerator gets is never too narrow."""
    monkeypatch.setattr(jax, "local_devices", lambda: [None, None])
    scorer = scoring.Scorer(members)
    lengths = {
        "one": [1000],
        "five": [1000] * 5,
        "nine": [1000] * 9,
        "a hundred": [1000] * 100,
        "long and short": [1000] * 40 + [200] * 200,
        "more": [1000] * 127,
        "many": [1] * 6000,
    }
    traces = {kind: Sequences.from_list([np.zeros(n) for n in each]) for kind, each in lengths.items()}
    expected = {"one": 1, "five": 6, "nine": 12, "a hundred": 128, "long and short": 64, "more": 128, "many": 1024}
    assert {kind: scorer._lanes_for(each.lengths) for kind, each in traces.items()} == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert {kind: scorer._lanes_for(each.lengths) for kind, each in traces.items()} == expected | {"long and short": 96}


def test_operands_of_bfloat16_are_rounded_and_nothing_else_is(members, traces, alone):
    """Against the equations in float64, call by call."""

    def rounded(x):
        return np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float64)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    expected = np.empty((len(members), len(traces.calls)))
    for row, member in zip(expected, members, strict=True):
        folded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), lstm.fold(member.params))
        position = 0
        for calls in traces:
            state = [np.zeros((2, member.shape.cells)) for _ in folded["layers"]]
            for before, call in zip([V, *calls[:-1]], calls, strict=True):
                x = folded["table"][before]
                for number, (c, h) in enumerate(state):
                    layer = folded["layers"][str(number)]
                    if number:
                        x = rounded(x) @ rounded(layer["w_ih"]) + layer["b"]
                    i, f, g, o = np.split(x + rounded(h) @ rounded(layer["w_hh"]), 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    x = sigmoid(o) * np.tanh(c)
                    state[number] = np.stack([c, x])
                logits = rounded(x) @ rounded(folded["w_out"]) + folded["b_out"]
                row[position] = np.log(np.exp(logits).sum()) - logits[call]
                position += 1
    scores = scoring.Scorer(members, 4, 16, operands="bfloat16").surprisal(traces)
    off, otherwise = abs(scores - expected), abs(alone - expected)
    assert np.quantile(off, 0.9) < 2e-6 < np.quantile(otherwise, 0.1)
    assert off.max() <= otherwise.max()  # where a sum's last bit decides how the next operand is rounded


def test_an_accelerators_kernels_choose_their_operands(members, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(SyscallLMError, match="choice for CPUs"):
        scoring.Scorer(members, operands="bfloat16")


def test_call_by_call_equals_whole(members, traces):
    scorer = scoring.Scorer(members)
    stream = scorer.stream()
    calls = traces[2]
    streamed = np.stack([stream.push([call])[:, 0] for call in calls], axis=1)
    whole = scorer.surprisal(Sequences.from_list([calls]))
    np.testing.assert_allclose(streamed, whole, rtol=1e-5, atol=1e-5)


def test_a_stream_holds_traces_side_by_side_and_restarts_one(members, traces):
    scorer = scoring.Scorer(members)
    a, b, c = traces[2][:20], traces[5][:30], traces[4][:10]
    stream = scorer.stream(lanes=2)
    rows = []
    for t in range(30):
        if t == 20:
            stream.restart(0)  # trace c begins in lane 0 while b goes on in lane 1
        rows.append(stream.push([a[t] if t < 20 else c[t - 20], b[t]]))
    rows = np.stack(rows, axis=1)
    whole = scorer.surprisal(Sequences.from_list([a, c, b]))
    np.testing.assert_allclose(np.concatenate([rows[:, :, 0], rows[:, :, 1]], axis=1), whole, rtol=1e-5, atol=1e-5)


def test_identical_traces_are_computed_once_and_scored_alike(members, traces, monkeypatch):
    scorer = scoring.Scorer(members)
    doubled = Sequences.from_list([*traces, *list(traces)[::-1]])
    computed = []
    original = scorer._surprisal
    monkeypatch.setattr(scorer, "_surprisal", lambda s: computed.append(len(s.calls)) or original(s))
    scores = scorer.surprisal(doubled)
    assert computed == [sum(len(t) for t in {t.tobytes(): t for t in traces}.values())]
    expected = [scorer.surprisal(Sequences.from_list([trace])) for trace in doubled]
    np.testing.assert_allclose(scores, np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def programs():
    """Traces of two programs, many of which begin alike; some are the beginning of another, some are equal."""
    rng = np.random.default_rng(1)
    longest = [rng.integers(0, V, 300), rng.integers(0, V, 120)]
    alike = [
        np.append(whole[: rng.integers(1, len(whole))], rng.integers(0, V, rng.integers(20))) for whole in longest * 40
    ]
    return Sequences.from_list([*longest, *alike, alike[3], longest[0][:50]])


@pytest.mark.parametrize(("lanes", "steps"), [(1, 1000), (4, 16), (512, 128)])
def test_identical_beginnings_are_computed_once_and_scored_alike(members, programs, monkeypatch, lanes, steps):
    scorer = scoring.Scorer(members, lanes, steps)
    computed = []
    gathered = scoring._gathered
    monkeypatch.setattr(scoring, "_gathered", lambda packer, plan: computed.append(plan) or gathered(packer, plan))
    found = scorer.surprisal(programs)
    with_branches = sum(np.count_nonzero(plan >= 0) for plan in computed)
    computed.clear()
    monkeypatch.setattr(scoring, "BRANCHING", 1e9)
    expected = scorer.surprisal(programs)
    distinct = programs.take(programs.distinct()[0])
    assert sum(np.count_nonzero(plan >= 0) for plan in computed) == len(distinct.calls)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert with_branches < len(distinct.calls) / 2


def test_an_accelerator_computes_beginnings_anew(members, programs, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert scoring.Scorer(members)._families(programs.take(programs.distinct()[0])) is None


def test_the_least_expected_call_is_the_first_that_surprises_most():
    rng = np.random.default_rng(1)
    traces = Sequences.from_list([np.zeros(n, int) for n in (1, 1, 7, 1000, 2)])
    surprisal = rng.integers(0, 9, len(traces.calls)).astype(np.float32)  # many are equal
    position, nats = scoring.least_expected(surprisal, traces)
    for i, (begin, end) in enumerate(itertools.pairwise(traces.offsets)):
        assert position[i] == np.argmax(surprisal[begin:end]) and nats[i] == surprisal[begin:end].max()
    assert [len(found) for found in scoring.least_expected(surprisal[:0], Sequences.from_list([]))] == [0, 0]


def test_means_and_stretches_by_brute_force(traces):
    surprisal = np.random.default_rng(1).random(len(traces.calls)).astype(np.float32)
    means = scoring.means(np.stack([surprisal, 2 * surprisal]), traces)
    starts, lengths, best = scoring.most_surprising_stretches(surprisal, traces, 5)
    for i, (begin, end) in enumerate(zip(traces.offsets, traces.offsets[1:], strict=False)):
        part = surprisal[begin:end].astype(np.float64)
        np.testing.assert_allclose(means[:, i], [part.mean(), 2 * part.mean()], rtol=1e-6)
        size = min(5, len(part))
        windows = [part[j : j + size].mean() for j in range(len(part) - size + 1)]
        assert lengths[i] == size and starts[i] == np.argmax(windows)
        np.testing.assert_allclose(best[i], max(windows), rtol=1e-9)
