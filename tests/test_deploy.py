"""The jobs for clusters: they parse, name flags that exist, and come back when they should."""

import os
import pathlib
import re
import subprocess

import pytest

DEPLOY = pathlib.Path(__file__).parents[1] / "deploy"
COMMAND = re.compile(r"syscall-lm[, \]]+(train|score)")


def fake(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_every_flag_exists(path):
    text = path.read_text()
    (experiment,) = set(COMMAND.findall(text))
    flags = set(re.findall(r"--(\w+)=", "\n".join(line for line in text.splitlines() if not line.startswith("#"))))
    sources = [(DEPLOY.parent / "experiments" / f"{experiment}.py").read_text()]
    known = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', sources[0]))
    assert len(flags) >= 3 and flags <= known, flags - known


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_manifests_are_jobs(path):
    yaml = pytest.importorskip("yaml", reason="comes with the extra `ray`")
    jobs = [part for part in yaml.safe_load_all(path.read_text()) if part["kind"] == "Job"]
    assert len(jobs) == 1 and jobs[0]["spec"]["completionMode"] == "Indexed"
    (container,) = jobs[0]["spec"]["template"]["spec"]["containers"]
    assert container["args"] if container["command"][0] == "sh" else container["command"]


@pytest.mark.parametrize(
    ("code", "restarts", "comes_back"), [(0, 0, False), (2, 0, False), (75, 0, True), (137, 3, True), (75, 20, False)]
)
def test_training_comes_back_unless_it_is_done_or_wrong(tmp_path, code, restarts, comes_back):
    fake(tmp_path, "srun", f"exit {code}")
    fake(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "HOME": "/h"}
    environment |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    done = subprocess.run(["bash", DEPLOY / "slurm-train.sh"], env=environment, check=False)
    assert done.returncode == code
    asked = tmp_path / "asked"
    assert (asked.read_text() == "requeue 7\n") if comes_back else not asked.exists()


def test_a_scoring_task_takes_the_archive_of_its_number(tmp_path):
    fake(tmp_path, "syscall-lm", 'printf "%s\\n" "$@"')
    (tmp_path / "list").write_text("a/x.parquet\nb/x y.parquet\n")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "HOME": "/h"}
    command = ["bash", DEPLOY / "slurm-score.sh", tmp_path / "list"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[1:] == [
        "--model=/h/models/adfa",
        "--archive=b/x y.parquet",
        "--output=/h/scores/1-x y.parquet",
        "--far=0.01",
    ]
