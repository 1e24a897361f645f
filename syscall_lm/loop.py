"""The training loop: one for every model that learns by gradients.

An `Objective` says what is learned from what; the loop trains M members of it side by side on the same minibatches,
each with its own initialisation and dropout. Everything that the next step depends on is in one checkpointed tree, and
the order of the data and the dropout are functions of seed, epoch and step: a run that was killed and started again
ends with the same parameters.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from syscall_lm.checkpoints import Checkpoints
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import lstm
from syscall_lm.types import Array, Params

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How any model is trained: Adam, and when to stop.

    Attributes:
      epochs: passes over the training data, at most.
      learning_rate: Adam's, at its peak.
      schedule: "constant", or "cosine" (decays to zero over all epochs).
      clip: the gradient's norm is rescaled to this when it exceeds it.
      patience: a member has converged when its held-out loss did not improve for so many epochs.
      seed: of everything random.
    """

    epochs: int = 24
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    clip: float = 5.0
    patience: int = 6
    seed: int = 0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise SyscallLMError(f"--schedule={self.schedule}: must be one of {', '.join(SCHEDULES)}")
        self.require_positive("epochs", "patience", "clip", "learning_rate")

    def require_positive(self, *names: str) -> None:
        """Raises SyscallLMError if one of these attributes is not a positive number."""
        for name in names:
            if not getattr(self, name) > 0:
                raise SyscallLMError(f"--{name}={getattr(self, name)}: must be positive")


