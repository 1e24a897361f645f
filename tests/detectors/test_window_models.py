"""Windows, streams and traces are judged alike; a verdict names the call that was least expected."""

import jax
import numpy as np
import pytest

from syscall_lm.detectors.autoencoder import AutoencoderDetector
from syscall_lm.detectors.encoder_decoder import EncoderDecoderDetector
from syscall_lm.detectors.window_models import STRETCH, aggregated
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import shapes
from syscall_lm.models.store import Member
from syscall_lm.scoring import Scorer
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import WindowScorer
from syscall_lm.window_training import WindowRecipe

V, L, M = 7, 4, 2
MODELS = list(shapes.WINDOW_MODELS)


@pytest.fixture(scope="module")
def traces():
    """Shorter than a window, whole windows, and more; some windows twice."""
    rng = np.random.default_rng(0)
    random = [rng.integers(0, V, n) for n in (1, 3, 4, 9, 20, 33)]
    return Sequences.from_list([*random, random[4], np.tile([1, 2, 3, 4], 5)])


def random_parameters(shape, members=M):
    rng = np.random.default_rng(1)
    tree = jax.eval_shape(lambda key: shapes.module_of(shape).initialise(key, shape), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=(members, *leaf.shape)).astype(np.float32), tree)


@pytest.fixture(scope="module", params=MODELS)
def scorer(request):
    shape = shapes.window_shape(request.param, V, L, 5)
    return WindowScorer(shape, random_parameters(shape))


def test_windows_equal_their_trace_read_by_itself(scorer, traces):
    """Against the model's own output, window by window, in numpy."""
    found = scorer.surprisal(traces)
    logits = jax.jit(shapes.module_of(scorer.shape).logits)
    windows = scorer.windows(traces)
    for member in range(M):
        params = jax.tree.map(lambda leaf, i=member: leaf[i], scorer.params)
        for number in range(len(windows)):
            batch = windows.gather(np.array([number]))
            scores = np.asarray(jax.nn.log_softmax(logits(params, batch)))[:, 0]
            size, start = windows.sizes[number], windows.starts[number]
            expected = [-scores[i, traces.calls[start + i]] for i in range(size)]
            np.testing.assert_allclose(found[member, start : start + size], expected, rtol=1e-5, atol=1e-5)


def test_a_stream_call_by_call_equals_the_batch(scorer, traces):
    batch = scorer.surprisal(traces)
    stream = scorer.stream(lanes=2)
    for number, calls in enumerate(traces):
        stream.restart(1)  # the other lane goes on
        pushed = np.append(calls, [V] * stream.delay).astype(np.int64)
        told = np.stack([stream.push(np.array([2, call]))[:, 1] for call in pushed], 1)
        assert np.isnan(told[:, : stream.delay]).all()
        expected = batch[:, traces.offsets[number] : traces.offsets[number + 1]]
        np.testing.assert_allclose(told[:, stream.delay :], expected, rtol=1e-5, atol=1e-5)


def test_the_encoder_decoder_tells_at_once_and_the_autoencoder_a_window_later():
    delays = {model: shapes.window_shape(model, V, L).delay for model in MODELS}
    assert delays == {"encoder-decoder": 0, "autoencoder": L}


def test_models_of_windows_and_language_models_are_members_alike(traces):
    names = ["1x3", f"encoder-decoder-{L}x5", f"autoencoder-{L}x5"]
    members = []
    for name in [*names, names[1]]:
        shape = shapes.parse(name, V)
        assert str(shape) == name
        members.append(Member(name, shape, jax.tree.map(lambda leaf: leaf[0] + len(members), random_parameters(shape))))
    together = Scorer(members)
    assert together.names == [*names, names[1]]
    alone = [Scorer([member]).surprisal(traces)[0] for member in members]
    np.testing.assert_allclose(together.surprisal(traces), alone, rtol=1e-5, atol=1e-5)
    windows = WindowScorer(members[1].shape, jax.tree.map(lambda leaf: leaf[None], members[1].params))
    np.testing.assert_allclose(alone[1], windows.surprisal(traces)[0], rtol=1e-5)
    for ask in (lambda: together.final_states(traces), together.stream):
        with pytest.raises(SyscallLMError, match=f"encoder-decoder-{L}x5 reads windows"):
            ask()


