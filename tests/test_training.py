"""Training learns, repeats itself exactly, and stops where it should."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syscall_lm import checkpoints, optimisation, training
from syscall_lm.errors import SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.models import lstm
from syscall_lm.traces.trace import Sequences

V = 5
SHAPE = lstm.Shape(V, 12)


@pytest.fixture(scope="module")
def traces():
    """0 1 2 0 1 2 ..., each trace from another beginning: after the first call all is certain."""
    return Sequences.from_list([(np.arange(33 + i % 15) + i) % 3 for i in range(24)])


def recipe(**changes):
    values = {"epochs": 2, "minibatch_calls": 96, "steps": 24, "dropout": 0.1, "learning_rate": 0.02, "seed": 7}
    return training.Recipe(**(values | changes))


def leaves(trained):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trained.params)]


@pytest.mark.parametrize("batching", training.BATCHINGS)
def test_learns_what_is_certain(traces, batching):
    trained = training.train_group(SHAPE, [0], recipe(batching=batching, epochs=30), traces, traces)
    # Only the first of some 40 calls is uncertain: ln 3 / 40 = 0.03 nats per call remain.
    assert trained.held_out_nll[0] < 0.07
    assert trained.held_out_nll[0] < 0.1 * trained.history[0]["train_nll"][0]


@pytest.mark.parametrize("batching", training.BATCHINGS)
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(traces, batching):
    first, second, other = (
        training.train_group(SHAPE, [0], recipe(batching=batching, seed=seed), traces, traces) for seed in (7, 7, 8)
    )
    for a, b, c in zip(*map(leaves, (first, second, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("batching", training.BATCHINGS)
def test_interrupted_anywhere_it_ends_with_the_same_parameters(traces, batching, tmp_path, monkeypatch):
    whole = training.train_group(SHAPE, [0, 1], recipe(batching=batching), traces, traces)

    class Interrupted(Exception):
        pass

    save = checkpoints.Checkpoints.save
    saved = 0

    def save_and_stop(self, state, history):
        nonlocal saved
        save(self, state, history)
        saved += 1
        if saved % 9 == 0:
            raise Interrupted

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
    resumed = None
    while resumed is None:
        with contextlib.suppress(Interrupted):
            arguments = (SHAPE, [0, 1], recipe(batching=batching), traces, traces, tmp_path)
            resumed = training.train_group(*arguments, checkpoint_seconds=0)
    assert saved > 20  # it was interrupted within epochs, several times
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.held_out_nll, resumed.held_out_nll)
    assert [row["train_nll"] for row in whole.history] == [row["train_nll"] for row in resumed.history]


def test_members_trained_together_equal_members_trained_alone(traces):
    together = training.train_group(SHAPE, [3, 5], recipe(), traces, traces)
    for place, number in enumerate([3, 5]):
        alone = training.train_group(SHAPE, [number], recipe(), traces, traces)
        np.testing.assert_allclose(together.held_out_nll[place], alone.held_out_nll[0], rtol=1e-5)
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a[place], b[0], rtol=1e-4, atol=1e-5)


def test_keeps_the_parameters_of_the_best_held_out_loss_and_stops(traces):
    # Held-out traces that contradict what is learned: the loss gets worse from some epoch on.
    contrary = Sequences.from_list([(-np.arange(30)) % 3 for _ in range(3)])
    trained = training.train_group(SHAPE, [0], recipe(epochs=50, patience=2, schedule="constant"), traces, contrary)
    losses = [row["held_out_nll"][0] for row in trained.history]
    assert trained.epochs < 50 and len(losses) == trained.epochs
    assert trained.epochs == np.argmin(losses) + 1 + 2
    assert trained.held_out_nll[0] == np.float32(min(losses))
    sums = training.LanguageModelling(SHAPE, recipe(), traces, contrary).evaluate(trained.params, Mesh(1))
    np.testing.assert_allclose(sums["nll"] / sums["calls"], min(losses), rtol=1e-6)


@pytest.mark.parametrize("changes", [{"batching": "traces", "steps": 64}, {"batching": "lanes", "steps": 4}])
def test_the_training_loss_is_that_of_whole_traces_with_carried_state(traces, changes):
    still = recipe(epochs=1, dropout=0.0, learning_rate=1e-30, **changes)
    row = training.train_group(SHAPE, [0, 1], still, traces, traces).history[0]
    np.testing.assert_allclose(row["train_nll"], row["held_out_nll"], rtol=1e-6)


def test_several_steps_a_call_are_the_steps_one_after_another(traces, monkeypatch):
    """As on a GPU, where `TOGETHER` steps are one program; here of three, and a remainder."""
    arguments = SHAPE, [0, 1], recipe(epochs=2, minibatch_calls=64, steps=4), traces, traces
    one_by_one = training.train_group(*arguments)
    monkeypatch.setattr(optimisation, "TOGETHER", 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    runs = [len(run) for run in optimisation.in_runs(np.zeros(shape) for shape in [2] * 7 + [3] * 4)]
    assert runs == [3, 3, 1, 3, 1]
    together = training.train_group(*arguments)
    assert together.history[-1]["step"] == one_by_one.history[-1]["step"]
    for a, b in zip(jax.tree.leaves(one_by_one.params), jax.tree.leaves(together.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # a step moves by 4e-3; programs differ in rounding


def test_held_out_traces_share_no_copy_with_training():
    rng = np.random.default_rng(0)
    distinct = [rng.integers(0, V, 8) for _ in range(30)]
    traces = Sequences.from_list([distinct[i] for i in rng.integers(0, 30, 200)])
    chosen = training.choose_held_out(traces, 0.2, seed=0)
    inside = {calls.tobytes() for calls in traces.take(chosen)}
    outside = {calls.tobytes() for calls in traces.take(~chosen)}
    assert inside and outside and not inside & outside
    assert len(inside) == round(0.2 * len(inside | outside))


def test_repeated_shapes_become_numbered_members(traces):
    shapes = [SHAPE, lstm.Shape(V, 4), SHAPE]
    members, history = training.train_members(shapes, recipe(epochs=1), traces, traces)
    assert [member.name for member in members] == ["1x12.1", "1x4", "1x12.2"]
    assert [member.params["w_out"].shape for member in members] == [(12, V), (4, V), (12, V)]
    assert not np.array_equal(members[0].params["w_out"], members[2].params["w_out"])
    assert [row["shape"] for row in history] == ["1x12", "1x4"]


@given(st.integers(1, 3000), st.integers(1, 10**6))
@example(longest=1830, others=62165)  # a quarter of ADFA-LD's training traces, where 64 lanes stood half empty
@example(longest=4494, others=272_000)  # all of them
def test_lanes_do_not_wait_for_the_longest_trace(longest, others):
    calls = longest + others
    minibatch_calls, steps = training.minibatches_for(calls, longest)
    lanes = minibatch_calls // steps
    assert lanes * steps == minibatch_calls and 512 <= minibatch_calls <= 4096
    assert lanes == 1 or calls >= 0.75 * lanes * longest
    most = minibatch_calls // (64 if minibatch_calls == 4096 else 32)
    assert lanes == most or calls < 1.5 * lanes * longest  # and no fewer than that asks for
    assert training.minibatches_for(calls, longest, minibatch_calls=200, steps=16) == (200, 16)


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"learning_rate": -1.0}, {"learning_rate": float("nan")}, {"dropout": 1.0}, {"batching": "none"},
     {"schedule": "x"}, {"steps": 0}, {"patience": 0}, {"clip": 0.0}, {"minibatch_calls": -3}],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(changes):
    with pytest.raises(SyscallLMError, match=next(iter(changes))):
        recipe(**changes)


def test_a_gradient_beyond_the_clip_is_rescaled_to_it(traces):
    """So small a clip that Adam, whose steps do not depend on the scale of gradients otherwise, feels it."""
    recipe = training.Recipe(clip=1e-7, dropout=0.0, schedule="constant", minibatch_calls=96, steps=24)
    objective = training.LanguageModelling(lstm.Shape(V, 5), recipe, traces, traces)
    whole, step = optimisation.begin(objective, [0], recipe, 10)
    before = jax.tree.map(lambda leaf: np.array(leaf[0], np.float64), whole["params"])
    plan = next(iter(objective.plans(0)))

    def loss(params):
        carry, batch = objective.initial_carry(params), objective.gather(plan)
        return objective.loss(params, jax.random.key(0), carry, batch, 0)[0]

    gradient = jax.grad(loss)(jax.tree.map(np.float32, before))
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    assert norm > 1e-3
    after = step.whole(step(step.spread(whole), plan))["params"]

    def expected(old, leaf):
        clipped = np.asarray(leaf, np.float64) * recipe.clip / norm
        return old - recipe.learning_rate * clipped / (np.abs(clipped) + 1e-8)  # Adam's first step

    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(jax.tree.map(expected, before, gradient)), strict=True):
        np.testing.assert_allclose(new[0], old, atol=1e-6)


def test_a_diverging_run_says_so(traces):
    with pytest.raises(SyscallLMError, match="not finite"):
        training.train_group(SHAPE, [0], recipe(learning_rate=1e38), traces, traces)


def test_nothing_to_learn_from_is_refused(traces):
    empty = Sequences.from_list([])
    for train, held_out in [(empty, traces), (traces, empty)]:
        with pytest.raises(SyscallLMError, match="traces to learn from"):
            training.train_group(SHAPE, [0], recipe(), train, held_out)
    with pytest.raises(SyscallLMError, match="too few"):
        training.choose_held_out(Sequences.from_list([[1, 2], [1, 2]]), 0.5, 0)
    assert dataclasses.asdict(recipe())["epochs"] == 2
