"""Outputs that appear under their name only when they are complete."""

import contextlib
import errno
import fcntl
import glob
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from syscall_lm.errors import Interrupted, SyscallLMError


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what a killed run left of `complete_file(path)`; for the run that holds `path` for itself."""
    path = pathlib.Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def complete_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds, removes it otherwise.

    Raises:
      SyscallLMError: the folder cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise SyscallLMError(f"{path}: is a folder, but a file is to be written there")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(descriptor)
        temporary = pathlib.Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; outputs get the user's usual mode
        os.replace(temporary, path)
    except OSError as error:
        raise SyscallLMError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_folder(folder: pathlib.Path, *patterns: str) -> None:
    """Removes a folder that `exclusive` made, with its files of these patterns; with other files it stays."""
    with contextlib.suppress(OSError):  # what is left over does no harm
        for pattern in (*patterns, ".*.part", ".lock"):
            for path in folder.glob(pattern):
                path.unlink()
        folder.rmdir()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` as UTF-8, completely or not at all."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_no_input(output: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuses an output that would replace what it is made from.

    Raises:
      SyscallLMError: `output` is one of `inputs`, or a file in one of them that is a folder, by whatever path.
    """
    output = pathlib.Path(output)
    if not output.exists():
        return
    for path in map(pathlib.Path, inputs):
        if path.exists() and (output.samefile(path) or (path.is_dir() and path.resolve() in output.resolve().parents)):
            raise SyscallLMError(f"{output}: is an input, which the output would replace; name another output")


@contextlib.contextmanager
def storage(sentence: str) -> Iterator[None]:
    """Whatever goes wrong in the block, which reads or writes by Orbax, is told in one sentence.

    Raises:
      SyscallLMError: that sentence; Orbax and its storage raise many kinds.
    """
    try:
        yield
    except (SyscallLMError, Interrupted):
        raise
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        reason = full if full in str(error) else type(error).__name__
        raise SyscallLMError(f"{sentence} ({reason})") from error


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Makes `folder` if it is missing, and keeps a second run out of it while the block runs.

    Raises:
      SyscallLMError: another run is at work there, or the folder cannot be made.
    """
    folder = pathlib.Path(folder)
    if folder.is_file():
        raise SyscallLMError(f"{folder}: is a file, but a folder is to be made there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise SyscallLMError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with lock:  # closing it, or the process's end, frees the lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SyscallLMError(f"{folder}: another run is at work there") from error
        yield
