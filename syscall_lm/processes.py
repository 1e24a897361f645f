"""The processes of one training: how they find each other, agree, and end together.

Every process runs the same program on the same flags. Plans, initialisation and dropout are functions of the seed, so
the processes need to talk about little: gradients (the mesh does that), when to write a checkpoint, and whether to go
on at all. The first process alone writes results; everybody logs, each line with the process's number.
"""

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from syscall_lm import cpu
from syscall_lm.errors import Interrupted, SyscallLMError

MESSAGE_BYTES = 1024
SHUTDOWN_SECONDS = 24 * 3600  # the others wait so long while the first one calibrates
# Set by srun, mpirun, an Indexed Job of Kubernetes and Cloud TPU; the last two say that there may be others.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES")

_START_AGAIN = "start all again with the same command to go on"

_asked_to_stop = False
_on_abort: Any = None


def start(
    cpu_devices: int, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Prepares JAX; must come before anything that uses a device.

    Args:
      cpu_devices: how many devices JAX makes of this process's cores, where there is no accelerator.
      coordinator: HOST:PORT of process 0. Without it SLURM, Open MPI, Kubernetes and TPU are asked, and where none of
        them has started several processes, this one is alone.
      num_processes, process_id: how many there are, and which one this is, from 0; needed with a coordinator.

    Raises:
      SyscallLMError: flags that do not fit together, or processes with different numbers of devices.
      Interrupted: the others did not come.
    """
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    cpu.keep_freed_memory()
    explicit = (coordinator, num_processes, process_id)
    if any(value is not None for value in explicit):
        if coordinator is None or num_processes is None or process_id is None:
            raise SyscallLMError("--coordinator, --num_processes and --process_id belong together: give all or none")
        if not 0 <= process_id < num_processes or not coordinator.rpartition(":")[2].isdecimal():
            raise SyscallLMError(
                f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: expected "
                "HOST:PORT, and a process_id from 0 to num_processes - 1"
            )
        _connect(*explicit, cluster_detection_method="deactivate")
    elif _launched_with_others():
        _connect()
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _note_request)  # with several, JAX tells all of them
        return
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts)) > 1:
        numbers = ", ".join(map(str, counts))
        raise SyscallLMError(f"the processes have {numbers} devices; they must have equally many (see --cpu_devices)")


def _launched_with_others() -> bool:
    slurm, mpi, job, tpu = (os.environ.get(name, "") for name in _LAUNCHERS)
    return any(count.isdecimal() and int(count) > 1 for count in (slurm, mpi)) or job != "" or "," in tpu


def _connect(*explicit: Any, **options: Any) -> None:
    try:
        jax.distributed.initialize(*explicit, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **options)
    except ValueError as error:
        raise SyscallLMError(
            f"this cluster does not say which processes train together ({_first_line(error)})"
        ) from error
    except RuntimeError as error:
        raise Interrupted(f"the processes did not find each other ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def _note_request(number: int, frame: object) -> None:
    del number, frame
    global _asked_to_stop
    _asked_to_stop = True


def stop_requested(step: int) -> bool:
    """Whether SIGTERM reached any process; all learn of it at the same step. To be asked at every step, by all."""
    return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else _asked_to_stop


def is_first() -> bool:
    """Whether this process reports and writes results."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, with this process's number if there are several."""
    print(f"[{jax.process_index()}/{jax.process_count()}] {text}" if jax.process_count() > 1 else text, flush=True)


def first_agrees(value: bool) -> bool:
    """The first process's value, in all of them."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def require_same(configuration: Any) -> None:
    """Raises SyscallLMError in every process if they were not started to do the same (a JSON value)."""
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if len(np.unique(digests.reshape(jax.process_count(), -1), axis=0)) > 1:
        raise SyscallLMError("the processes have different flags, data or versions; start all with the same")


def only_first(function: Callable[[], bool]) -> bool:
    """Runs `function` in the first process; all get what it returns.

    Raises:
      SyscallLMError: in all processes, if `function` raises it in the first one.
    """
    done, message = False, b""
    if is_first():
        try:
            done = function()
        except SyscallLMError as error:
            if jax.process_count() == 1:
                raise
            message = str(error).encode()[:MESSAGE_BYTES]
    padded = np.frombuffer(message.ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    done, padded = multihost_utils.broadcast_one_to_all((np.array(done), padded))
    if message := padded.astype(np.uint8).tobytes().rstrip(b"\0"):
        raise SyscallLMError(message.decode(errors="replace"))
    return bool(done)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """While the block runs, the end of one process ends all of them.

    Raises:
      Interrupted: another process ended before its time.
    """
    if jax.process_count() == 1:
        yield
        return
    _interrupt_on_abort(f"process {jax.process_index()} of {jax.process_count()} lost the others (JAX tells how above)")
    try:
        yield
        multihost_utils.sync_global_devices("done")
    except BaseException as error:
        reason = _lost_connection(error)
        # Waiting for the others, as JAX does when it leaves, would keep all from ending.
        atexit.register(_leave, Interrupted.exit_code if reason or isinstance(error, Interrupted) else 2)
        if reason:
            raise Interrupted(
                f"process {jax.process_index()} of {jax.process_count()} lost the others ({reason}); {_START_AGAIN}"
            ) from error
        raise


def _interrupt_on_abort(reason: str) -> None:
    """Has this process end as interrupted when JAX aborts it.

    When the coordinator dies, a thread of JAX may see it before any computation fails, and calls abort(). Only a signal
    handler of C's comes in between; it runs in that thread, where it may take its time.
    """
    global _on_abort

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def leave(number: int) -> None:
        del number
        print(f"interrupted: {reason}; {_START_AGAIN}", file=sys.stderr)
        _leave(Interrupted.exit_code)

    _on_abort = leave  # C keeps no reference
    install = ctypes.CDLL(None).signal
    install.restype = ctypes.c_void_p
    install(signal.SIGABRT, leave)


def _lost_connection(error: BaseException | None) -> str:
    """What an error says of a process that does not answer; empty if it is an error of another kind."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or (type(error) is ValueError and "Gloo" in str(error)):
            return _first_line(error)
        error = error.__cause__
    return ""


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
