"""The checkout itself."""

import ast
import collections
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = (  # README, "How it is built", from the bottom to the top; those of one line may import each other
    {"kernels"},
    {"errors", "types", "files", "cpu"},
    {"traces"},
    {"models"},
    {"mesh", "processes"},
    {"loop", "optimisation", "steps", "objective", "checkpoints"},
    {"training", "window_training"},
    {"scoring", "window_scoring"},
    {"detectors"},
    {"evaluation"},
    {"reports"},
    {"engines"},
    {"corpus"},
    {"experiments"},
)


def test_no_two_paths_differ_by_case_only():
    """On macOS and Windows one of them would be lost."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("git, or its folder, is not here: nothing tells which files are tracked")
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    paths = [pathlib.PurePosixPath(name) for name in done.stdout.split("\0") if name]
    spellings = collections.defaultdict(set)
    for path in paths:
        for part in (path, *path.parents):  # folders, too
            spellings[str(part).casefold()].add(str(part))
    assert len(paths) > 100
    assert [sorted(names) for names in spellings.values() if len(names) > 1] == []


def test_imports_run_one_way():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    found = set()
    for path in [path for top in ("syscall_lm", "kernels", "experiments") for path in (ROOT / top).rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        here = parts[0] if parts[0] != "syscall_lm" else parts[1]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            imported = [name.split(".")[1] for name in names if name.startswith("syscall_lm.")]
            found |= {(here, name) for name in imported if name in level and here != "__init__"}
    assert {here for here, _ in found} | {name for _, name in found} == set(level)
    assert [(here, name) for here, name in sorted(found) if level[here] < level[name]] == []
