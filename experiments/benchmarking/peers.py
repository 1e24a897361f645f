"""What a user would write instead: the same model in PyTorch and in Flax, on the same weights.

Each peer offers `score(inputs, targets)` -> surprisals `[T, B]` and `train_step(inputs, targets)`, one step of Adam
with clipping and dropout, on int arrays `[T, B]`; a target of -1 is padding.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from syscall_lm.errors import SyscallLMError
from syscall_lm.models import lstm
from syscall_lm.types import Params

DROPOUT, CLIP, RATE = 0.5, 5.0, 1e-3


class Peer(Protocol):
    """One implementation of one model."""

    def score(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Surprisals `[T, B]` of traces that all start at the first step."""
        ...

    def train_step(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """One step of Adam; returns when the parameters are there."""
        ...


class Torch:
    """`nn.Embedding`, `nn.LSTM`, `nn.Linear`, `cross_entropy`: what the PyTorch tutorial builds."""

    def __init__(self, shape: lstm.Shape, params: Params, threads: int):
        try:
            import torch  # pyright: ignore[reportMissingImports] - the `bench` extra; nothing else needs it
        except ImportError as error:
            raise SyscallLMError("the benchmark needs PyTorch: pip install -e '.[bench]'") from error

        self._torch = torch
        torch.set_num_threads(threads)
        self._threads = threads
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        v, h = shape.vocabulary_size, shape.cells

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.Embedding(v + 1, h)
                self.lstm = torch.nn.LSTM(h, h, shape.layers, dropout=DROPOUT if shape.layers > 1 else 0.0)
                self.out = torch.nn.Linear(h, v)
                self.drop = torch.nn.Dropout(DROPOUT)

            def forward(self, inputs, targets):
                hidden, _ = self.lstm(self.embedding(inputs))
                logits = self.out(self.drop(hidden))
                nll = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-1
                )
                return nll.view(targets.shape)

        self._model = Model()
        with torch.no_grad():
            weights = {
                "embedding.weight": params["embedding"],
                "out.weight": params["w_out"].T,
                "out.bias": params["b_out"],
            }
            for i in range(shape.layers):
                layer = params["layers"][str(i)]
                weights |= {f"lstm.weight_ih_l{i}": layer["w_ih"].T, f"lstm.weight_hh_l{i}": layer["w_hh"].T}
                weights |= {f"lstm.bias_ih_l{i}": layer["b"], f"lstm.bias_hh_l{i}": jnp.zeros_like(layer["b"])}
            self._model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in weights.items()})
        self._model.to(self._device)
        self._adam = torch.optim.Adam(self._model.parameters(), RATE)

    def _tensor(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self._device)

    def score(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Peer`."""
        self._torch.set_num_threads(self._threads)
        self._model.eval()
        with self._torch.inference_mode():
            return self._model(self._tensor(inputs), self._tensor(targets)).cpu().numpy()

    def stream(self, lanes: int, go: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function that scores the next call of so many live traces, `[B]` to `[B]`, and carries the state on."""
        torch, model, state, previous = self._torch, self._model.eval(), None, np.full(lanes, go)
        torch.set_num_threads(self._threads)

        def push(calls: np.ndarray) -> np.ndarray:
            nonlocal state, previous
            with torch.inference_mode():
                hidden, state = model.lstm(model.embedding(self._tensor(previous[None])), state)
                logits, previous = model.out(hidden[0]), calls
                return torch.nn.functional.cross_entropy(logits, self._tensor(calls), reduction="none").cpu().numpy()

        return push

    def scoring_on_gpu(self, inputs: np.ndarray, targets: np.ndarray, half: bool) -> Callable[[], None]:
        """A function that scores what lies on the GPU already, and leaves the surprisals there.

        Args:
          inputs, targets: `[T, B]`.
          half: weights, states and products in bfloat16, which cuDNN has tensor cores for; else TF32.
        """
        torch = self._torch
        torch.set_float32_matmul_precision("high")
        model = self._model.eval().bfloat16() if half else self._model.eval()
        model.lstm.flatten_parameters()  # a change of type takes cuDNN's one block of weights apart
        arrays = self._tensor(inputs), self._tensor(targets)

        def run() -> None:
            with torch.inference_mode():
                model(*arrays)
            torch.cuda.synchronize()

        return run

    def train_step(self, inputs: np.ndarray, targets: np.ndarray, half: bool = False) -> None:
        """See `Peer`; with `half`, products in bfloat16 (automatic mixed precision)."""
        self._torch.set_num_threads(self._threads)
        self._model.train()
        self._adam.zero_grad()
        expected = self._tensor(targets)
        with self._torch.autocast(self._device, self._torch.bfloat16, enabled=half):
            loss = self._model(self._tensor(inputs), expected).sum() / (expected >= 0).sum()
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        self._adam.step()


class Flax:
    """`nn.RNN` of `nn.OptimizedLSTMCell`, jit-compiled: what Flax's own examples build."""

    def __init__(self, shape: lstm.Shape, params: Params):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, inputs, targets, train: bool):
                hidden = nn.Embed(shape.vocabulary_size + 1, shape.cells, name="embedding")(inputs)
                for i in range(shape.layers):
                    if i > 0:
                        hidden = nn.Dropout(DROPOUT, deterministic=not train)(hidden)
                    cell = nn.OptimizedLSTMCell(shape.cells, name=f"cell_{i}")
                    hidden = nn.RNN(cell, time_major=True)(hidden)
                hidden = nn.Dropout(DROPOUT, deterministic=not train)(hidden)
                logits = nn.Dense(shape.vocabulary_size, name="out")(hidden)
                return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

        model = Model()
        self._params = {
            "embedding": {"embedding": params["embedding"]},
            "out": {"kernel": params["w_out"], "bias": params["b_out"]},
            **{f"cell_{i}": flax_cell(params["layers"][str(i)]) for i in range(shape.layers)},
        }
        adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
        self._state = adam.init(self._params)
        self._key = jax.random.key(0)
        self._score = jax.jit(lambda params, inputs, targets: model.apply({"params": params}, inputs, targets, False))

        def step(params, state, key, inputs, targets):
            def loss(params):
                known = targets >= 0
                chances = {"dropout": key}
                nll = model.apply({"params": params}, inputs, jnp.maximum(targets, 0), True, rngs=chances)
                return jnp.sum(jnp.where(known, nll, 0)) / jnp.sum(known)  # type: ignore[arg-type]

            updates, state = adam.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        self._step: Callable[..., Any] = jax.jit(step)

    def score(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Peer`."""
        return np.asarray(self._score(self._params, inputs, targets))

    def train_step(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """See `Peer`."""
        self._key, key = jax.random.split(self._key)
        self._params, self._state = jax.block_until_ready(self._step(self._params, self._state, key, inputs, targets))


def flax_cell(layer: Params) -> Params:
    """A layer's weights as parameters of `flax.linen.OptimizedLSTMCell`."""
    cells = layer["w_hh"].shape[0]
    parts = {name: slice(k * cells, (k + 1) * cells) for k, name in enumerate("ifgo")}
    inputs = {f"i{name}": {"kernel": layer["w_ih"][:, part]} for name, part in parts.items()}
    hidden = {f"h{name}": {"kernel": layer["w_hh"][:, part], "bias": layer["b"][part]} for name, part in parts.items()}
    return inputs | hidden
