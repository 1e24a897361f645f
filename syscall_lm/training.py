"""Training language models: cross-entropy by back-propagation through time (the loop itself: loop.py).

Members of equal shape form a group and are trained together on the same minibatches, each with its own initialisation
and dropout.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm import cpu, loop, optimisation, window_training
from syscall_lm.errors import SyscallLMError
from syscall_lm.loop import Trained
from syscall_lm.mesh import Mesh
from syscall_lm.models import language_model, lstm
from syscall_lm.models.shapes import Shape
from syscall_lm.models.store import Member
from syscall_lm.optimisation import SCHEDULES as SCHEDULES
from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array, Params

BATCHINGS = ("traces", "lanes")
HELD_OUT_LANES, HELD_OUT_STEPS = 64, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(optimisation.Optimisation):
    """How to train language models.

    The paper (Kim et al., section 3.2) prints Adam at 1e-4, clipping at 5, dropout 0.5 and minibatches of similar
    length; it does not print epochs, minibatch size or stopping. The defaults are a faster recipe: a larger learning
    rate that decays to zero.

    Attributes:
      dropout: on the connections from layer to layer and to the softmax.
      batching: "traces" (minibatches of whole traces of similar length) or "lanes" (truncated back-propagation with
        carried state over packed lanes: no padding, one compiled shape).
      minibatch_calls: calls in a minibatch.
      steps: T of a minibatch for "lanes"; the longest back-propagation for "traces".
    """

    dropout: float = 0.5
    batching: str = "lanes"
    minibatch_calls: int = 4096
    steps: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.batching not in BATCHINGS:
            raise SyscallLMError(f"--batching={self.batching}: must be one of {', '.join(BATCHINGS)}")
        self.require_positive("minibatch_calls", "steps")
        if not 0 <= self.dropout < 1:
            raise SyscallLMError(f"--dropout={self.dropout}: must be at least 0 and less than 1")


def minibatches_for(
    calls: int, longest: int, batching: str = "lanes", minibatch_calls: int = 0, steps: int = 0
) -> tuple[int, int]:
    """`minibatch_calls` and `steps` of a recipe that suits so many training calls; given ones are kept.

    At least some 64 updates make an epoch, since a small capture learns little from few large minibatches. Lanes are
    about as many as the longest trace lets end together: fewer and longer ones cost less than empty ones.

    Args:
      calls: of all training traces.
      longest: calls of the longest one.
      batching, minibatch_calls, steps: see `Recipe`; zero for none given.
    """
    minibatch_calls = minibatch_calls or min(4096, max(512, 1 << max(1, calls // 64).bit_length() - 1))
    if not steps and batching == "traces":
        steps = 4096
    elif not steps:
        most = minibatch_calls // (64 if minibatch_calls >= 4096 else 32)
        filled = max(1, 4 * calls // (3 * max(1, longest)))  # so many lanes would be three quarters full
        filled = 1 << (filled.bit_length() - 1)  # a power of two
        steps = minibatch_calls // max(1, min(most, filled))
    return minibatch_calls, steps


def with_held_out(
    normal: Sequences, held_out: Sequences | None, seed: int, fraction: float = 0.1
) -> tuple[Sequences, Sequences]:
    """Traces to learn from, and the held-out ones; a share of the former is set aside if there are none.

    Raises:
      SyscallLMError: see `choose_held_out`.
    """
    if held_out is not None and len(held_out):
        return normal, held_out
    chosen = choose_held_out(normal, fraction, seed)
    return normal.take(~chosen), normal.take(chosen)


def choose_held_out(normal: Sequences, fraction: float, seed: int) -> np.ndarray:
    """Sets traces aside; identical traces stay on one side, so that none is judged by its own copy.

    Returns:
      bool `[N]`, true for about `fraction` of the traces.

    Raises:
      SyscallLMError: there are fewer than two distinct traces, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise SyscallLMError(f"--held_out={fraction}: must be a share between 0 and 1")
    first, inverse = normal.distinct()
    if len(first) < 2:
        raise SyscallLMError(f"{len(first)} distinct normal traces are too few: one trains, another is held out")
    count = min(max(1, round(fraction * len(first))), len(first) - 1)
    chosen = np.zeros(len(first), bool)
    chosen[np.random.default_rng(seed).permutation(len(first))[:count]] = True
    return chosen[inverse]


def train_members(
    shapes: Sequence[Shape],
    recipe: Recipe,
    train: Sequences,
    held_out: Sequences,
    workdir: pathlib.Path | None = None,
    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    of_windows: Mapping[Shape, window_training.WindowRecipe] | None = None,
    **options: Any,
) -> tuple[tuple[Member, ...], list[dict[str, Any]]]:
    """Trains an ensemble: members of equal shape together, one group after another.

    Args:
      shapes: of the M members; a shape that stands k times gives members NAME.1 to NAME.k.
      recipe: of the language models.
      train, held_out, log, options: see `train_group`.
      workdir: each group keeps its checkpoints in a folder of its own there.
      of_windows: the recipes of models of windows; without one, a model makes as many epochs as the language models.

    Returns:
      the members, and the history's rows of all groups.
    """
    members: dict[int, Member] = {}
    history: list[dict[str, Any]] = []
    for shape in dict.fromkeys(shapes):
        numbers = [i for i, other in enumerate(shapes) if other == shape]
        folder = workdir / str(shape) if workdir else None

        def log_all(rows: list[dict[str, Any]], before: tuple[dict[str, Any], ...] = tuple(history)) -> None:
            log([*before, *rows])

        arguments = (train, held_out, folder)
        if isinstance(shape, lstm.Shape):
            trained = train_group(shape, numbers, recipe, *arguments, log=log_all, **options)
        else:
            own = (of_windows or {}).get(shape) or window_training.WindowRecipe.beside(
                recipe, shape, epochs=recipe.epochs, patience=recipe.patience
            )
            trained = window_training.train_group(shape, numbers, own, *arguments, log=log_all, **options)
        history += trained.history
        for place, number in enumerate(numbers):
            name = str(shape) if len(numbers) == 1 else f"{shape}.{place + 1}"
            params = jax.tree.map(lambda leaf, i=place: leaf[i], trained.params)
            members[number] = Member(name, shape, params)
    return tuple(members[i] for i in range(len(shapes))), history


