"""The final state of a trace is what the model holds after all its calls, however the traces are packed."""

import jax
import numpy as np
import pytest

from syscall_lm import scoring
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences

V = 11


@pytest.fixture(scope="module")
def members():
    shapes = [lstm.Shape(V, 6), lstm.Shape(V, 4, 2), lstm.Shape(V, 6)]  # two of one shape, one between them
    keys = jax.random.split(jax.random.key(3), len(shapes))
    params = [jax.tree.map(lambda x: x * 8, language_model.initialise(k, s)) for k, s in zip(keys, shapes, strict=True)]
    return [Member(f"m{i}", s, p) for i, (s, p) in enumerate(zip(shapes, params, strict=True))]


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(0)
    traces = [rng.integers(0, V, n) for n in [1, 40, 40, 1, 40, 1, 40, 40, 1]]
    return Sequences.from_list([*traces, traces[4]])  # the last is a copy


@pytest.fixture(scope="module")
def alone(members, traces):
    """Each trace read alone by the training path: GO, then all of its calls."""
    run = jax.jit(lstm.run)
    states = []
    for member in members:
        rows = []
        for calls in traces:
            inputs = np.concatenate([[V], calls])[:, None].astype(np.int32)
            reset = (np.arange(len(inputs)) == 0)[:, None]
            h, state = run(member.params, inputs, reset, lstm.initial_state(member.params, 1))
            np.testing.assert_array_equal(h[-1], state[-1][1])  # h of the last layer, not c
            rows.append(h[-1, 0])
        states.append(np.stack(rows))
    return states


@pytest.mark.parametrize(("lanes", "steps"), [(1, 7), (4, 1), (3, 64), (128, 128)])
def test_equals_reading_each_trace_alone(members, traces, alone, lanes, steps):
    states = scoring.Scorer(members, lanes, steps).final_states(traces)
    assert [part.shape for part in states] == [(10, 6), (10, 4), (10, 6)]
    for found, expected in zip(states, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_last_call_matters(members):
    states = scoring.Scorer(members).final_states(Sequences.from_list([[1, 2, 3], [1, 2, 4]]))
    assert all(np.abs(part[0] - part[1]).max() > 1e-3 for part in states)
