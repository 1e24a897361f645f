"""--profile_dir: what host and devices did, phase by phase, as a trace for TensorBoard, xprof or Perfetto.

`@profiled()` before an experiment's `main`, or `with profiled():` around a part of it.
"""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

import jax
from absl import flags

from syscall_lm.errors import SyscallLMError

SECONDS = 10  # on a CPU a trace grows by some 10 MiB a second

PROFILE_DIR = flags.DEFINE_string(
    "profile_dir", "", f"directory for a jax.profiler trace of the first {SECONDS} seconds; empty for none"
)


@contextlib.contextmanager
def profiled() -> Iterator[None]:
    """Records the block, or its first seconds, if the flag asks for it.

    Raises:
      SyscallLMError: the directory cannot be written.
    """
    if not PROFILE_DIR.value:
        yield
        return
    path = pathlib.Path(PROFILE_DIR.value)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SyscallLMError(f"--profile_dir={path}: {error.strerror}") from error
    once = threading.Lock()

    def stop() -> None:
        if once.acquire(blocking=False):
            jax.profiler.stop_trace()

    jax.profiler.start_trace(path)
    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be writing the trace
        stop()
        print(f"profile: {path}")
