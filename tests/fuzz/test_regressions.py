"""What the fuzzer found once, and what it starts from, is read without a surprise."""

import importlib.util
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent


def load(name):
    specification = importlib.util.spec_from_file_location(f"fuzz_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


FUZZ, SEEDS = load("fuzz_readers"), load("seeds").SEEDS
FINDINGS = sorted(path for path in (FOLDER / "regressions").iterdir() if path.suffix != ".parquet")


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_read(name):
    for seed in SEEDS[name]:
        for choice in range(16):
            FUZZ.check(name, seed if name == "sources" else bytes([choice]) + seed)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_findings_are_mended(path):
    FUZZ.check(path.name.rpartition("-crash")[0] or path.name.partition("-")[0], path.read_bytes())


def test_the_fuzzer_runs(tmp_path):
    pytest.importorskip("atheris", reason="the extra `fuzz` is not installed")
    import subprocess

    command = [sys.executable, str(FOLDER / "fuzz_readers.py"), "auditd", "-runs=200", "-max_total_time=20"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and "Done 2" in run.stderr, run.stderr[-2000:]
