"""Reading parts in several processes."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parts
from syscall_lm.traces.parts import Part

_REPORTED_AT_ONCE = 100_000  # calls
_POLL = 0.2  # seconds


class _Worker:
    """What a worker process knows of the run."""

    calls: Any = None  # read so far, shared
    stop: Any = None  # whether the run is over, shared


def read_all(missing: Sequence[Part], folder: pathlib.Path, workers: int, progress: Callable[[int], object]) -> None:
    """Reads parts and stores them in `folder`, in this process if one is enough.

    Args:
      missing: the parts.
      folder: where to store them.
      workers: how many processes to use at most.
      progress: is called with the number of calls that have been read since it was called last.

    Raises:
      SyscallLMError: a file cannot be read, or a worker died. Parts that were complete by then stay.
    """
    if workers == 1 or len(missing) < 2:
        for part in missing:
            parts.read(part, None, folder, progress)
        return
    # Spawned, not forked: a fork of a process with threads (JAX's, Arrow's) may hang.
    context = multiprocessing.get_context("spawn")
    calls, stop = context.Value("q", 0), context.Value("b", 0)
    told = 0
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=_begin, initargs=(calls, stop)
    )
    try:
        for future in [executor.submit(_read, part, folder) for part in missing]:
            while not concurrent.futures.wait([future], timeout=_POLL).done:
                told = _tell(progress, calls.value, told)
            future.result()  # in order, so that of several errors always the same one is told
            told = _tell(progress, calls.value, told)
    except BrokenProcessPool as error:
        raise SyscallLMError(
            "a worker process died, perhaps for want of memory; the same command goes on with what is missing"
        ) from error
    finally:
        stop.value = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _tell(progress: Callable[[int], object], now: int, before: int) -> int:
    if now > before:
        progress(now - before)
    return now


def _begin(calls: Any, stop: Any) -> None:
    _Worker.calls, _Worker.stop = calls, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent sees to it that we stop
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class _Stopped(SyscallLMError):
    pass


def _read(part: Part, folder: pathlib.Path) -> None:
    unreported = 0

    def progress(calls: int) -> None:
        nonlocal unreported
        unreported += calls
        if unreported >= _REPORTED_AT_ONCE:
            report()

    def report() -> None:
        nonlocal unreported
        with _Worker.calls.get_lock():
            _Worker.calls.value += unreported
        unreported = 0
        if _Worker.stop.value:
            raise _Stopped("stopped")

    parts.read(part, None, folder, progress)
    report()
