"""Training's checkpoints: the last two states, each written completely or not at all."""

import pathlib
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from syscall_lm import files, processes

STEPS_A_QUESTION = 16  # each process has a clock of its own; asking the first one costs a message


class Checkpoints:
    """The last two checkpoints of a group of members in `workdir`, or nothing at all if there is no workdir.

    Args:
      workdir: a folder of their own, made if missing; None keeps nothing.
      seconds: how often `due` asks for one.
    """

    def __init__(self, workdir: pathlib.Path | None, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()
        self._manager = None
        if workdir is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(workdir.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def due(self, step: int) -> bool:
        """Whether the last checkpoint is older than the interval; the same in all processes."""
        if self._manager is None or (jax.process_count() > 1 and step % STEPS_A_QUESTION):
            return False
        return processes.first_agrees(time.monotonic() - self._last > self._seconds)

    def save(self, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Writes the state (arrays; `step` and `batch` order the checkpoints) and the history (JSON values)."""
        if self._manager is None:
            return
        items = {"state": ocp.args.StandardSave(state), "history": ocp.args.JsonSave({"rows": history})}
        # Epoch and batch, not the step alone: the end of an epoch comes after its last step's checkpoint.
        number = int(state["step"]) * 2 + (int(state["batch"]) == 0)
        with files.storage(f"{self._manager.directory}: a checkpoint cannot be written"):
            self._manager.save(number, args=ocp.args.Composite(**items))
        self._last = time.monotonic()

    def restore(self, initial: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The newest state, shaped like `initial`, and its history; `initial` itself if there is none.

        Raises:
          SyscallLMError: the newest checkpoint is damaged.
        """
        if self._manager is None or (number := self._manager.latest_step()) is None:
            return initial, []
        folder = self._manager.directory / str(number)
        with files.storage(f"{folder}: a damaged checkpoint; delete it to resume from the one before"):
            items = {"state": ocp.args.StandardRestore(initial), "history": ocp.args.JsonRestore()}
            restored = self._manager.restore(number, args=ocp.args.Composite(**items))
            return restored["state"], restored["history"]["rows"]
