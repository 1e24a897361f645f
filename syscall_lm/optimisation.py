"""One step of training: how a model learns (`Optimisation`) what it should (objective.py), on which devices; the
programs: steps.py.

M members learn side by side from the same minibatches, each with its own initialisation and dropout. Everything that
the next step depends on is one tree, the state; what is random is a function of the seed, the member and the step.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from syscall_lm import cpu, steps
from syscall_lm.errors import SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.objective import Objective

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
