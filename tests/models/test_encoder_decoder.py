"""The encoder-decoder equals a Keras-style one of Flax's own layers, and decodes what it should."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.models import encoder_decoder
from syscall_lm.models.encoder_decoder import EncoderDecoder, Shape
from syscall_lm.traces.windows import Batch

V, L, B = 4, 3, 5
SHAPE = Shape(V, L, 6)


class KerasStyle(nn.Module):
    """Embedding; LSTM with return_state; LSTM with return_sequences and that state; Dense: teacher forcing."""

    @nn.compact
    def __call__(self, before, inputs):
        embedding = nn.Embed(V + 1, SHAPE.cells, name="embedding")
        encoder = nn.RNN(nn.OptimizedLSTMCell(SHAPE.cells, name="encoder"), return_carry=True)
        decoder = nn.RNN(nn.OptimizedLSTMCell(SHAPE.cells, name="decoder"))
        state, _ = encoder(embedding(before))
        return nn.Dense(V, name="dense")(decoder(embedding(inputs), initial_carry=state))


def keras_weights(params):
    def cell(layer):
        parts = {name: slice(k * SHAPE.cells, (k + 1) * SHAPE.cells) for k, name in enumerate("ifgo")}
        inputs = {f"i{name}": {"kernel": layer["w_ih"][:, part]} for name, part in parts.items()}
        recurrent = {
            f"h{name}": {"kernel": layer["w_hh"][:, part], "bias": layer["b"][part]} for name, part in parts.items()
        }
        return inputs | recurrent

    return {
        "embedding": {"embedding": params["embedding"]},
        "encoder": cell(params["encoder"]),
        "decoder": cell(params["decoder"]),
        "dense": {"kernel": params["w_out"], "bias": params["b_out"]},
    }


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(3)
    tree = jax.eval_shape(lambda key: encoder_decoder.initialise(key, SHAPE), jax.random.key(0))
    # Large enough that the gates leave their linear range.
    return jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    before, calls = rng.integers(0, V, (2, L, B), np.int32)
    before[:2, 0] = V  # a trace's second call: GO before it
    return Batch(before, calls, np.ones((L, B), bool))


@jax.jit
def _log_probabilities(params, batch):
    return jax.nn.log_softmax(encoder_decoder.logits(params, batch))


def log_probabilities(params, batch):
    return np.asarray(_log_probabilities(params, batch))


def test_equals_a_keras_style_encoder_decoder_and_its_gradients(params, batch):
    inputs = np.concatenate([np.full((1, B), V), batch.calls[:-1]])

    @jax.jit
    def ours(params):
        scores = EncoderDecoder(SHAPE).apply({"params": params}, batch)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), batch.calls[..., None], -1).mean(), scores

    @jax.jit
    def theirs(weights):
        scores = KerasStyle().apply({"params": weights}, batch.before.T, inputs.T)
        scores = jnp.swapaxes(scores, 0, 1)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), batch.calls[..., None], -1).mean(), scores

    (_, found), gradients = jax.value_and_grad(ours, has_aux=True)(params)
    (_, expected), expected_gradients = jax.value_and_grad(theirs, has_aux=True)(keras_weights(params))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(keras_weights(gradients)), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rows_of_calls_that_never_occur_are_not_missed(params, batch):
    rare = V - 2
    batch = batch._replace(
        before=np.where(batch.before == rare, 0, batch.before), calls=np.minimum(batch.calls, rare - 1)
    )
    known = np.delete(np.arange(V + 1), rare)

    def loss(params, known=None):
        return encoder_decoder.judge(params, batch, known)[0] / batch.calls.size

    both = [jax.jit(jax.value_and_grad(lambda p, k=k: loss(p, k)))(params) for k in (None, known)]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert not np.asarray(both[1][1]["embedding"])[rare].any()


def test_greedy_decoding_takes_the_most_probable_call_after_those_it_took(params, batch):
    found = np.asarray(jax.jit(encoder_decoder.greedy)(params, batch.before))
    teacher = log_probabilities(params, batch._replace(calls=found))
    np.testing.assert_array_equal(found, teacher.argmax(-1))


def test_a_window_is_predicted_exactly_if_all_its_calls_are_under_teacher_forcing(params, batch):
    greedy = np.asarray(jax.jit(encoder_decoder.greedy)(params, batch.before))
    calls = batch.calls.copy()
    calls[:, :2] = greedy[:, :2]
    right = log_probabilities(params, batch._replace(calls=calls)).argmax(-1) == calls
    np.testing.assert_array_equal(right.all(0), (greedy == calls).all(0))


def test_beam_search_equals_a_search_through_all_sequences(params, batch):
    every = np.array(list(itertools.product(range(V), repeat=L)))  # [V^L, L]
    width = V ** (L - 1)  # all beginnings stay in the beam, so nothing can be missed
    search = jax.jit(encoder_decoder.beam, static_argnames="width")
    found, score = (np.asarray(part) for part in search(params, batch.before, width=width))
    for lane in range(B):
        one = Batch(np.repeat(batch.before[:, lane : lane + 1], len(every), 1), every.T, np.ones(every.T.shape, bool))
        total = np.take_along_axis(log_probabilities(params, one), every.T[..., None], -1)[..., 0].sum(0)
        best = np.argsort(-total)[:width]
        np.testing.assert_allclose(score[:, lane], total[best], rtol=1e-5)
        np.testing.assert_array_equal(found[0, :, lane], every[best[0]])
        assert len({tuple(sequence) for sequence in found[:, :, lane]}) == width


def test_a_beam_of_one_is_greedy(params, batch):
    found, score = jax.jit(encoder_decoder.beam, static_argnames="width")(params, batch.before, width=1)
    greedy = jax.jit(encoder_decoder.greedy)(params, batch.before)
    np.testing.assert_array_equal(found[0], greedy)
    teacher = log_probabilities(params, batch._replace(calls=np.asarray(greedy)))
    np.testing.assert_allclose(score[0], teacher.max(-1).sum(0), rtol=1e-5)


def test_parameters_start_uniform_in_a_tenth():
    values = [
        np.ravel(leaf)
        for leaf in jax.tree.leaves(jax.jit(lambda key: encoder_decoder.initialise(key, SHAPE))(jax.random.key(1)))
    ]
    joined = np.concatenate(values)
    assert np.abs(joined).max() <= 0.1 and len(np.unique(joined)) > 0.99 * len(joined)
