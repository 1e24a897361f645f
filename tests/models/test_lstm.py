"""The LSTM stack equals Flax's own, on both paths."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm

SHAPES = [lstm.Shape(11, 6, 1), lstm.Shape(7, 5, 3)]


def flax_cell(layer):
    """The same weights as parameters of `flax.linen.OptimizedLSTMCell`."""
    cells = layer["w_hh"].shape[0]
    names = zip("ifgo", range(4), strict=True)
    parts = {name: slice(k * cells, (k + 1) * cells) for name, k in names}
    return {f"i{name}": {"kernel": layer["w_ih"][:, part]} for name, part in parts.items()} | {
        f"h{name}": {"kernel": layer["w_hh"][:, part], "bias": layer["b"][part]} for name, part in parts.items()
    }


def random_case(shape, steps=9, lanes=4, seed=0):
    params = language_model.initialise(jax.random.key(seed), shape)
    params = jax.tree.map(lambda leaf: leaf * 8, params)  # large enough that the gates leave their linear range
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, shape.vocabulary_size, (steps, lanes))
    inputs = np.concatenate([np.full((1, lanes), shape.vocabulary_size), targets[:-1]])
    reset = np.zeros((steps, lanes), bool)
    reset[0] = True
    return params, inputs, targets, reset


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_flax_rnn_of_optimized_lstm_cells(shape):
    params, inputs, targets, reset = random_case(shape)
    h = params["embedding"][inputs]
    for i in range(shape.layers):
        rnn = nn.RNN(nn.OptimizedLSTMCell(shape.cells), time_major=True)
        h = rnn.apply({"params": {"cell": flax_cell(params["layers"][str(i)])}}, h)
    expected = -jax.nn.log_softmax(h @ params["w_out"] + params["b_out"])
    expected = np.take_along_axis(np.asarray(expected), targets[..., None], -1)[..., 0]

    model = language_model.LanguageModel(shape)
    nll, _ = model.apply({"params": params}, inputs, targets, reset, lstm.initial_state(params, inputs.shape[1]))
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-5)
    _, folded = lstm.score(lstm.fold(params), lstm.initial_state(params, 4), inputs, targets, reset)
    np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities_of_the_next_call_sum_to_one(shape):
    params, inputs, _, reset = random_case(shape, steps=3, lanes=1)
    total = 0.0
    for call in range(shape.vocabulary_size):
        targets = jnp.full(inputs.shape, call)
        _, nll = lstm.score(lstm.fold(params), lstm.initial_state(params, 1), inputs, targets, reset)
        total += np.exp(-np.asarray(nll, np.float64))
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_dropout_is_on_the_connections_between_layers_and_keeps_the_mean():
    shape = lstm.Shape(5, 400, 1)
    params, inputs, _, reset = random_case(shape, steps=2, lanes=64)
    params = jax.tree.map(lambda leaf: leaf / 8, params)
    state = lstm.initial_state(params, 64)
    plain, _ = lstm.run(params, inputs, reset, state)
    dropped, _ = lstm.run(params, inputs, reset, state, jax.random.key(0), 0.5)
    share = float((np.asarray(dropped) == 0).mean())
    assert 0.48 < share < 0.52  # 51,200 draws: four standard deviations are 0.009
    again, _ = lstm.run(params, inputs, reset, state, jax.random.key(0), 0.5)
    np.testing.assert_array_equal(dropped, again)
    none, _ = lstm.run(params, inputs, reset, state, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(none, plain)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_what_a_lane_drops_depends_on_its_number_alone(steps):
    shape = lstm.Shape(5, 30, 2)
    params, inputs, _, reset = random_case(shape, steps=steps, lanes=9)

    def dropped(lanes, **options):
        state = lstm.initial_state(params, inputs[:, lanes].shape[1])
        h, _ = lstm.run(params, inputs[:, lanes], reset[:, lanes], state, jax.random.key(3), 0.4, **options)
        return np.asarray(h)

    whole = dropped(slice(None))
    rows = (whole == 0).reshape(-1, 30)
    assert len({row.tobytes() for row in rows}) == 9 * steps  # no two alike
    np.testing.assert_allclose(dropped(slice(4, 7), first=4), whole[:, 4:7], rtol=1e-6, atol=1e-7)
    assert not np.array_equal(dropped(slice(4, 7)) == 0, whole[:, 4:7] == 0)


def test_connections_from_the_embedding_are_never_dropped():
    shape = lstm.Shape(5, 100, 1)
    params, inputs, _, reset = random_case(shape, steps=6, lanes=8)
    state = lstm.initial_state(params, 8)
    plain, _ = lstm.run(params, inputs, reset, state)
    dropped, _ = lstm.run(params, inputs, reset, state, jax.random.key(0), 0.5)
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_those_of_embedding_every_call(shape):
    params, inputs, targets, reset = random_case(shape)
    reset[5, 2] = True

    def folded(params):
        h, _ = lstm.run(params, inputs, reset, lstm.initial_state(params, 4))
        return lstm.negative_log_likelihood(params, h, targets).sum()

    def embedding(params):
        x = params["embedding"][inputs]
        for i in range(shape.layers):
            layer, zero = params["layers"][str(i)], jnp.zeros((4, shape.cells))
            c, h, hidden = zero, zero, []
            for time, restart in enumerate(reset):
                c, h = (jnp.where(restart[:, None], 0, part) for part in (c, h))
                i_, f, g, o = jnp.split(x[time] @ layer["w_ih"] + layer["b"] + h @ layer["w_hh"], 4, -1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i_) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                hidden.append(h)
            x = jnp.stack(hidden)
        log_p = jax.nn.log_softmax(x @ params["w_out"] + params["b_out"])
        return -jnp.take_along_axis(log_p, targets[..., None], -1).sum()

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        found, expected = (jax.tree.leaves(jax.jit(jax.grad(f))(exact)) for f in (folded, embedding))
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-10)


def test_parameters_start_uniform_in_a_tenth():
    params = language_model.initialise(jax.random.key(1), lstm.Shape(50, 40, 2))
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() <= 0.1
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert abs(values.mean()) < 1e-3 and abs(values.std() - 0.2 / np.sqrt(12)) < 1e-3
    assert len(np.unique(values)) > 0.99 * len(values)  # no two arrays share their draws


@pytest.mark.parametrize("text", ["", "x", "1x", "x200", "0x5", "1x0", "-1x5", "1x2x3", "1.5x2", "١x2x", "1x99999999"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(SyscallLMError, match="LAYERSxCELLS"):
        lstm.Shape.parse(text, 10)


def test_a_shape_reads_what_it_writes():
    assert str(lstm.Shape.parse("2x400", 342)) == "2x400"
    assert lstm.Shape.parse("2x400", 342) == lstm.Shape(342, 400, 2)
    assert lstm.Shape(342, 200).flops_per_call == 8 * 200 * 200 + 2 * 200 * 342
