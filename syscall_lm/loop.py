"""The training loop: one for every model that learns by gradients.

An `Objective` says what is learned from what; the loop trains M members of it side by side on the same minibatches,
each with its own initialisation and dropout. Everything that the next step depends on is in one checkpointed tree, and
the order of the data and the dropout are functions of seed, epoch and step: a run that was killed and started again
ends with the same parameters. It runs on all devices of all processes (mesh.py); their number changes nothing but the
rounding.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from syscall_lm import cpu, processes
from syscall_lm.checkpoints import Checkpoints
from syscall_lm.errors import Interrupted, SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.types import Array, HostArray, Params

SCHEDULES = ("constant", "cosine")
Origin = tuple[HostArray, HostArray]  # of all that is random: the seed's key data, uint32 [2]; member numbers [M]
CORE_FLOPS = 7e8  # of a step; a core that is left less costs more time than it saves (measured on two)
# Steps that one call of a GPU's program takes. The host needs 1.1 ms for a call, an H200 0.2 ms for a minibatch of 256
# windows (results/gpu); of more than one device, or on a CPU, a call takes one step.
TOGETHER = 8
STEPS_A_REPORT = 16  # reading the loss waits for the devices, so it is read now and then


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How any model is trained: Adam, and when to stop.

    Attributes:
      epochs: passes over the training data, at most.
      learning_rate: Adam's, at its peak.
      schedule: "constant", or "cosine" (decays to zero over all epochs).
      clip: the gradient of a minibatch's loss, which is a mean over its calls, is rescaled to this norm when it exceeds
        it.
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
      step_flops: floating-point operations of one member's step, forward and backward, about.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sums(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def step_flops(self) -> float: ...  # noqa: D102

    def initialise(self, key: Array, /) -> Params:
        """Fresh parameters of one member."""
        ...

    def initial_carry(self, params: Params, /) -> Any:
        """What one member carries from minibatch to minibatch within an epoch, at its beginning.

        Arrays `[B, ...]`, B the lanes of every minibatch; None for nothing.
        """
        ...

    def plans(self, epoch: int, /) -> Iterable[np.ndarray]:
        """The epoch's minibatches, as numbers `[..., B]`; how many there are must not depend on the epoch."""
        ...

    def gather(self, plan: np.ndarray, /) -> Any:
        """The minibatch of a plan, or of some of its lanes: a tree of arrays `[..., B]`. Plans hold -1 for padding."""
        ...

    def loss(self, params: Params, key: Array, carry: Any, batch: Any, /) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """What one member minimises, and beside it the sums and the carry for the next minibatch."""
        ...

    def evaluate(self, params: Params, mesh: Mesh, /) -> dict[str, np.ndarray]:
        """The sums over the held-out data, each float64 `[M]`, of members stacked along a leading axis M."""
        ...

    def metrics(self, sums: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """What the history tells of sums `[M]`: "nll" in nats per call, which decides when to stop, and any others."""
        ...


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives for one group.

    Attributes:
      params: the parameters of the best held-out loss, host arrays with a leading axis M, the same in all processes.
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
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    all_devices: bool = False,
) -> Trained:
    """Trains M members; called in all processes at once, if there are several.

    Args:
      objective: what to learn.
      member_numbers: `[M]`, distinct; with the seed they fix initialisation and dropout.
      optimisation: how.
      workdir: where checkpoints live; None for none. A folder with checkpoints is resumed.
      checkpoint_seconds: how often one is written, besides one an epoch.
      log: called after each epoch with all rows so far (plain JSON values).
      say: called with a line about the mesh and one about the throughput of the first steps.
      progress: show a progress bar on stderr, if that is a terminal.
      all_devices: use them, even where a step is so small that fewer would be faster, see `mesh_for`.

    Raises:
      SyscallLMError: a loss that is not finite, or a damaged checkpoint.
      Interrupted: SIGTERM came, and a checkpoint is written.
    """
    steps_an_epoch = sum(1 for _ in objective.plans(0))
    total_steps = optimisation.epochs * steps_an_epoch
    mesh = Mesh(len(member_numbers)) if all_devices else mesh_for(objective, len(member_numbers))
    initial, step = begin(objective, member_numbers, optimisation, total_steps, mesh)
    end_epoch = jax.jit(_end_epoch, donate_argnums=0, out_shardings=_layout(initial, mesh))
    checkpoints = Checkpoints(workdir, checkpoint_seconds)
    trim, pad = _portable(objective, mesh)
    saved, history = checkpoints.restore(trim(initial))
    state = pad(saved)
    say(f"{objective.name}: {mesh}")
    bar = tqdm.tqdm(total=total_steps, desc=objective.name, unit="step", disable=None if progress else True)
    bar.update(int(state["step"]))
    first_report = True
    with bar, checkpoints:
        for epoch in range(int(state["epoch"]), optimisation.epochs):
            if bool((np.asarray(state["stale"]) >= optimisation.patience).all()):
                break
            started, done, step_number = time.monotonic(), int(state["batch"]), int(state["step"])
            calls_before = _calls(state)
            number = done
            for plans in in_runs(itertools.islice(objective.plans(epoch), done, None)):
                state = step(state, *plans)
                number += len(plans)
                step_number += len(plans)
                bar.update(len(plans))
                if number // STEPS_A_REPORT > (number - len(plans)) // STEPS_A_REPORT:
                    loss = _training_metrics(objective, state)["nll"]
                    speed = (_calls(state) - calls_before) / (time.monotonic() - started)
                    bar.set_postfix_str(f"{speed:,.0f} calls/s, loss {loss.mean():.3f}")
                    if first_report:
                        say(f"{objective.name}: {speed:,.0f} calls/s in the first steps, compilation included")
                        first_report = False
                    _require_finite(loss, objective, epoch)
                stop = processes.stop_requested(step_number)
                if stop or checkpoints.due(step_number):
                    checkpoints.save(trim({**state, "batch": np.int32(number)}), history)
                if stop:
                    kept = "the same command goes on there" if workdir else "nothing is kept, for there is no workdir"
                    raise Interrupted(f"{objective.name}: asked to stop after step {step_number}; {kept}")
            training = _training_metrics(objective, state)  # waits for the last step
            seconds = time.monotonic() - started
            held_out = objective.metrics(objective.evaluate(state["params"], mesh))
            row = {
                "shape": objective.name,
                "epoch": epoch + 1,
                "step": step_number,
                **{f"train_{name}": value.tolist() for name, value in training.items()},
                **{f"held_out_{name}": value.tolist() for name, value in held_out.items()},
                "calls_per_second": round((_calls(state) - calls_before) / seconds),
            }
            if done == 0:  # else it was interrupted, and nobody knows how long it took
                row["seconds"] = round(seconds, 3)
            _require_finite(held_out["nll"], objective, epoch)
            state = end_epoch(state, held_out["nll"].astype(np.float32))
            history = [*history, row]
            checkpoints.save(trim(state), history)
            log(history)
        bar.total = bar.n
    return Trained(mesh.to_host(state["best"]), np.asarray(state["best_nll"]), len(history), history)


