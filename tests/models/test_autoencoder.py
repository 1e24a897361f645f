"""The autoencoder equals four Keras-style layers, and can tell positions apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.models import autoencoder
from syscall_lm.models.autoencoder import Autoencoder, Shape
from syscall_lm.traces.windows import Batch

V, L, B = 5, 3, 4
SHAPE = Shape(V, L, 6)


class KerasStyle(nn.Module):
    """Flatten, Dense(L), RepeatVector(L), Flatten, Dense(L * H), Reshape, TimeDistributed(Dense(V)).

    The one-hot input has a feature for GO too: a window that its trace's end cuts off is filled up with it.
    """

    @nn.compact
    def __call__(self, one_hot):
        code = nn.Dense(L, name="code")(one_hot.reshape(len(one_hot), -1))
        repeated = jnp.repeat(code[:, None], L, 1).reshape(len(one_hot), -1)
        hidden = nn.Dense(L * SHAPE.cells, name="hidden")(repeated).reshape(-1, L, SHAPE.cells)
        return nn.Dense(V, name="out")(hidden)


def random_parameters():
    rng = np.random.default_rng(1)
    tree = jax.eval_shape(lambda key: autoencoder.initialise(key, SHAPE), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def keras_weights(params):
    # Each position reads its own copy of the code: a block-diagonal kernel of the dense layer over all copies.
    hidden = jnp.zeros((L, L, L, SHAPE.cells)).at[np.arange(L), :, np.arange(L)].set(params["w_hidden"])
    return {
        "code": {"kernel": params["w_code"].reshape(L * (V + 1), L), "bias": params["b_code"]},
        "hidden": {"kernel": hidden.reshape(L * L, L * SHAPE.cells), "bias": params["b_hidden"].reshape(-1)},
        "out": {"kernel": params["w_out"], "bias": params["b_out"]},
    }


def the_models_share(gradient):
    """Of a gradient of Keras-style weights: the reference has a product for each copy of the code at each position."""
    hidden = gradient["hidden"]["kernel"].reshape(L, L, L, SHAPE.cells)
    return {
        "w_code": gradient["code"]["kernel"].reshape(L, V + 1, L),
        "b_code": gradient["code"]["bias"],
        "w_hidden": hidden[np.arange(L), :, np.arange(L)],
        "b_hidden": gradient["hidden"]["bias"].reshape(L, SHAPE.cells),
        "w_out": gradient["out"]["kernel"],
        "b_out": gradient["out"]["bias"],
    }


def masked_mean(scores, batch):
    """Categorical cross-entropy per call that exists, of scores `[L, B, V]`."""
    targets = np.where(batch.mask, batch.calls, 0)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], -1)[..., 0]
    return jnp.where(batch.mask, nll, 0).sum() / batch.mask.sum()


@pytest.fixture(scope="module")
def batch():
    """Windows of which the last two end with their trace: GO, masked."""
    calls = np.random.default_rng(0).integers(0, V, (L, B))
    mask = np.ones((L, B), bool)
    mask[2:, -2] = mask[1:, -1] = False
    return Batch(calls, np.where(mask, calls, V), mask)


def test_equals_keras_style_layers_of_the_same_weights_and_their_gradients(batch):
    params = random_parameters()

    @jax.jit
    def ours(params):
        scores = Autoencoder(SHAPE).apply({"params": params}, batch)
        return masked_mean(scores, batch), scores

    @jax.jit
    def theirs(weights):
        scores = KerasStyle().apply({"params": weights}, np.eye(V + 1, dtype=np.float32)[batch.calls.T])
        scores = jnp.swapaxes(scores, 0, 1)
        return masked_mean(scores, batch), scores

    (_, found), gradients = jax.value_and_grad(ours, has_aux=True)(params)
    (_, expected), expected_gradients = jax.value_and_grad(theirs, has_aux=True)(keras_weights(params))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(autoencoder.reconstruct)(params, batch), np.asarray(expected).argmax(-1))
    assert gradients["w_code"][1:, V].any()  # GO is a feature like any call
    for name, expected in the_models_share(expected_gradients).items():
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    surprisal = jax.jit(autoencoder.surprisal)(params, batch)
    np.testing.assert_allclose(surprisal[batch.mask].mean(), masked_mean(found, batch), rtol=1e-5)


def test_positions_have_predictions_of_their_own():
    calls = np.array([[0], [1], [2]])
    scores = np.asarray(jax.jit(autoencoder.logits)(random_parameters(), Batch(calls, calls, calls >= 0)))
    assert not np.allclose(scores[0], scores[1]) and not np.allclose(scores[1], scores[2])


def test_starts_as_keras_does():
    params = jax.jit(lambda key: autoencoder.initialise(key, Shape(50, 4, 30)))(jax.random.key(0))
    limits = {"w_code": 4 * 50 + 4, "w_hidden": 4 + 30, "w_out": 30 + 50}
    for name, fans in limits.items():
        limit = np.sqrt(6 / fans)
        assert 0.9 * limit < np.abs(params[name]).max() <= limit
    assert all(not np.any(params[name]) for name in ("b_code", "b_hidden", "b_out"))