class Objective(Protocol):
    """What the loop needs to know of a model and its data.

    Attributes:
      name: of the model, in messages and in the history's rows.
      sums: what `loss` and `evaluate` add up; among them "calls", by which the others are divided in `metrics`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sums(self) -> tuple[str, ...]: ...  # noqa: D102

    def initialise(self, key: Array, /) -> Params:
        """Fresh parameters of one member."""
        ...

    def initial_carry(self, params: Params, /) -> Any:
        """What one member carries from minibatch to minibatch within an epoch, at its beginning; None for nothing."""
        ...

    def plans(self, epoch: int, /) -> Iterable[np.ndarray]:
        """The epoch's minibatches, as numbers; how many there are must not depend on the epoch."""
        ...

    def gather(self, plan: np.ndarray, /) -> Any:
        """The minibatch of a plan: a tree of arrays, whose `mask` is true at the calls that are learned from."""
        ...

    def loss(self, params: Params, key: Array, carry: Any, batch: Any, /) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """What one member minimises, and beside it the sums and the carry for the next minibatch."""
        ...

    def evaluate(self, params: Params, /) -> dict[str, np.ndarray]:
        """The sums over the held-out data, each float64 `[M]`, of members stacked along a leading axis M."""
        ...

    def metrics(self, sums: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """What the history tells of sums `[M]`: "nll" in nats per call, which decides when to stop, and any others."""
        ...


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives for one group.

    Attributes:
      params: the parameters of the best held-out loss, every array with a leading axis M.
      held_out_nll: `[M]`, that loss, nats per call.
      epochs: passes made.
      history: a row an epoch: training and held-out metrics per member, calls per second.
    """

    params: Params
    held_out_nll: np.ndarray
    epochs: int
    history: list[dict[str, Any]]


def train(
    objective: Objective,
    member_numbers: Sequence[int],
    optimisation: Optimisation,
    workdir: pathlib.Path | None = None,
    checkpoint_seconds: float = 60,
    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    progress: bool = False,
) -> Trained:
    """Trains M members.

    Args:
      objective: what to learn.
      member_numbers: `[M]`, distinct; with the seed they fix initialisation and dropout.
      optimisation: how.
      workdir: where checkpoints live; None for none. A folder with checkpoints is resumed.
      checkpoint_seconds: how often one is written, besides one an epoch.
      log: called after each epoch with all rows so far (plain JSON values).
      progress: show a progress bar on stderr, if that is a terminal.

    Raises:
      SyscallLMError: a loss that is not finite, or a damaged checkpoint.
    """
    steps_an_epoch = sum(1 for _ in objective.plans(0))
    total_steps = optimisation.epochs * steps_an_epoch
    initial, step = begin(objective, member_numbers, optimisation, total_steps)
    checkpoints = Checkpoints(workdir, checkpoint_seconds)
    state, history = checkpoints.restore(initial)
    bar = tqdm.tqdm(total=total_steps, desc=objective.name, unit="step", disable=None if progress else True)
    bar.update(int(state["step"]))
    with bar, checkpoints:
        for epoch in range(int(state["epoch"]), optimisation.epochs):
            if bool((state["stale"] >= optimisation.patience).all()):
                break
            started, calls, done = time.monotonic(), 0, int(state["batch"])
            for number, plan in enumerate(objective.plans(epoch)):
                if number < done:
                    continue
                batch = objective.gather(plan)
                state = step(state, batch)
                calls += int(batch.mask.sum())
                bar.update()
                if number % 16 == 15:
                    loss = _training_metrics(objective, state)["nll"]
                    bar.set_postfix_str(f"{calls / (time.monotonic() - started):,.0f} calls/s, loss {loss.mean():.3f}")
                    _require_finite(loss, objective, epoch)
                if checkpoints.due():
                    checkpoints.save({**state, "batch": jnp.int32(number + 1)}, history)
            training = _training_metrics(objective, state)  # waits for the last step
            seconds = time.monotonic() - started
            held_out = objective.metrics(objective.evaluate(state["params"]))
            row = {
                "shape": objective.name,
                "epoch": epoch + 1,
                "step": int(state["step"]),
                **{f"train_{name}": value.tolist() for name, value in training.items()},
                **{f"held_out_{name}": value.tolist() for name, value in held_out.items()},
                "calls_per_second": round(calls / seconds),
            }
            if done == 0:  # else it was interrupted, and nobody knows how long it took
                row["seconds"] = round(seconds, 3)
            _require_finite(held_out["nll"], objective, epoch)
            state = _begin_epoch(_keep_best(state, held_out["nll"]), epoch + 1)
            history = [*history, row]
            checkpoints.save(state, history)
            log(history)
        bar.total = bar.n
    return Trained(state["best"], np.asarray(state["best_nll"]), len(history), history)


def begin(
    objective: Objective, member_numbers: Sequence[int], optimisation: Optimisation, total_steps: int
) -> tuple[dict[str, Any], Callable[[dict[str, Any], Any], dict[str, Any]]]:
    """Prepares M members.

    Returns:
      the state before the first step, and the compiled step of all members, from a state (which it uses up) and a
      minibatch to the next state.
    """
    optimizer = _optimizer(optimisation, total_steps)
    seed = jax.random.key(optimisation.seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(seed, number))(jnp.array(member_numbers))
    step = jax.jit(_make_step(objective, optimizer, keys), donate_argnums=0)
    return _initial_state(objective, keys, optimizer), step


def _optimizer(optimisation: Optimisation, total_steps: int) -> optax.GradientTransformation:
    rate: Any = optimisation.learning_rate
    if optimisation.schedule == "cosine":
        rate = optax.cosine_decay_schedule(optimisation.learning_rate, total_steps)
    return optax.chain(optax.clip_by_global_norm(optimisation.clip), optax.adam(rate))


def _initial_state(objective: Objective, keys: Array, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Everything that the next step depends on; arrays of members have a leading axis M."""
    params = jax.jit(jax.vmap(objective.initialise))(keys)
    members = len(keys)
    state = {
        "params": params,
        "optimizer": jax.jit(jax.vmap(optimizer.init))(params),
        "best": jax.tree.map(jnp.copy, params),
        "best_nll": jnp.full(members, jnp.inf),
        "stale": jnp.zeros(members),  # epochs since the best
        "sums": {name: jnp.zeros(members) for name in objective.sums},  # over the epoch so far
        "step": jnp.int32(0),
        "epoch": jnp.int32(0),
        "batch": jnp.int32(0),
    }
    carry = jax.vmap(objective.initial_carry)(params)
    return state if carry is None else {**state, "carry": carry}


def _make_step(
    objective: Objective, optimizer: optax.GradientTransformation, keys: Array
) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    """One step of all members: forward, backward, clip, Adam."""

    def member(params, opt_state, key, carry, batch, step):
        key = jax.random.fold_in(key, step)
        gradients, (sums, carry) = jax.grad(objective.loss, has_aux=True)(params, key, carry, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry, sums

    def step(state: dict[str, Any], batch: Any) -> dict[str, Any]:
        params, opt_state, carry, sums = lstm.over_members(
            member, state["params"], state["optimizer"], keys, state.get("carry"), shared=(batch, state["step"])
        )
        after = {
            **state,
            "params": params,
            "optimizer": opt_state,
            "sums": {name: state["sums"][name] + sums[name] for name in state["sums"]},
            "step": state["step"] + 1,
        }
        return {**after, "carry": carry} if "carry" in state else after

    return step


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
    zeroed = {name: jax.tree.map(jnp.zeros_like, state[name]) for name in ("sums", "carry") if name in state}
    return {**state, **zeroed, "epoch": jnp.int32(epoch), "batch": jnp.int32(0)}


def _training_metrics(objective: Objective, state: dict[str, Any]) -> dict[str, np.ndarray]:
    return objective.metrics({name: np.asarray(value) for name, value in state["sums"].items()})


def _require_finite(loss: np.ndarray, objective: Objective, epoch: int) -> None:
    if not np.isfinite(loss).all():
        raise SyscallLMError(f"{objective.name}: the loss is not finite in epoch {epoch + 1}; lower --learning_rate")
