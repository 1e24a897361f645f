"""The training loop: one for every model that learns by gradients.

It trains members of an `Objective` step by step (optimisation.py, steps.py), epoch by epoch. What the next step
depends on is checkpointed, and the order of the data and the dropout are functions of seed, epoch and step: a run that
was killed and started again ends with the same parameters. It runs on all devices of all processes (mesh.py); their
number changes nothing but the rounding.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from syscall_lm import processes
from syscall_lm.checkpoints import Checkpoints
from syscall_lm.errors import Interrupted, SyscallLMError
from syscall_lm.mesh import Mesh
from syscall_lm.objective import Objective
from syscall_lm.optimisation import Optimisation, begin, in_runs, mesh_for
from syscall_lm.steps import Step, layout_of
from syscall_lm.types import Array, Params

STEPS_A_REPORT = 16  # reading the loss waits for the devices, so it is read now and then


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
      say: called with a line about the mesh, one about where training goes on, if it was interrupted, and one about the
        throughput of the first steps.
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
    end_epoch = jax.jit(_end_epoch, donate_argnums=0, out_shardings=layout_of(initial, mesh))
    checkpoints = Checkpoints(workdir, checkpoint_seconds)
    whole, history = checkpoints.restore(initial)
    say(f"{objective.name}: {mesh}")
    if 0 < int(whole["step"]) < total_steps:
        say(f"{objective.name}: goes on in epoch {int(whole['epoch']) + 1}, after step {int(whole['step']):,}")
    bar = tqdm.tqdm(total=total_steps, desc=objective.name, unit="step", disable=None if progress else True)
    bar.update(int(whole["step"]))
    first_report = True
    with bar, checkpoints:
        for epoch in range(int(whole["epoch"]), optimisation.epochs):
            if bool((np.asarray(whole["stale"]) >= optimisation.patience).all()):
                break
            started, done, step_number = time.monotonic(), int(whole["batch"]), int(whole["step"])
            state = step.spread(whole)
            calls_before = _calls(step, state)
            number = done
            for plans in in_runs(itertools.islice(objective.plans(epoch), done, None)):
                with jax.profiler.StepTraceAnnotation("train", step_num=step_number):
                    state = step(state, *plans)
                number += len(plans)
                step_number += len(plans)
                bar.update(len(plans))
                if number // STEPS_A_REPORT > (number - len(plans)) // STEPS_A_REPORT:
                    loss = objective.metrics(step.sums(state))["nll"]
                    speed = (_calls(step, state) - calls_before) / (time.monotonic() - started)
                    bar.set_postfix_str(f"{speed:,.0f} calls/s, loss {loss.mean():.3f}")
                    if first_report:
                        say(f"{objective.name}: {speed:,.0f} calls/s in the first steps, compilation included")
                        first_report = False
                    _require_finite(loss, objective, epoch)
                stop = processes.stop_requested(step_number)
                if stop or checkpoints.due(step_number):
                    with jax.profiler.TraceAnnotation("save a checkpoint"):
                        checkpoints.save({**step.whole(state), "batch": np.int32(number)}, history)
                if stop:
                    kept = "the same command goes on there" if workdir else "nothing is kept, for there is no workdir"
                    raise Interrupted(f"{objective.name}: asked to stop after step {step_number}; {kept}")
            training = objective.metrics(step.sums(state))  # waits for the last step
            seconds = time.monotonic() - started
            whole = step.whole(state)
            with jax.profiler.TraceAnnotation("judge held-out traces"):
                held_out = objective.metrics(objective.evaluate(whole["params"], mesh))
            row = {
                "shape": objective.name,
                "epoch": epoch + 1,
                "step": step_number,
                **{f"train_{name}": value.tolist() for name, value in training.items()},
                **{f"held_out_{name}": value.tolist() for name, value in held_out.items()},
                "calls_per_second": round((_calls(step, state) - calls_before) / seconds),
            }
            if done == 0:  # else it was interrupted, and nobody knows how long it took
                row["seconds"] = round(seconds, 3)
            _require_finite(held_out["nll"], objective, epoch)
            whole = end_epoch(whole, held_out["nll"].astype(np.float32))
            history = [*history, row]
            checkpoints.save(whole, history)
            log(history)
        bar.total = bar.n
    return Trained(mesh.to_host(whole["best"]), np.asarray(whole["best_nll"]), len(history), history)


def _end_epoch(whole: dict[str, Any], held_out_nll: Array) -> dict[str, Any]:
    """Keeps what is best so far, and begins the next epoch."""
    better = held_out_nll < whole["best_nll"]

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    zeroed = {name: jax.tree.map(jnp.zeros_like, whole[name]) for name in ("sums", "carry") if name in whole}
    return {
        **whole,
        **zeroed,
        "best": jax.tree.map(choose, whole["params"], whole["best"]),
        "best_nll": jnp.where(better, held_out_nll, whole["best_nll"]),
        "stale": jnp.where(better, 0, whole["stale"] + 1),
        "epoch": whole["epoch"] + 1,
        "batch": jnp.zeros_like(whole["batch"]),
    }


def _calls(step: Step, state: dict[str, Any]) -> float:
    """Calls that this epoch has learned from; waits for the last step."""
    return float(step.sums(state)["calls"][0])


def _require_finite(loss: np.ndarray, objective: Objective, epoch: int) -> None:
    if not np.isfinite(loss).all():
        raise SyscallLMError(f"{objective.name}: the loss is not finite in epoch {epoch + 1}; lower --learning_rate")
