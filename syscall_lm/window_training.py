"""Training the models that read windows: the encoder-decoder and the autoencoder (the loop itself: loop.py)."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm import cpu, loop, optimisation
from syscall_lm.errors import SyscallLMError
from syscall_lm.loop import Trained
from syscall_lm.mesh import Mesh
from syscall_lm.models import autoencoder, encoder_decoder, shapes
from syscall_lm.models.shapes import WindowShape
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.windows import Batch, Windows, in_batches
from syscall_lm.types import Array, Params

HELD_OUT_BATCH = 512
MERGED_MULTIPLE = 16  # of windows that a minibatch on a CPU has once equal ones are merged: each is a program

# Chosen by the held-out loss of normal traces, but for `together`, which it bears (experiments/soni2019/train.py).
RECIPES: Mapping[str, Mapping[str, Any]] = {
    encoder_decoder.NAME: {"learning_rate": 1e-2, "epochs": 24, "patience": 4, "together": 8},
    autoencoder.NAME: {
        "learning_rate": 8e-2,
        "epochs": 100,
        "patience": 100,
    },  # its loss is rough, and falls to the end
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowRecipe(optimisation.Optimisation):
    """How to train on windows.

    Soni et al. (section V) print Adam, minibatches of 256 windows, 100 epochs, and L = 3, 10 and 15, of which 10 was
    best. They do not print a learning rate, a schedule or clipping.

    Attributes:
      length: L, calls in a window.
      stride: calls from one window's beginning to the next one's.
      minibatch_windows: windows in a minibatch.
      together: on a CPU, where equal windows of a minibatch are computed once, so many equal windows, at most, come
        into the same minibatch on purpose. The windows of an epoch and the size of a minibatch stay as they are.
    """

    length: int = 10
    stride: int = 2
    minibatch_windows: int = 256
    together: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("length", "stride", "minibatch_windows", "together")

    @classmethod
    def of(cls, model: str, **changes: Any) -> "WindowRecipe":
        """The recipe for a model of `shapes.WINDOW_MODELS`: its own of `RECIPES`, and what is changed."""
        return cls(**{**RECIPES[model], **changes})

    @classmethod
    def beside(cls, other: optimisation.Optimisation, shape: WindowShape, **changes: Any) -> "WindowRecipe":
        """The recipe for a shape that is trained beside other models: their schedule, clipping and seed; else `of`."""
        shared = {name: getattr(other, name) for name in ("schedule", "clip", "seed")}
        return cls.of(shapes.module_of(shape).NAME, length=shape.length, **shared, **changes)


def train_group(
    shape: WindowShape,
    member_numbers: Sequence[int],
    recipe: WindowRecipe,
    train: Sequences,
    held_out: Sequences,
    workdir: pathlib.Path | None = None,
    **options: Any,
) -> Trained:
    """Trains M members of one shape.

    Args:
      shape: of each member.
      member_numbers: `[M]`, distinct; with the recipe's seed they fix the initialisation.
      recipe: how.
      train: normal traces, ids in the model's vocabulary.
      held_out: normal traces that choose when to stop, and nothing else.
      workdir: where checkpoints live; None for none. A folder with checkpoints is resumed.
      options: `checkpoint_seconds`, `log`, `say`, `progress` and `all_devices` of `loop.train`.

    Returns:
      the parameters and the history; its metrics are "nll" (nats per call), "call_accuracy" (calls predicted / calls)
      and "window_accuracy" (windows of L calls predicted exactly / such windows; Soni et al., section V).

    Raises:
      SyscallLMError: no training or held-out traces, windows of another length than the shape's, a loss that is not
        finite, or a damaged checkpoint.
    """
    if not len(train) or not len(held_out):
        raise SyscallLMError(f"training needs traces to learn from ({len(train)}) and to hold out ({len(held_out)})")
    if shape.length != recipe.length:
        raise SyscallLMError(f"a model of windows of {shape.length} calls cannot learn windows of {recipe.length}")
    return loop.train(WindowPrediction(shape, recipe, train, held_out), member_numbers, recipe, workdir, **options)


class WindowPrediction:
    """The objective of window models (see `objective.Objective`): categorical cross-entropy of a window's calls."""

    sums = ("nll", "calls", "calls_right", "windows", "windows_right")

    def __init__(self, shape: WindowShape, recipe: WindowRecipe, train: Sequences, held_out: Sequences):
        self.name = str(shape)
        self._shape, self._recipe, self._model = shape, recipe, shapes.module_of(shape)
        go = shape.vocabulary_size
        self._train, self._held_out = (Windows(s, recipe.length, recipe.stride, go) for s in (train, held_out))
        self._known = np.unique(np.append(train.calls.astype(np.int64), go))  # held-out traces may hold other calls
        self.gather = self._train.gather_merged
        self._judge = cpu.jit(self._judge_members, static_argnums=2)
        computed = [plan.shape[-1] for plan in itertools.islice(self.plans(0), 8)]  # windows in a minibatch
        self.step_flops = 3.0 * shape.flops_per_call * float(np.mean(computed)) * recipe.length

    @property
    def windows(self) -> tuple[int, int]:
        """How many windows an epoch learns from, and how many are held out."""
        return len(self._train), len(self._held_out)

    def initialise(self, key: Array) -> Params:
        """See `objective.Objective`."""
        return self._model.initialise(key, self._shape)

    def initial_carry(self, params: Params) -> None:
        """See `objective.Objective`: every window begins anew."""
        del params

    def plans(self, epoch: int) -> Iterable[np.ndarray]:
        """See `objective.Objective`: all windows in random order; on a CPU `Windows.merged` within a minibatch."""
        # A GPU should hardly be sooner done with fewer windows.
        merge = jax.default_backend() == "cpu"
        rng = np.random.default_rng([self._recipe.seed, epoch])
        order = self._train.shuffled(rng, self._recipe.together if merge else 1)
        batches = in_batches(order, self._recipe.minibatch_windows)
        if merge:
            return (self._train.merged(numbers, MERGED_MULTIPLE) for numbers in batches)
        return (np.stack([numbers, numbers >= 0]) for numbers in batches)

    def loss(
        self, params: Params, key: Array, carry: None, batch: Batch, first: int | Array
    ) -> tuple[Array, tuple[dict[str, Array], None]]:
        """See `objective.Objective`."""
        del key, carry, first
        sums = self._sums(params, batch, self._known)
        return sums["nll"] / jnp.maximum(sums["calls"], 1), (sums, None)

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, np.ndarray]:
        """See `objective.Objective`."""
        totals: dict[str, np.ndarray] = {name: np.zeros(1) for name in self.sums}
        for plan in in_batches(np.arange(len(self._held_out)), HELD_OUT_BATCH):
            sums = self._judge(params, mesh.feed(self._held_out.gather, plan), mesh)
            totals = {name: totals[name] + np.asarray(sums[name], np.float64) for name in self.sums}
        return totals

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `objective.Objective`."""
        return {
            "nll": sums["nll"] / sums["calls"],
            "call_accuracy": sums["calls_right"] / sums["calls"],
            "window_accuracy": sums["windows_right"] / np.maximum(sums["windows"], 1),
        }

    def _judge_members(self, params: Params, batch: Batch, mesh: Mesh) -> dict[str, Array]:
        def member(params: Params, carry: None, batch: Batch) -> tuple[None, dict[str, Array], None]:
            return None, self._sums(params, batch), carry

        return mesh.over_members(member, params, carry=None, batch=batch, lanes=HELD_OUT_BATCH)[1]

    def _sums(self, params: Params, batch: Batch, known: np.ndarray | None = None) -> dict[str, Array]:
        nll, _, right = self._model.judge(params, batch, known)
        times = batch.mask.astype(jnp.float32)  # how often each call counts
        whole = times.min(0)  # a window cut off by its trace's end is no window in the paper's sense
        return {
            "nll": nll,
            "calls": times.sum(),
            "calls_right": (times * right).sum(),
            "windows": whole.sum(),
            "windows_right": (whole * right.all(0)).sum(),
        }
