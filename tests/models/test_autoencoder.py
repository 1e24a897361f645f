"""The autoencoder equals four Keras-style layers, and can tell positions apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm.models import autoencoder
from syscall_lm.models.autoencoder import Autoencoder, Shape
from syscall_lm.traces.windows import Batch

V, L, B = 5, 3, 4
SHAPE = Shape(V, L, 6)


class KerasStyle(nn.Module):
    """Flatten, Dense(L), RepeatVector(L), Flatten, Dense(L * H), Reshape, TimeDistributed(Dense(V))."""

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


def test_equals_keras_style_layers_of_the_same_weights():
    params = random_parameters()
    calls = np.random.default_rng(0).integers(0, V, (L, B))
    # Each position reads its own copy of the code: a block-diagonal kernel of the dense layer over all copies.
    hidden = np.zeros((L, L, L, SHAPE.cells), np.float32)
    hidden[np.arange(L), :, np.arange(L)] = params["w_hidden"]
    weights = {
        "code": {"kernel": params["w_code"][:, :V].reshape(L * V, L), "bias": params["b_code"]},
        "hidden": {"kernel": hidden.reshape(L * L, L * SHAPE.cells), "bias": params["b_hidden"].reshape(-1)},
        "out": {"kernel": params["w_out"], "bias": params["b_out"]},
    }
    expected = jax.jit(KerasStyle().apply)({"params": weights}, np.eye(V, dtype=np.float32)[calls.T])
    batch = Batch(calls, calls, np.ones((L, B), bool))
    found = jax.jit(Autoencoder(SHAPE).apply)({"params": params}, batch)
    np.testing.assert_allclose(found, np.swapaxes(expected, 0, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(autoencoder.reconstruct)(params, batch), np.asarray(expected).argmax(-1).T)


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