def train_group(
    shape: lstm.Shape,
    member_numbers: Sequence[int],
    recipe: Recipe,
    train: Sequences,
    held_out: Sequences,
    workdir: pathlib.Path | None = None,
    **options: Any,
) -> Trained:
    """Trains M members of one shape.

    Args:
      shape: of each member.
      member_numbers: `[M]`, distinct; with the recipe's seed they fix initialisation and dropout.
      recipe: how.
      train: normal traces, ids in the model's vocabulary.
      held_out: normal traces that choose when to stop, and nothing else.
      workdir: where checkpoints live; None for none. A folder with checkpoints is resumed.
      options: `checkpoint_seconds`, `log`, `say`, `progress` and `all_devices` of `loop.train`.

    Raises:
      SyscallLMError: no training or held-out traces, a loss that is not finite, or a damaged checkpoint.
    """
    if not len(train) or not len(held_out):
        raise SyscallLMError(f"training needs traces to learn from ({len(train)}) and to hold out ({len(held_out)})")
    objective = LanguageModelling(shape, recipe, train, held_out)
    return loop.train(objective, member_numbers, recipe, workdir, **options)


class LanguageModelling:
    """The objective of language models (see `objective.Objective`): the surprisal of every call of whole traces."""

    sums = ("nll", "calls")

    def __init__(self, shape: lstm.Shape, recipe: Recipe, train: Sequences, held_out: Sequences):
        self.name = str(shape)
        self._shape, self._recipe, self._train = shape, recipe, train
        self.step_flops = 3.0 * shape.flops_per_call * recipe.minibatch_calls
        self.gather = packing.Packer(train, go=shape.vocabulary_size).gather
        self.evaluate = _make_evaluation(held_out, shape.vocabulary_size)

    def initialise(self, key: Array) -> Params:
        """See `objective.Objective`."""
        return language_model.initialise(key, self._shape)

    def initial_carry(self, params: Params) -> lstm.State | None:
        """See `objective.Objective`: lanes carry the state from one tile to the next."""
        return lstm.initial_state(params, self._lanes) if self._recipe.batching == "lanes" else None

    def plans(self, epoch: int) -> Iterable[np.ndarray]:
        """See `objective.Objective`."""
        rng = np.random.default_rng([self._recipe.seed, epoch])
        if self._recipe.batching == "traces":
            return packing.minibatch_plans(self._train, self._recipe.minibatch_calls, self._recipe.steps, rng)
        return packing.lane_plans(self._train, self._lanes, self._recipe.steps, rng)

    @property
    def _lanes(self) -> int:
        return max(1, self._recipe.minibatch_calls // self._recipe.steps)

    def loss(
        self, params: Params, key: Array, carry: lstm.State | None, batch: packing.Tile, first: int | Array
    ) -> tuple[Array, tuple[dict[str, Array], lstm.State]]:
        """See `objective.Objective`."""
        if carry is None:
            carry = lstm.initial_state(params, batch.inputs.shape[1])
        h, carry = lstm.run(params, batch.inputs, batch.reset, carry, key, self._recipe.dropout, first)
        total, _, _ = lstm.weighted_loss(params, h, batch.targets, batch.mask.astype(h.dtype))
        calls = batch.mask.sum()
        return total / jnp.maximum(calls, 1), ({"nll": total, "calls": calls}, carry)

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `objective.Objective`."""
        return {"nll": sums["nll"] / sums["calls"]}


def _make_evaluation(held_out: Sequences, go: int) -> Callable[[Params, Mesh], dict[str, np.ndarray]]:
    """A function from stacked parameters to each member's sums over the held-out traces."""
    packer = packing.Packer(held_out, go)
    lanes = min(HELD_OUT_LANES, len(held_out))

    @functools.partial(jax.jit, static_argnums=1)
    def initial_carry(params: Params, mesh: Mesh) -> lstm.State:
        return mesh.padded(lstm.initial_state(params, lanes))

    @functools.partial(cpu.jit, static_argnums=3)
    def tile_sum(params: Params, carry: lstm.State, tile: packing.Tile, mesh: Mesh) -> tuple[Array, lstm.State]:
        def member(params, carry, tile):
            carry, nll = lstm.score(lstm.fold(params), carry, tile.inputs, tile.targets, tile.reset)
            return None, jnp.where(tile.mask, nll, 0).sum(), carry

        return mesh.over_members(member, params, carry=carry, batch=tile, lanes=lanes)[1:]

    def evaluate(params: Params, mesh: Mesh) -> dict[str, np.ndarray]:
        carry = initial_carry(params, mesh)
        total = np.zeros(1)
        for plan in packing.lane_plans(held_out, lanes, HELD_OUT_STEPS):
            part, carry = tile_sum(params, carry, mesh.feed(packer.gather, plan), mesh)
            total = total + np.asarray(part, np.float64)
        return {"nll": total, "calls": np.full(len(total), float(len(held_out.calls)))}

    return evaluate
