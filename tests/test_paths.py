"""The checkout itself."""

import collections
import pathlib
import shutil
import subprocess

import pytest


def test_no_two_paths_differ_by_case_only():
    """On macOS and Windows one of them would be lost."""
    root = pathlib.Path(__file__).parents[1]
    if not shutil.which("git") or not (root / ".git").exists():
        pytest.skip("git, or its folder, is not here: nothing tells which files are tracked")
    done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    paths = [pathlib.PurePosixPath(name) for name in done.stdout.split("\0") if name]
    spellings = collections.defaultdict(set)
    for path in paths:
        for part in (path, *path.parents):  # folders, too
            spellings[str(part).casefold()].add(str(part))
    assert len(paths) > 100
    assert [sorted(names) for names in spellings.values() if len(names) > 1] == []