@pytest.mark.parametrize("text", ["encoder-decoder-x64", "autoencoder-10x0", "autoencoder-64", "autoencoder-9999x64"])
def test_a_name_that_says_no_window_model_is_refused(text):
    with pytest.raises(SyscallLMError, match="LENGTHxCELLS"):
        shapes.parse(text, V)


@pytest.fixture(scope="module", params=[EncoderDecoderDetector, AutoencoderDetector])
def detector(request, traces):
    shape = shapes.window_shape(request.param.model, V, L, 5)
    params = jax.tree.map(lambda leaf: leaf[0], random_parameters(shape))
    return request.param.of_trained(shape, params, false_alarm_rate=0.3).fit(traces, traces)


def test_a_window_verdict_names_the_least_expected_call(detector, traces):
    verdicts = detector.verdicts(traces)
    surprisal = detector.surprisal(traces)
    assert verdicts.size.sum() == len(traces.calls)
    for i in range(len(verdicts)):
        begin = traces.offsets[verdicts.trace[i]]
        start = begin + verdicts.start[i]
        values = surprisal[start : start + verdicts.size[i]]
        np.testing.assert_allclose(verdicts.score[i], values.mean(), rtol=1e-5)
        assert begin + verdicts.least_expected[i] == start + values.argmax()
        assert verdicts.call[i] == traces[verdicts.trace[i]][verdicts.least_expected[i]]
        assert verdicts.surprisal[i] == values.max()
        assert verdicts.abnormal[i] == (verdicts.score[i] > detector.window_threshold_)
    assert 0 < verdicts.abnormal.mean() <= 0.3


def test_live_verdicts_equal_those_of_the_whole_trace(detector, traces):
    verdicts = detector.verdicts(traces)
    watch = detector.watch()
    for number, calls in enumerate(traces):
        live = [verdict for call in calls if (verdict := watch.push(int(call)))] + watch.finish()
        of_trace = np.flatnonzero(verdicts.trace == number)
        assert len(live) == len(of_trace)
        for one, i in zip(live, of_trace, strict=True):
            expected = (verdicts.start[i], verdicts.least_expected[i], verdicts.call[i])
            assert (one.start, one.least_expected, one.call) == expected
            # The threshold is the score of one of these windows, which rounding may put on either side.
            tie = abs(verdicts.score[i] - detector.window_threshold_) < 1e-5
            assert one.abnormal == verdicts.abnormal[i] or tie
            np.testing.assert_allclose(
                [one.score, one.surprisal], [verdicts.score[i], verdicts.surprisal[i]], rtol=1e-5
            )


def test_a_trace_is_scored_by_its_mean_or_its_highest_stretch():
    traces = Sequences.from_list([np.zeros(100), np.zeros(5)])
    surprisal = np.concatenate([np.zeros(20), np.full(STRETCH, 2.0), np.zeros(20), np.full(5, 1.0)])
    np.testing.assert_allclose(aggregated(surprisal, traces, "mean"), [1.2, 1.0])
    np.testing.assert_allclose(aggregated(surprisal, traces, "highest"), [2.0, 1.0])
    with pytest.raises(SyscallLMError, match="aggregate"):
        EncoderDecoderDetector(V, aggregate="median")


def test_fit_trains_and_an_unknown_call_is_abnormal():
    normal = Sequences.from_list([(np.arange(24 + i) + i) % 3 for i in range(30)])
    strange = Sequences.from_list([np.full(20, 5)])
    recipe = WindowRecipe(length=L, epochs=3, learning_rate=0.1, minibatch_windows=32)
    detector = AutoencoderDetector(V, recipe, cells=8, members=2, false_alarm_rate=0.3)
    with pytest.raises(SyscallLMError, match="fit it"):
        detector.surprisal(strange)
    detector.fit(normal, normal)
    assert detector.predict(strange).tolist() == [1] and detector.predict(normal).mean() <= 0.3