def mesh_for(objective: Objective, members: int) -> Mesh:
    """All devices; but where they are the cores of one process, only as many as a step gives enough to do."""
    cores = jax.default_backend() == "cpu" and jax.process_count() == 1
    return Mesh(members, columns=max(1, int(objective.step_flops / CORE_FLOPS)) if cores else None)


def begin(
    objective: Objective,
    member_numbers: Sequence[int],
    optimisation: Optimisation,
    total_steps: int,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Prepares M members.

    Returns:
      the state before the first step, and the compiled step of all members, from a state (which it uses up) and the
      plan of a minibatch to the next state; or from the plans of several to the state after them all, see `in_runs`.
    """
    cpu.keep_freed_memory()
    mesh = mesh or mesh_for(objective, len(member_numbers))
    optimizer = _optimizer(optimisation, total_steps)

    # Arguments of the programs, not constants in them: those of one seed serve every other.
    origin = np.asarray(jax.random.key_data(jax.random.key(optimisation.seed))), np.array(member_numbers)
    initial = _initial_state(objective, origin, optimizer, mesh)
    one = _make_step(objective, optimizer, mesh)

    def several(state: dict[str, Any], batches: Any, origin: Origin, lanes: int) -> dict[str, Any]:
        return jax.lax.scan(lambda state, batch: (one(state, batch, origin, lanes), None), state, batches)[0]

    layout = _layout(initial, mesh)
    alone = mesh.rows * mesh.columns == 1
    compiled_one, compiled_several = (
        cpu.jit(program, eigen=alone, donate_argnums=0, static_argnames="lanes", out_shardings=layout)
        for program in (one, several)
    )

    def step(state: dict[str, Any], *plans: np.ndarray) -> dict[str, Any]:
        lanes = plans[0].shape[-1]
        if len(plans) == 1:
            return compiled_one(state, mesh.feed(objective.gather, plans[0]), origin, lanes=lanes)
        batches = jax.tree.map(lambda *leaves: np.stack(leaves), *map(objective.gather, plans))
        return compiled_several(state, jax.device_put(batches, mesh.everywhere), origin, lanes=lanes)

    return initial, step


def in_runs(plans: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """What one call of the step takes: one plan, or `TOGETHER` neighbours of one shape where that is faster."""
    size = TOGETHER if jax.default_backend() != "cpu" and jax.device_count() == 1 else 1
    run: list[np.ndarray] = []
    for plan in plans:
        if run and plan.shape != run[0].shape:
            yield from ([each] for each in run)
            run = []
        run.append(plan)
        if len(run) == size:
            yield run
            run = []
    yield from ([each] for each in run)


def _keys(origin: Origin) -> Array:
    """The members' keys `[M]`."""
    key_data, numbers = origin
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(jnp.asarray(key_data)), numbers)


