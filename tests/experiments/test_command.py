"""How commands start, explain themselves and fail."""

import importlib.metadata
import subprocess
import sys

import pytest


def run(*arguments, module="syscall_lm.experiments", cwd=None):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    return run(cwd=tmp_path_factory.mktemp("elsewhere"))  # not the checkout: the package is installed


def test_without_a_name_all_experiments_are_listed_with_a_line_each(listing):
    assert listing.returncode == 0, listing.stderr
    lines = dict(line.split(maxsplit=1) for line in listing.stdout.splitlines()[2:])
    assert {"ingest", "train", "calibrate", "score", "evaluate", "report", "demo", "record_corpus"} <= lines.keys()
    assert all(line.endswith((".", ":")) or len(line) > 20 for line in lines.values())
    assert "command" not in lines and "data" not in lines


@pytest.mark.parametrize("name", ["train", "score"])
def test_help_is_short_and_names_every_flag_of_the_experiment_only(name):
    done = run(name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert f"syscall-lm {name} " in done.stdout  # an example to copy
    flags = [line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  --")]
    assert "--model" in flags and len(flags) < 30 and not any("jax" in flag for flag in flags)


def test_help_marks_the_required_flags_and_no_others():
    lines = run("train", "--help").stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines if line.endswith("(required)")] == ["--archive", "--model"]


def test_an_unknown_experiment_is_one_sentence_that_names_the_known_ones():
    done = run("trian")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "'trian' (did you mean train?)" in done.stderr and ", train, " in done.stderr


def test_the_version_is_the_package_s():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"syscall-lm {importlib.metadata.version('syscall_lm')}\n")


@pytest.mark.parametrize(("flag", "needed"), [("--far=abc", "a number"), ("--stretch=1.5", "a whole number")])
def test_what_is_no_number_is_told_without_python_s_words(flag, needed):
    done = run("score", flag)
    assert (done.returncode, done.stderr) == (2, f"error: flag {flag}: {needed} is needed\n")


def test_an_experiment_also_runs_as_a_module_of_the_checkout(request):
    done = run("--no_such_flag", module="experiments.train", cwd=request.config.rootpath)
    assert done.returncode == 2 and done.stderr == "error: Unknown command line flag 'no_such_flag'\n"


def test_the_main_job_runs_on_the_embedded_corpus(tmp_path):
    done = run("demo", "--output=out", "--members=1x4,1x5", "--epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "A demonstration, not a benchmark" in done.stdout
    assert "abnormal" in done.stdout and "| stide |" in done.stdout and "AUC" in done.stdout
    assert str(tmp_path / "out" / "report" / "report.html") in done.stdout
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "A demonstration, not a benchmark" in page
