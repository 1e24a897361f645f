"""Training: cross-entropy by back-propagation through time, one readable loop.

Members of equal shape form a group and are trained together on the same minibatches, each with its own initialisation
and dropout. Everything that the next step depends on is in one checkpointed tree, and the order of the data and the
dropout are functions of seed, epoch and step: a run that was killed and started again ends with the same parameters.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm

from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces import packing
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array, Params

BATCHINGS = ("traces", "lanes")
SCHEDULES = ("constant", "cosine")
HELD_OUT_LANES, HELD_OUT_STEPS = 64, 256


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    The paper (Kim et al., section 3.2) prints Adam at 1e-4, clipping at 5, dropout 0.5 and minibatches of similar
    length; it does not print epochs, minibatch size or stopping. The defaults are a faster recipe: a larger learning
    rate that decays to zero.

    Attributes:
      epochs: passes over the training traces, at most.
      learning_rate: Adam's, at its peak.
      schedule: "constant", or "cosine" (decays to zero over all epochs).
      dropout: on the non-recurrent connections.
      clip: the gradient's norm is rescaled to this when it exceeds it.
      batching: "traces" (minibatches of whole traces of similar length) or "lanes" (truncated back-propagation with
        carried state over packed lanes: no padding, one compiled shape).
      minibatch_calls: calls in a minibatch.
      steps: T of a minibatch for "lanes"; the longest back-propagation for "traces".
      patience: a member has converged when its held-out loss did not improve for so many epochs.
      seed: of everything random.
    """

    epochs: int = 24
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    dropout: float = 0.5
    clip: float = 5.0
    batching: str = "lanes"
    minibatch_calls: int = 4096
    steps: int = 64
    patience: int = 6
    seed: int = 0

    def __post_init__(self):
        for name, choices in (("batching", BATCHINGS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise SyscallLMError(f"--{name}={getattr(self, name)}: must be one of {', '.join(choices)}")
        for name in ("epochs", "minibatch_calls", "steps", "patience", "clip", "learning_rate"):
            if not getattr(self, name) > 0:
                raise SyscallLMError(f"--{name}={getattr(self, name)}: must be positive")
        if not 0 <= self.dropout < 1:
            raise SyscallLMError(f"--dropout={self.dropout}: must be at least 0 and less than 1")


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives for one group.

    Attributes:
      params: the parameters of the best held-out loss, every array with a leading axis M.
      held_out_nll: `[M]`, that loss, nats per call.
      epochs: passes made.
      history: a row an epoch: training and held-out loss per member, calls per second.
    """

    params: Params
    held_out_nll: np.ndarray
    epochs: int
    history: list[dict[str, Any]]


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
    shapes: Sequence[lstm.Shape],
    recipe: Recipe,
    train: Sequences,
    held_out: Sequences,
    workdir: pathlib.Path | None = None,
    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    **options: Any,
) -> tuple[tuple[Member, ...], list[dict[str, Any]]]:
    """Trains an ensemble: members of equal shape together, one group after another.

    Args:
      shapes: of the M members; a shape that stands k times gives members NAME.1 to NAME.k.
      recipe, train, held_out, log, options: see `train_group`.
      workdir: each group keeps its checkpoints in a folder of its own there.

    Returns:
      the members, and the history's rows of all groups.
    """
    members: dict[int, Member] = {}
    history: list[dict[str, Any]] = []
    for shape in dict.fromkeys(shapes):
        numbers = [i for i, other in enumerate(shapes) if other == shape]
        folder = workdir / str(shape) if workdir else None
        trained = train_group(shape, numbers, recipe, train, held_out, folder, log=lambda rows, before=tuple(history): log([*before, *rows]), **options)
        history += trained.history
        for place, number in enumerate(numbers):
            name = str(shape) if len(numbers) == 1 else f"{shape}.{place + 1}"
            members[number] = Member(name, shape, jax.tree.map(lambda leaf, i=place: leaf[i], trained.params))
    return tuple(members[i] for i in range(len(shapes))), history


def train_group(
    shape: lstm.Shape,
    member_numbers: Sequence[int],
    recipe: Recipe,
    train: Sequences,
    held_out: Sequences,
    workdir: pathlib.Path | None = None,
    checkpoint_seconds: float = 60,
    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    progress: bool = False,
) -> Trained:
    """Trains M members of one shape.

    Args:
      shape: of each member.
      member_numbers: `[M]`, distinct; with the recipe's seed they fix initialisation and dropout.
      recipe: how.
      train: normal traces, ids in the model's vocabulary.
      held_out: normal traces that choose when to stop, and nothing else.
      workdir: where checkpoints live; None for none. A folder with checkpoints is resumed.
      checkpoint_seconds: how often one is written, besides one an epoch.
      log: called after each epoch with all rows so far (plain JSON values).
      progress: show a progress bar on stderr, if that is a terminal.

    Raises:
      SyscallLMError: no training or held-out traces, a loss that is not finite, or a damaged checkpoint.
    """
    if not len(train) or not len(held_out):
        raise SyscallLMError(f"training needs traces to learn from ({len(train)}) and to hold out ({len(held_out)})")
    packer = packing.Packer(train, go=shape.vocabulary_size)
    steps_an_epoch = sum(1 for _ in _epoch_plans(train, recipe, epoch=0))
    optimizer = _optimizer(recipe, recipe.epochs * steps_an_epoch)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(recipe.seed), number))(jnp.array(member_numbers))
    step = jax.jit(_make_step(optimizer, recipe, keys), donate_argnums=0)
    evaluate = _make_evaluation(held_out, shape.vocabulary_size)

    checkpoints = _Checkpoints(workdir, checkpoint_seconds)
    state, history = checkpoints.restore(_initial_state(shape, keys, optimizer, recipe))
    bar = tqdm.tqdm(total=recipe.epochs * steps_an_epoch, desc=str(shape), unit="step", disable=None if progress else True)
    bar.update(int(state["step"]))
    with bar, checkpoints:
        for epoch in range(int(state["epoch"]), recipe.epochs):
            if bool((state["stale"] >= recipe.patience).all()):
                break
            started, calls, done = time.monotonic(), 0, int(state["batch"])
            for batch, plan in enumerate(_epoch_plans(train, recipe, epoch)):
                if batch < done:
                    continue
                tile = packer.gather(plan)
                state = step(state, tile)
                calls += int(tile.mask.sum())
                bar.update()
                if batch % 16 == 15:
                    loss = _mean_loss(state)
                    bar.set_postfix_str(f"{calls / (time.monotonic() - started):,.0f} calls/s, loss {loss.mean():.3f}")
                    _require_finite(loss, shape, epoch)
                if checkpoints.due():
                    checkpoints.save({**state, "batch": jnp.int32(batch + 1)}, history)
            seconds = time.monotonic() - started
            held_out_nll = evaluate(state["params"])
            row = {
                "shape": str(shape),
                "epoch": epoch + 1,
                "step": int(state["step"]),
                "train_nll": _mean_loss(state).tolist(),
                "held_out_nll": held_out_nll.tolist(),
                "calls_per_second": round(calls / seconds),
            }
            _require_finite(held_out_nll, shape, epoch)
            state = _begin_epoch(_keep_best(state, held_out_nll), epoch + 1)
            history = [*history, row]
            checkpoints.save(state, history)
            log(history)
        bar.total = bar.n
    return Trained(state["best"], np.asarray(state["best_nll"]), len(history), history)


def _epoch_plans(train: Sequences, recipe: Recipe, epoch: int) -> Iterable[np.ndarray]:
    rng = np.random.default_rng([recipe.seed, epoch])
    if recipe.batching == "traces":
        return packing.minibatch_plans(train, recipe.minibatch_calls, recipe.steps, rng)
    return packing.lane_plans(train, _lanes(recipe), recipe.steps, rng)


def _lanes(recipe: Recipe) -> int:
    return max(1, recipe.minibatch_calls // recipe.steps)


def _optimizer(recipe: Recipe, total_steps: int) -> optax.GradientTransformation:
    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = optax.cosine_decay_schedule(recipe.learning_rate, total_steps)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), optax.adam(rate))


def _initial_state(
    shape: lstm.Shape, keys: Array, optimizer: optax.GradientTransformation, recipe: Recipe
) -> dict[str, Any]:
    """Everything that the next step depends on; arrays of members have a leading axis M."""
    params = jax.vmap(lambda key: language_model.initialise(key, shape))(keys)
    members = len(keys)
    state = {
        "params": params,
        "optimizer": jax.vmap(optimizer.init)(params),
        "best": jax.tree.map(jnp.copy, params),
        "best_nll": jnp.full(members, jnp.inf),
        "stale": jnp.zeros(members),  # epochs since the best
        "loss": jnp.zeros(members),  # summed over the epoch so far
        "calls": jnp.zeros(members),
        "step": jnp.int32(0),
        "epoch": jnp.int32(0),
        "batch": jnp.int32(0),
    }
    if recipe.batching == "lanes":
        state["carry"] = jax.vmap(lambda params: lstm.initial_state(params, _lanes(recipe)))(params)
    return state


def _make_step(
    optimizer: optax.GradientTransformation, recipe: Recipe, keys: Array
) -> Callable[[dict[str, Any], packing.Tile], dict[str, Any]]:
    """One step of all members: forward, backward, clip, Adam."""

    def loss_of(params: Params, key: Array, carry: lstm.State, tile: packing.Tile):
        h, carry = lstm.run(params, tile.inputs, tile.reset, carry, key, recipe.dropout)
        nll = lstm.negative_log_likelihood(params, h, tile.targets)
        total = jnp.where(tile.mask, nll, 0).sum()
        return total / tile.mask.sum(), (total, carry)

    def member(params, opt_state, key, carry, tile, step):
        if carry is None:
            carry = lstm.initial_state(params, tile.inputs.shape[1])
        key = jax.random.fold_in(key, step)
        gradients, (total, carry) = jax.grad(loss_of, has_aux=True)(params, key, carry, tile)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry, total

    def step(state: dict[str, Any], tile: packing.Tile) -> dict[str, Any]:
        params, opt_state, carry, total = lstm.over_members(
            member, state["params"], state["optimizer"], keys, state.get("carry"), shared=(tile, state["step"])
        )
        after = {
            **state,
            "params": params,
            "optimizer": opt_state,
            "loss": state["loss"] + total,
            "calls": state["calls"] + tile.mask.sum(),
            "step": state["step"] + 1,
        }
        return {**after, "carry": carry} if "carry" in state else after

    return step


def _make_evaluation(held_out: Sequences, go: int) -> Callable[[Params], np.ndarray]:
    """A function from stacked parameters to the held-out loss of each member, nats per call."""
    packer = packing.Packer(held_out, go)
    lanes = min(HELD_OUT_LANES, len(held_out))
    tiles = [packer.gather(plan) for plan in packing.lane_plans(held_out, lanes, HELD_OUT_STEPS)]

    @jax.jit
    def tile_sum(params: Params, carry: lstm.State, tile: packing.Tile) -> tuple[lstm.State, Array]:
        def member(params, carry, tile):
            carry, nll = lstm.score(lstm.fold(params), carry, tile.inputs, tile.targets, tile.reset)
            return carry, jnp.where(tile.mask, nll, 0).sum()

        return lstm.over_members(member, params, carry, shared=(tile,))

    def evaluate(params: Params) -> np.ndarray:
        carry = jax.vmap(lambda one: lstm.initial_state(one, lanes))(params)
        total = 0.0
        for tile in tiles:
            carry, part = tile_sum(params, carry, tile)
            total = total + np.asarray(part, np.float64)
        return np.asarray(total / len(held_out.calls))

    return evaluate


def _keep_best(state: dict[str, Any], held_out_nll: np.ndarray) -> dict[str, Any]:
    nll = jnp.asarray(held_out_nll, jnp.float32)
    better = nll < state["best_nll"]

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return {
        **state,
        "best": jax.tree.map(choose, state["params"], state["best"]),
        "best_nll": jnp.where(better, nll, state["best_nll"]),
        "stale": jnp.where(better, 0, state["stale"] + 1),
    }


def _begin_epoch(state: dict[str, Any], epoch: int) -> dict[str, Any]:
    zeroed = {name: jax.tree.map(jnp.zeros_like, state[name]) for name in ("loss", "calls", "carry") if name in state}
    return {**state, **zeroed, "epoch": jnp.int32(epoch), "batch": jnp.int32(0)}


def _mean_loss(state: dict[str, Any]) -> np.ndarray:
    return np.asarray(state["loss"] / state["calls"])


def _require_finite(loss: np.ndarray, shape: lstm.Shape, epoch: int) -> None:
    if not np.isfinite(loss).all():
        raise SyscallLMError(f"{shape}: the loss is not finite in epoch {epoch + 1}; lower --learning_rate")


class _Checkpoints:
    """The last two checkpoints of a group in `workdir`, or nothing at all if there is no workdir."""

    def __init__(self, workdir: pathlib.Path | None, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()
        self._manager = None
        if workdir is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(workdir.absolute(), options=options)

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def due(self) -> bool:
        return self._manager is not None and time.monotonic() - self._last > self._seconds

    def save(self, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        if self._manager is None:
            return
        items = {"state": ocp.args.StandardSave(state), "history": ocp.args.JsonSave({"rows": history})}
        # Epoch and batch, not the step alone: the end of an epoch comes after its last step's checkpoint.
        number = int(state["step"]) * 2 + (int(state["batch"]) == 0)
        self._manager.save(number, args=ocp.args.Composite(**items))
        self._last = time.monotonic()

    def restore(self, initial: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if self._manager is None or (number := self._manager.latest_step()) is None:
            return initial, []
        try:
            items = {"state": ocp.args.StandardRestore(initial), "history": ocp.args.JsonRestore()}
            restored = self._manager.restore(number, args=ocp.args.Composite(**items))
            return restored["state"], restored["history"]["rows"]
        except Exception as error:  # Orbax and its storage raise many kinds
            folder = self._manager.directory / str(number)
            raise SyscallLMError(
                f"{folder}: a damaged checkpoint ({type(error).__name__}); delete it to resume from the one before"
            ) from error
