"""One step of training: what is learned (`Objective`), how (`Optimisation`), and the program that makes the step.

M members learn side by side from the same minibatches, each with its own initialisation and dropout. Everything that
the next step depends on is one tree, the state; what is random is a function of the seed, the member and the step.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from syscall_lm import cpu
from syscall_lm.errors import SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.types import Array, HostArray, Params

SCHEDULES = ("constant", "cosine")
Origin = tuple[HostArray, HostArray]  # of all that is random: the seed's key data, uint32 [2]; member numbers [M]
CORE_FLOPS = 7e8  # of a step; a core that is left less costs more time than it saves (measured on two)
# Steps that one call of a GPU's program takes. The host needs 1.1 ms for a call, an H200 0.2 ms for a minibatch of 256
# windows (results/gpu); of more than one device, or on a CPU, a call takes one step.
TOGETHER = 8


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

    layout = layout_of(initial, mesh)
    alone = mesh.rows * mesh.columns == 1
    compiled_one, compiled_several = (
        cpu.jit(program, eigen=alone, donate_argnums=0, static_argnames="lanes", out_shardings=layout)
        for program in (one, several)
    )

    def step(state: dict[str, Any], *plans: np.ndarray) -> dict[str, Any]:
        lanes, single = plans[0].shape[-1], len(plans) == 1
        with jax.profiler.TraceAnnotation("gather minibatches"):
            if single:
                batch = mesh.feed(objective.gather, plans[0])
            else:
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(objective.gather, plans))
                batch = jax.device_put(stacked, mesh.everywhere)
        return (compiled_one if single else compiled_several)(state, batch, origin, lanes=lanes)

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
    layout = layout_of(jax.eval_shape(build, origin), mesh)
    return jax.jit(build, out_shardings=layout, compiler_options=options)(origin)


def layout_of(state: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Where each part of a state lies; small things lie everywhere, so that every process can read them."""
    places = {"params": mesh.by_member, "optimizer": mesh.by_member, "best": mesh.by_member, "carry": mesh.by_lane}
    return {name: places.get(name, mesh.everywhere) for name in state}


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
