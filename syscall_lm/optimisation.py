"""One step of training: what is learned (`Objective`), how (`Optimisation`), and on which devices (the programs:
steps.py).

M members learn side by side from the same minibatches, each with its own initialisation and dropout. Everything that
the next step depends on is one tree, the state; what is random is a function of the seed, the member and the step.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax

from syscall_lm import cpu, steps
from syscall_lm.errors import SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.types import Array, Params, Place

SCHEDULES = ("constant", "cosine")
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

    def loss(
        self, params: Params, key: Array, carry: Any, batch: Any, place: Place, /
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """What one member minimises, and beside it the sums and the carry for the next minibatch.

        Of a minibatch, or of some of its lanes, whose `place` it depends on where it is random: the minibatch's loss is
        the mean of its parts', weighted by the calls of their sums; finite where there are none.
        """
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
) -> tuple[dict[str, Any], steps.Step]:
    """Prepares M members.

    Returns:
      the whole state before the first step, and the compiled step of all members.
    """
    cpu.keep_freed_memory()
    mesh = mesh or mesh_for(objective, len(member_numbers))
    # Arguments of the programs, not constants in them: those of one seed serve every other.
    origin = np.asarray(jax.random.key_data(jax.random.key(optimisation.seed))), np.array(member_numbers)
    optimizer = _optimizer(optimisation, total_steps)
    step = steps.step_on(mesh, objective, optimizer, origin)
    return steps.initial_state(objective, origin, optimizer, mesh), step


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


def _optimizer(optimisation: Optimisation, total_steps: int) -> optax.GradientTransformation:
    rate: Any = optimisation.learning_rate
    if optimisation.schedule == "cosine":
        rate = optax.cosine_decay_schedule(optimisation.learning_rate, total_steps)
    return optax.chain(optax.clip_by_global_norm(optimisation.clip), optax.adam(rate))
