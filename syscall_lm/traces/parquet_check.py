"""Whether a Parquet file can be read, found out by a process that may die of it.

Parquet's reader is C++ that trusts a file more than one should: a changed byte in the footer can abort the process. So
before this process opens an archive, a child with limits of memory and time reads all of it, which takes a second for a
hundred million calls. One child serves all checks of this process; it ends with it.
"""

import atexit
import json
import os
import resource
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq

from syscall_lm.errors import SyscallLMError

MAX_MEMORY = 2**33  # bytes of address space; Arrow reserves some
SECONDS, BYTES_A_SECOND = 60, 2**20  # of the processor: for any file, and for its size
DIED = "damaged or hostile; the process that read it died"
# What pyarrow raises for damage; among others OSError and ValueError.
ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, NotImplementedError, KeyError)


class _Checker:
    """The child, and what it has found."""

    def __init__(self):
        self._child: subprocess.Popen[str] | None = None
        self._found: dict[tuple[str, int, int, int], bool] = {}
        self._lock = threading.Lock()

    def survives(self, path: str) -> bool:
        """Whether a process that reads the file lives on, be it with an error that is raised in an orderly way."""
        status = os.stat(path)
        key = (os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._found:
                self._found[key] = self._ask(key[0])
            return self._found[key]

    def _ask(self, path: str) -> bool:
        if self._child is None:
            # -P: nothing is imported from the current folder, which may be the captures'.
            command = [sys.executable, "-P", "-m", "syscall_lm.traces.parquet_check"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self._child = subprocess.Popen(command, **pipes)
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(path) + "\n")
            self._child.stdin.flush()
            if self._child.stdout.readline():
                return True
        except BrokenPipeError:
            pass
        self.close()
        return False

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass
            self._child = None


_CHECKER = _Checker()
atexit.register(_CHECKER.close)


def check(path: str | os.PathLike[str]) -> None:
    """Makes sure that reading a file does not end this process.

    Args:
      path: a file that is there; of any content.

    Raises:
      SyscallLMError: it does.
    """
    if not _CHECKER.survives(os.fspath(path)):
        raise SyscallLMError(f"{path}: {DIED}")


def limit_memory() -> None:
    """Bounds the memory of this process, which is about to read files that may ask for any; it leaves no core dump."""
    _limit(resource.RLIMIT_AS, MAX_MEMORY)
    _limit(resource.RLIMIT_CORE, 0)


def limit_time(path: str) -> None:
    """Ends this process if it works on a file for longer than its size explains: a few bytes can stand for hours.

    Called again, it gives as much time again.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = SECONDS + os.stat(path).st_size // BYTES_A_SECOND
    _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + allowed)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)  # the user's own, which a process cannot raise
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _main() -> None:
    """What the child does: reads files whose names come in, and says when it has survived one."""
    limit_memory()
    for line in sys.stdin:
        path = json.loads(line)
        try:
            limit_time(path)
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group, use_threads=False)
        except ERRORS:
            pass  # they will be raised again, and told, where the file is used
        print(flush=True)


if __name__ == "__main__":
    _main()
