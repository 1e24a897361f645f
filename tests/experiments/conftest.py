"""How experiments are tested: as commands."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pytest

DRIVER = """
import contextlib, importlib, io, json, sys
from syscall_lm.experiments import command
request = json.load(sys.stdin)
module = importlib.import_module("syscall_lm.experiments." + request["experiment"])
exec(request["setup"])
results = {}
for name, arguments in request["cases"].items():
    for flag in command.own_flags(module):
        flag.unparse()
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = command.exit_code(module.main, [request["experiment"], *arguments])
    results[name] = [code, output.getvalue(), errors.getvalue()]
print(json.dumps(results))
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def commands() -> Callable[..., dict[str, Done]]:
    """Runs many command lines of one experiment: `commands("score", {case: [argument, ...]}, setup="")`.

    They run in one process of their own: importing an experiment defines flags, which would clash with those of other
    experiments in this one, and a process a case would take minutes. `setup` is Python, run before, with the experiment
    as `module`.
    """

    def run(experiment: str, cases: Mapping[str, Sequence[object]], setup: str = "") -> dict[str, Done]:
        lines = {name: [str(argument) for argument in arguments] for name, arguments in cases.items()}
        request = json.dumps({"experiment": experiment, "setup": setup, "cases": lines})
        command = [sys.executable, "-W", "error::RuntimeWarning", "-c", DRIVER]
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return {name: Done(*values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}

    return run
