"""The system-call language model as a Flax Linen module: declares the parameters, calls the pure functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from syscall_lm.models import lstm
from syscall_lm.types import Array, HostArray, Params


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, softmax (Kim et al., section 2.1, figure 2a).

    All parameters start uniform in [-0.1, 0.1] (section 3.2).

    Attributes:
      shape: the model's shape.
      dropout: on the connections from layer to layer and to the softmax, while training.
    """

    shape: lstm.Shape
    dropout: float = 0.0

    def setup(self):
        """Declares the parameters; the layout is that of models/lstm.py."""
        v, h = self.shape.vocabulary_size, self.shape.cells
        sizes = {"embedding": (v + 1, h), "w_out": (h, v), "b_out": (v,)}
        self.weights = {name: self.param(name, _uniform, size) for name, size in sizes.items()}
        self.layers = self.param("layers", _layers, self.shape.layers, h)

    def __call__(
        self, inputs: HostArray, targets: HostArray, reset: HostArray, state: lstm.State, *, train: bool = False
    ) -> tuple[Array, lstm.State]:
        """Surprisal of every call.

        Args:
          inputs: int `[T, B]`, the previous call, GO at a start.
          targets: int `[T, B]`, the calls themselves.
          reset: bool `[T, B]`, true where a trace starts.
          state: before the first step.
          train: drop connections with the module's `dropout`, from the rng collection "dropout".

        Returns:
          negative log-likelihoods `[T, B]` in nats, and the state after the last step.
        """
        params = {**self.weights, "layers": self.layers}
        key = self.make_rng("dropout") if train and self.dropout else None
        h, state = lstm.run(params, inputs, reset, state, key, self.dropout)
        return lstm.negative_log_likelihood(params, h, targets), state


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, -0.1, 0.1)


def _layers(key: Array, layers: int, cells: int) -> Params:
    sizes = {"w_ih": (cells, 4 * cells), "w_hh": (cells, 4 * cells), "b": (4 * cells,)}
    keys = iter(jax.random.split(key, layers * len(sizes)))
    return {str(i): {name: _uniform(next(keys), size) for name, size in sizes.items()} for i in range(layers)}


def initialise(key: Array, shape: lstm.Shape) -> Params:
    """Fresh parameters of one model."""
    ids = jnp.zeros((1, 1), jnp.int32)
    model = LanguageModel(shape)
    state = [(jnp.zeros((1, shape.cells)), jnp.zeros((1, shape.cells)))] * shape.layers
    return dict(model.init(key, ids, ids, ids.astype(bool), state)["params"])
