"""Recording one command under strace in a fresh folder, as traces that say nothing of the machine."""

import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.corpus.workspace import Workspace
from syscall_lm.traces.readers import Counters, Options, strace
from syscall_lm.traces.sources import ByteStream, Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

HOST = "corpus"
TIME_LIMIT = 120.0  # seconds for one run; the workloads take about one
STRACE = ("strace", "-f", "-ttt", "-s", "0", "-e", "trace=all")

_CHILD = re.compile(rb"^(\d+) +[\d.]+ (?:<\.\.\. )?(?:clone3?|v?fork)\b.*\) += (\d+)$", re.MULTILINE)


def check_strace() -> str:
    """Returns strace's version line.

    Raises:
      SyscallLMError: strace is missing, or may not trace.
    """
    if shutil.which("strace") is None:
        raise SyscallLMError("recording needs strace, which is not installed")
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise SyscallLMError(f"strace may not trace processes here ({reason}); ptrace must be permitted")
    version = subprocess.run(["strace", "-V"], capture_output=True, text=True, check=True)
    return version.stdout.splitlines()[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """One command to record.

    Attributes:
      name: unique, readable: "git-03".
      build: prepares the workspace and returns the command.
    """

    name: str
    build: Callable[[Workspace], list[str]]


def record(run: Run, seed: int, work_dir: str | None, vocabulary: Vocabulary, counters: Counters) -> list[Trace]:
    """Records one run.

    Args:
      run: what to record.
      seed: with the run's name, it fixes the run's choices.
      work_dir: where the temporary folder is made; None for the system's place.
      vocabulary: of the traces.
      counters: what the reader sees is added to it.

    Returns:
      A trace for each process and thread, in the order in which they began, numbered so; label, family and split are
      empty.

    Raises:
      SyscallLMError: the command fails or does not end.
    """
    with tempfile.TemporaryDirectory(prefix="syscall-lm-", dir=work_dir) as temporary:
        root = pathlib.Path(temporary)
        folder, home, log = root / "work", root / "home", root / "strace.log"
        folder.mkdir()
        (home / "tmp").mkdir(parents=True)
        workspace = Workspace(folder, home, random.Random(f"{seed}/{run.name}"))
        try:
            command = run.build(workspace)
            _run_traced(run.name, command, workspace, log)
        finally:
            workspace.close()
        return _read(run.name, log, vocabulary, counters)


def _run_traced(name: str, command: list[str], workspace: Workspace, log: pathlib.Path) -> None:
    with open(log.with_suffix(".output"), "wb+") as output:
        process = subprocess.Popen(
            [shutil.which("strace") or "strace", *STRACE[1:], "-o", str(log), "--", *command],
            cwd=workspace.folder,
            env=workspace.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all of it can be ended at once, and no terminal is within its reach
        )
        try:
            code = process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired as error:
            raise SyscallLMError(f"{name}: {command[0]} did not end within {TIME_LIMIT:.0f} seconds") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        if code != 0:
            tail = output.read()[-200:].decode(errors="replace").strip()
            raise SyscallLMError(f"{name}: {command[0]} failed with code {code} ({tail})")


def _read(name: str, log: pathlib.Path, vocabulary: Vocabulary, counters: Counters) -> list[Trace]:
    with open(log, "rb") as stream:
        traces = list(strace.read(Source(name, ByteStream(stream.read)), vocabulary, Options(host=HOST), counters))
    parents = {int(child): int(parent) for parent, child in _CHILD.findall(log.read_bytes())}
    commands = {trace.pid: trace.command for trace in traces}

    def command(pid: int | None) -> str:
        while pid is not None and not commands.get(pid):  # it runs the program of the process that forked it
            pid = parents.get(pid)
        return commands.get(pid, "")

    traces.sort(key=lambda trace: trace.start_time or 0.0)
    return [
        dataclasses.replace(trace, id=f"{name}:{number}", pid=number, command=command(trace.pid))
        for number, trace in enumerate(traces, 1)
    ]
