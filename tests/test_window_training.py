"""The window models learn through the same loop, are measured as the paper measures them, and resume exactly."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm import checkpoints, window_training
from syscall_lm.errors import SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.models import encoder_decoder, shapes
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.windows import Windows

V, L = 4, 3


@pytest.fixture(scope="module")
def traces():
    """0 1 2 0 1 2 ..., each from another beginning: any window is certain once a call before it is known."""
    return Sequences.from_list([(np.arange(20 + i) + i) % 3 for i in range(12)])


def recipe(**changes):
    values = {"epochs": 2, "learning_rate": 0.03, "length": L, "minibatch_windows": 16, "seed": 3, "together": 2}
    return window_training.WindowRecipe(**(values | changes))


def shape(model):
    return shapes.window_shape(model, V, L, 8)


def check_that_it_learned(trained):
    last = trained.history[-1]
    # At a trace's beginning only the first call is uncertain, for the model that has to foretell it.
    assert min(last["held_out_call_accuracy"]) > 0.95 and max(last["held_out_nll"]) < 0.25
    assert min(last["held_out_window_accuracy"]) > 0.9
    best = np.min([row["held_out_nll"] for row in trained.history], 0)
    np.testing.assert_allclose(trained.held_out_nll, best, rtol=1e-6)
    assert all(not np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(trained.params))  # seeds differ


def test_the_encoder_decoder_learns_what_is_certain(traces):
    check_that_it_learned(
        window_training.train_group(shape("encoder-decoder"), [0, 1], recipe(epochs=10), traces, traces)
    )


def test_the_autoencoder_learns_what_is_certain_and_resumes_to_the_last_bit(traces, tmp_path, monkeypatch):
    arguments = (shape("autoencoder"), [0, 1], recipe(epochs=10), traces, traces)
    whole = window_training.train_group(*arguments)
    check_that_it_learned(whole)

    class Interrupted(Exception):
        pass

    save, saved = checkpoints.Checkpoints.save, []

    def save_and_stop(self, state, history):
        if len(history) >= 8:  # writing is slow
            save(self, state, history)
        saved.append(len(history))
        if len(saved) == 8:
            raise Interrupted

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
    with pytest.raises(Interrupted):
        window_training.train_group(*arguments, tmp_path)
    for _ in range(2):  # a finished run is found again, not repeated
        resumed = window_training.train_group(*arguments, tmp_path)
        assert saved == list(range(1, 11))
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
            np.testing.assert_array_equal(a, b)


def test_interrupted_within_an_epoch_it_ends_with_the_same_parameters(traces, tmp_path, monkeypatch):
    arguments = (shape("encoder-decoder"), [0, 1], recipe(), traces, traces)
    whole = window_training.train_group(*arguments)

    class Interrupted(Exception):
        pass

    save = checkpoints.Checkpoints.save

    def save_and_stop(self, state, history):
        save(self, state, history)
        if state["batch"]:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoints, "due", lambda self, step: step == 13)  # an epoch has 10
        patched.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(Interrupted):
            window_training.train_group(*arguments, tmp_path)
    resumed = window_training.train_group(*arguments, tmp_path)
    assert ["seconds" in row for row in resumed.history] == [True, False]  # its second epoch was interrupted
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_accuracy_is_that_of_greedy_decoding(traces):
    """Windows predicted exactly / windows, counted by hand from what the decoder says without being told."""
    objective = window_training.WindowPrediction(shape("encoder-decoder"), recipe(), traces, traces)
    rng = np.random.default_rng(2)
    tree = jax.eval_shape(objective.initialise, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), tree)
    sums = objective.evaluate(jax.tree.map(lambda leaf: leaf[None], params), Mesh(1))
    windows = Windows(traces, L, recipe().stride, V)
    batch = windows.gather(np.flatnonzero(windows.whole))
    greedy = np.asarray(jax.jit(encoder_decoder.greedy)(params, batch.before))
    assert sums["windows_right"] == (greedy == batch.calls).all(0).sum()
    assert sums["windows"] == windows.whole.sum()
    assert sums["calls"] == windows.sizes.sum()
    metrics = objective.metrics(sums)
    np.testing.assert_allclose(metrics["window_accuracy"], sums["windows_right"] / sums["windows"])


@pytest.mark.parametrize("model", shapes.WINDOW_MODELS)
def test_what_is_learned_from_is_what_the_logits_say(model, traces):
    module, go = shapes.module_of(shape(model)), V
    params = module.initialise(jax.random.key(3), shape(model))
    merged = np.stack([np.append(np.arange(15), -1), np.append(np.arange(15) % 3 + 1, 0)])
    batch = Windows(traces, L, recipe().stride, go).gather_merged(merged)
    times = np.asarray(batch.mask, np.float32)
    assert times.max() == 3 and times.min() == 0

    def plain(params):
        scores = jax.nn.log_softmax(module.logits(params, batch))
        nll = -jnp.take_along_axis(scores, np.where(times > 0, batch.calls, 0)[..., None], -1)[..., 0]
        return (times * nll).sum(), (nll, scores.argmax(-1) == batch.calls)

    def ours(params):
        total, *values = module.judge(params, batch)
        return total, tuple(values)

    (expected, found) = (jax.jit(jax.value_and_grad(loss, has_aux=True))(params) for loss in (plain, ours))
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    for ours_, plain_ in zip(found[0][1], expected[0][1], strict=True):
        np.testing.assert_allclose(np.asarray(ours_)[times > 0], np.asarray(plain_)[times > 0], rtol=1e-5, atol=1e-6)
    for ours_, plain_ in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours_, plain_, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", shapes.WINDOW_MODELS)
def test_members_trained_together_equal_members_trained_alone(model, traces):
    few = traces.take(np.arange(4))
    arguments = (recipe(epochs=1), few, few)
    together = window_training.train_group(shape(model), [3, 5], *arguments)
    for place, number in enumerate([3, 5]):
        alone = window_training.train_group(shape(model), [number], *arguments)
        np.testing.assert_allclose(together.held_out_nll[place], alone.held_out_nll[0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a[place], b[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", shapes.WINDOW_MODELS)
def test_gradients_under_vmap_equal_those_of_each_member_alone(model, traces):
    """An accelerator trains seeds so; on a CPU members take turns."""
    objective = window_training.WindowPrediction(shape(model), recipe(), traces, traces)
    batch = objective.gather(np.stack([np.arange(12), np.arange(12) % 3]))
    params = jax.vmap(objective.initialise)(jax.random.split(jax.random.key(0), 3))
    gradient = jax.grad(functools.partial(objective.loss, first=0), has_aux=True)
    together = jax.jit(jax.vmap(gradient, (0, None, None, None)))(params, jax.random.key(0), None, batch)
    for member in range(3):
        one = jax.tree.map(lambda leaf, member=member: leaf[member], params)
        alone = jax.jit(gradient)(one, jax.random.key(0), None, batch)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[member], b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", shapes.WINDOW_MODELS)
def test_a_minibatch_with_equal_windows_merged_is_the_same_minibatch(model, traces):
    objective = window_training.WindowPrediction(shape(model), recipe(), traces, traces)
    windows = Windows(traces, L, recipe().stride, V)
    numbers = np.repeat(np.arange(12), np.arange(12) % 4)
    params = objective.initialise(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(functools.partial(objective.loss, first=0), has_aux=True))
    merged = loss(params, jax.random.key(0), None, objective.gather(windows.merged(numbers, 8)))
    (value, (sums, _)), gradient = loss(params, jax.random.key(0), None, windows.gather(numbers))
    (merged_value, (merged_sums, _)), merged_gradient = merged
    np.testing.assert_allclose(merged_value, value, rtol=1e-6)
    np.testing.assert_allclose(merged_sums.pop("nll"), sums.pop("nll"), rtol=1e-6)
    assert merged_sums == sums and sums["windows"] > 0
    for a, b in zip(jax.tree.leaves(merged_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("together", [1, 4])
def test_every_window_is_learned_from_once_an_epoch(traces, together):
    objective = window_training.WindowPrediction(shape("autoencoder"), recipe(together=together), traces, traces)
    windows = Windows(traces, L, recipe().stride, V)
    expected = contents(windows.gather(np.arange(len(windows))), np.ones(len(windows), int))
    epochs = [list(objective.plans(epoch)) for epoch in range(2)]
    for plans in epochs:
        learned = sum((contents(windows.gather(plan[0]), plan[1]) for plan in plans), collections.Counter())
        assert learned == expected
    assert contents(windows.gather(epochs[0][0][0]), epochs[0][0][1]) != contents(
        windows.gather(epochs[1][0][0]), epochs[1][0][1]
    )


def contents(batch, times):
    """How often windows of each content occur."""
    found = collections.Counter()
    for column, number in zip(np.concatenate(batch).T, times, strict=True):
        found[tuple(column)] += int(number)
    return +found


def test_what_makes_no_sense_is_refused(traces):
    for changes in (
        {"length": 0},
        {"stride": 0},
        {"minibatch_windows": -1},
        {"together": 0},
        {"epochs": 0},
        {"schedule": "x"},
    ):
        with pytest.raises(SyscallLMError, match=next(iter(changes))):
            recipe(**changes)
    with pytest.raises(SyscallLMError, match="no window model"):
        shapes.window_shape("transformer", V, L)
    with pytest.raises(SyscallLMError, match="windows of 3"):
        window_training.train_group(shape("autoencoder"), [0], recipe(length=4), traces, traces)
    with pytest.raises(SyscallLMError, match="traces to learn from"):
        window_training.train_group(shape("autoencoder"), [0], recipe(), Sequences.from_list([]), traces)
