"""`syscall-lm NAME --flags`: runs the experiment NAME; without a name, lists them."""

import ast
import difflib
import importlib
import importlib.metadata
import pkgutil
import signal
import sys

from syscall_lm import experiments
from syscall_lm.experiments import command


def main() -> None:
    """Runs the experiment that the command line names."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # libraries abort where Ctrl-C interrupts their import
    if sys.argv[1:2] == ["help"]:
        sys.argv[1:] = [*sys.argv[2:3], "--help"]
    if len(sys.argv) < 2 or sys.argv[1] in ("--help", "-h"):
        sys.exit(command.exit_code(_list, sys.argv[:1]))
    if sys.argv[1] == "--version":
        sys.exit(command.exit_code(_version, sys.argv[:1]))
    names, name = _names(), sys.argv[1]
    if name not in names:
        near = "".join(f" (did you mean {like}?)" for like in difflib.get_close_matches(name, names, 1))
        print(f"error: no experiment is called {name!r}{near}; there are {', '.join(names)}", file=sys.stderr)
        sys.exit(command.EXIT_USER_ERROR)
    module = importlib.import_module(f"{experiments.__name__}.{name}")
    signal.signal(signal.SIGINT, handler)
    sys.argv = [f"syscall-lm {name}", *sys.argv[2:]]
    command.run(module.main)


def _version() -> None:
    print(f"syscall-lm {importlib.metadata.version('syscall_lm')}")


def _list() -> None:
    names = _names()
    print("usage: syscall-lm NAME --flags    (syscall-lm NAME --help explains one)\n")
    print("\n".join(f"  {name:<{max(map(len, names))}}  {text}" for name, text in names.items()))


def _names() -> dict[str, str]:
    """Experiment -> the first line of its docstring, read without importing it."""
    found = {}
    prefix = f"{experiments.__name__}."
    for module in pkgutil.walk_packages(experiments.__path__, prefix):
        name = module.name.removeprefix(prefix)
        spec = module.module_finder.find_spec(module.name, None)  # type: ignore[call-arg]
        if module.ispkg or name.startswith("_") or spec is None or spec.origin is None:
            continue
        with open(spec.origin, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


if __name__ == "__main__":
    main()
