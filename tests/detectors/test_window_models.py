"""Windows, streams and traces are judged alike; a verdict names the call that was least expected."""

import json

import jax
import numpy as np
import pytest

from syscall_lm.detectors.autoencoder import AutoencoderDetector
from syscall_lm.detectors.encoder_decoder import EncoderDecoderDetector
from syscall_lm.detectors.language_model import calibrate
from syscall_lm.detectors.window_models import STRETCH, aggregated
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import autoencoder, encoder_decoder, shapes, store
from syscall_lm.models.store import Member
from syscall_lm.scoring import Scorer
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.vocabulary import Vocabulary
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
    check_live_verdicts(detector, traces)


def check_live_verdicts(detector, traces):
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


def test_an_id_that_the_model_does_not_know_is_refused_and_changes_nothing(detector, traces):
    for bad in (V, 999, -1):
        watch, undisturbed = detector.watch(), detector.watch()
        for call in traces[4]:
            with pytest.raises(SyscallLMError, match=f"call id {bad}: this model knows ids from 0 to {V - 1}"):
                watch.push(bad)
            assert watch.push(int(call)) == undisturbed.push(int(call))
        assert watch.finish() == undisturbed.finish()
    with pytest.raises(SyscallLMError, match=f"call id {V}"):
        detector.surprisal(Sequences.from_list([[0, V, 1]]))


def test_what_was_not_fitted_says_so(detector, traces):
    params = jax.tree.map(lambda leaf: leaf[0], detector.scorer.params)
    unfitted = type(detector).of_trained(detector.shape, params)
    for judge in (unfitted.predict, unfitted.verdicts, lambda traces: unfitted.watch()):
        with pytest.raises(SyscallLMError, match="fit it before it judges"):
            judge(traces)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_model, traces):
    """A model directory with both kinds of window models beside others, calibrated on the traces."""
    path = tmp_path_factory.mktemp("stored") / "model"
    names = ["1x4", f"encoder-decoder-{L}x5", f"autoencoder-{L}x5", f"autoencoder-{L}x3"]
    model = store.load(tiny_model(path, Vocabulary(tuple("abcdef"), "letters"), names))
    calibration = calibrate(model.members, traces, traces, "test")
    (path / store.CALIBRATION).write_text(json.dumps(calibration.to_json([one.name for one in model.members])))
    return model


@pytest.mark.parametrize(
    ("kind", "name"), [(EncoderDecoderDetector, ""), (AutoencoderDetector, f"autoencoder-{L}x5.3")]
)
def test_a_stored_model_judges_streams_and_traces_as_one_that_was_fitted(kind, name, stored, traces):
    loaded = kind.load(stored, name, false_alarm_rate=0.3)
    params = next(one.params for one in stored.members if one.name.startswith(f"{kind.model}-{L}x5"))
    fitted = kind.of_trained(loaded.shape, params, false_alarm_rate=0.3).fit(traces, traces)
    np.testing.assert_allclose(loaded.threshold_, fitted.threshold_, rtol=1e-6)
    np.testing.assert_allclose(loaded.window_threshold_, fitted.window_threshold_, rtol=1e-6)
    check_live_verdicts(loaded, traces)


def test_a_model_directory_without_what_is_asked_is_refused(stored, tiny_model, tmp_path):
    with pytest.raises(SyscallLMError, match=f"not one but 2 of its members .*autoencoder-{L}x3.4"):
        AutoencoderDetector.load(stored)
    with pytest.raises(SyscallLMError, match="not one but 0 .* called 1x4.1"):
        EncoderDecoderDetector.load(stored, "1x4.1")
    path = tiny_model(tmp_path / "old", Vocabulary(tuple("abcdef"), "letters"), [f"encoder-decoder-{L}x5"])
    value = json.loads((path / store.CALIBRATION).read_text())
    del value["members"][f"encoder-decoder-{L}x5.1"]["windows"]
    (path / store.CALIBRATION).write_text(json.dumps(value))
    with pytest.raises(SyscallLMError, match="no scores of windows; run `calibrate` again"):
        EncoderDecoderDetector.load(store.load(path))


def test_the_next_window_is_foretold_from_the_last_calls(traces):
    shape = shapes.window_shape("encoder-decoder", V, L, 5)
    params = random_parameters(shape)
    detector = EncoderDecoderDetector(V, WindowRecipe(length=L), cells=5, members=M)
    detector.scorer = WindowScorer(shape, params)
    batch = jax.jit(encoder_decoder.beam, static_argnames="width")
    for member, width in ((0, 1), (1, 3)):
        one = jax.tree.map(lambda leaf, i=member: leaf[i], params)
        found = detector.predict_next(traces, width, member)
        assert found.calls.shape == (len(traces), width, L) and (np.diff(found.log_probability) <= 0).all()
        for number, calls in enumerate(traces):
            before = np.concatenate([np.full(L, V), calls])[-L:, None]  # GO where the trace had not begun
            expected, score = batch(one, before, width=width)
            np.testing.assert_array_equal(found.calls[number], np.asarray(expected)[..., 0])
            np.testing.assert_allclose(found.log_probability[number], np.asarray(score)[:, 0], rtol=1e-5)
            # ln P is what the scorer says of a trace that goes on so; its windows begin anew at the last calls.
            longer = Sequences.from_list([np.append(before[before < V], found.calls[number, 0])])
            if len(longer.calls) == 2 * L:
                surprisal = detector.scorer.surprisal(longer)[member, L:]
                np.testing.assert_allclose(-surprisal.sum(), found.log_probability[number, 0], rtol=1e-5)
    with pytest.raises(SyscallLMError, match="width=0"):
        detector.predict_next(traces, 0)
    with pytest.raises(SyscallLMError, match=f"member={M}"):
        detector.predict_next(traces, member=M)


def test_reconstruction_is_the_most_probable_call_at_every_position(traces):
    shape = shapes.window_shape("autoencoder", V, L, 5)
    params = random_parameters(shape)
    detector = AutoencoderDetector(V, WindowRecipe(length=L), cells=5, members=M)
    detector.scorer = WindowScorer(shape, params)
    found = detector.reconstruct(traces, member=1)
    windows = detector.scorer.windows(traces)
    one = jax.tree.map(lambda leaf: leaf[1], params)
    for number, (start, size) in enumerate(zip(windows.starts, windows.sizes, strict=True)):
        scores = jax.jit(autoencoder.logits)(one, windows.gather(np.array([number])))
        np.testing.assert_array_equal(found[start : start + size], np.asarray(scores)[:size, 0].argmax(-1))


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
