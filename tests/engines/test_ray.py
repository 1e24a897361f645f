"""The Ray engine gives the local engine's bytes, whoever dies on the way."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

SHARDS = 200
# A token of the test's own: Ray would else write one into the home folder, and a cluster's is not told to others.
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
CLUSTER = """
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**27)
print("address", ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """An archive, a model, and what the local engine makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    vocabulary = Vocabulary(("read", "write", "open"))
    tiny_model(folder / "model", vocabulary, ("1x4", "2x3"))
    rng = np.random.default_rng(0)
    with TraceArchiveWriter(folder / "traces", vocabulary) as writer:
        for i in range(SHARDS):
            writer.write(Trace(rng.integers(0, 4, 500).astype(np.uint16), f"t{i}"))
    process = score(folder, "local")
    assert process.wait(timeout=120) == 0, process.communicate()
    process.communicate()
    return folder


def score(folder, output, *more):
    arguments = ["--model=model", "--archive=traces", f"--output={output}", "--shard_calls=500", *more]
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "syscall_lm.experiments", "score", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **pipes)


def await_parts(folder, output, wanted, process):
    end = time.monotonic() + 180  # Ray starts slowly on busy cores
    while (
        time.monotonic() < end
        and process.poll() is None
        and len(list((folder / f"{output}.parts").glob("*.parquet"))) < wanted
    ):
        time.sleep(0.001)


def actors(ancestor):
    """The processes of a cluster that score, by the name that Ray gives them."""
    parents, found = {}, []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(path.name))
        except OSError:  # it has ended
            continue

    def descends(pid):
        return pid == ancestor or (pid in parents and descends(parents[pid]))

    return [pid for pid in found if descends(pid)]


def test_on_a_cluster_an_actor_killed_midway_changes_no_byte(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], env=ENVIRONMENT, **pipes)
    process = None
    try:
        assert cluster.stdout is not None
        address = next(line for line in cluster.stdout if line.startswith("address ")).split()[1]
        process = score(folder, "cluster", "--engine=ray", f"--ray_address={address}", "--workers=2")
        await_parts(folder, "cluster", 1, process)
        found = actors(cluster.pid)
        assert len(found) == 2
        os.kill(found[0], signal.SIGKILL)
        assert len(list((folder / "cluster.parts").glob("*.parquet"))) < SHARDS
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "resumed" not in printed and not (folder / "cluster.parts").exists()
        assert (folder / "cluster").read_bytes() == (folder / "local").read_bytes()
    finally:
        cluster.communicate("\n", timeout=60)
        if process is not None and process.poll() is None:
            process.kill()
            process.communicate()


def test_killed_itself_it_leaves_its_shards_to_any_engine(folder):
    process = score(folder, "both", "--engine=ray", "--workers=2")
    await_parts(folder, "both", 1, process)
    second = score(folder, "both")
    assert second.wait(timeout=60) == 2 and "another run is at work there" in second.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (folder / "both").exists()
    process = score(folder, "both")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "resumed: " in printed, errors
    assert (folder / "both").read_bytes() == (folder / "local").read_bytes()


def test_a_cluster_that_is_not_there_is_one_sentence(folder):
    process = score(folder, "bad", "--engine=ray", "--ray_address=127.0.0.1:9")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.startswith("error: "), errors
    assert errors.count("\n") == 1 and "cannot be reached" in errors, errors