def _optimizer(optimisation: Optimisation, total_steps: int) -> optax.GradientTransformation:
    rate: Any = optimisation.learning_rate
    if optimisation.schedule == "cosine":
        rate = optax.cosine_decay_schedule(optimisation.learning_rate, total_steps)
    return optax.chain(optax.clip_by_global_norm(optimisation.clip), optax.adam(rate))


def _initial_state(
    objective: Objective, origin: Origin, optimizer: optax.GradientTransformation, mesh: Mesh
) -> dict[str, Any]:
    """Everything that the next step depends on; arrays of members have a leading axis M."""

    def build(origin: Origin) -> dict[str, Any]:
        params = jax.vmap(objective.initialise)(_keys(origin))
        members = mesh.members
        state = {
            "params": params,
            "optimizer": jax.vmap(optimizer.init)(params),
            "best": params,
            "best_nll": jnp.full(members, jnp.inf, jnp.float32),
            "stale": jnp.zeros(members),  # epochs since the best
            "sums": {name: jnp.zeros(members) for name in objective.sums},  # over the epoch so far
            "step": jnp.int32(0),
            "epoch": jnp.int32(0),
            "batch": jnp.int32(0),
        }
        carry = jax.vmap(objective.initial_carry)(params)
        return state if carry is None else {**state, "carry": mesh.padded(carry)}

    # It runs once, for milliseconds; optimised it would be compiled for seconds.
    options = {"xla_backend_optimization_level": 0}
    layout = _layout(jax.eval_shape(build, origin), mesh)
    return jax.jit(build, out_shardings=layout, compiler_options=options)(origin)


def _layout(state: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Where each part of a state lies; small things lie everywhere, so that every process can read them."""
    places = {"params": mesh.by_member, "optimizer": mesh.by_member, "best": mesh.by_member, "carry": mesh.by_lane}
    return {name: places.get(name, mesh.everywhere) for name in state}


def _portable(
    objective: Objective, mesh: Mesh
) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Functions from a state to one that any other number of devices can read (without padding), and back."""

    def initial_carry() -> Any:
        return objective.initial_carry(objective.initialise(jax.random.key(0)))

    shapes = jax.tree.leaves(jax.eval_shape(initial_carry))
    if not shapes:
        return lambda state: state, lambda state: state
    lanes = shapes[0].shape[0]
    cut = jax.jit(lambda carry: jax.tree.map(lambda leaf: leaf[:, :lanes], carry), out_shardings=mesh.by_member)
    pad = jax.jit(mesh.padded, out_shardings=mesh.by_lane)
    return lambda state: {**state, "carry": cut(state["carry"])}, lambda state: {**state, "carry": pad(state["carry"])}


def _make_step(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[..., dict[str, Any]]:
    """One step of all members: forward, backward, clip, Adam."""

    def step(state: dict[str, Any], batch: Any, origin: Origin, lanes: int) -> dict[str, Any]:
        def member(params, opt_state, key, carry, batch):
            key = jax.random.fold_in(key, state["step"])
            gradients, (sums, carry) = jax.grad(objective.loss, has_aux=True)(params, key, carry, batch)
            with jax.named_scope("adam"):
                updates, opt_state = optimizer.update(gradients, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), sums, carry

        stacked = state["params"], state["optimizer"], _keys(origin)
        (params, opt_state), sums, carry = mesh.over_members(
            member, *stacked, carry=state.get("carry"), batch=batch, lanes=lanes
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


def _end_epoch(state: dict[str, Any], held_out_nll: Array) -> dict[str, Any]:
    """Keeps what is best so far, and begins the next epoch."""
    better = held_out_nll < state["best_nll"]

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    zeroed = {name: jax.tree.map(jnp.zeros_like, state[name]) for name in ("sums", "carry") if name in state}
    return {
        **state,
        **zeroed,
        "best": jax.tree.map(choose, state["params"], state["best"]),
        "best_nll": jnp.where(better, held_out_nll, state["best_nll"]),
        "stale": jnp.where(better, 0, state["stale"] + 1),
        "epoch": state["epoch"] + 1,
        "batch": jnp.zeros_like(state["batch"]),
    }


def _calls(state: dict[str, Any]) -> float:
    """Calls that this epoch has learned from; waits for the last step."""
    return float(np.asarray(state["sums"]["calls"])[0])


def _training_metrics(objective: Objective, state: dict[str, Any]) -> dict[str, np.ndarray]:
    return objective.metrics({name: np.asarray(value) for name, value in state["sums"].items()})


def _require_finite(loss: np.ndarray, objective: Objective, epoch: int) -> None:
    if not np.isfinite(loss).all():
        raise SyscallLMError(f"{objective.name}: the loss is not finite in epoch {epoch + 1}; lower --learning_rate")
