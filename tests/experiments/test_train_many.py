"""Several processes train as one: the same losses, a clear end when one of them dies, and any number goes on."""

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

# 7 lanes, which 2 processes share as 4 and 3.
SMALL = ["--members=1x6", "--epochs=5", "--minibatch_calls=119", "--steps=17", "--checkpoint_seconds=0"]
TO_THE_END = ["--cpu_devices=1", "--checkpoint_seconds=1000"]  # a checkpoint a step takes longer than the steps


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "traces.parquet"
    with TraceArchiveWriter(path, Vocabulary(("read", "write", "open"), "names of a test")) as writer:
        for i in range(40):
            writer.write(Trace(((np.arange(30 + i) + i) % 3).astype(np.uint16), f"n{i}", label=NORMAL))
    return path


def start(archive, model, *flags):
    command = [sys.executable, "-m", "experiments.train", f"--archive={archive}", f"--model={model}", *SMALL, *flags]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(archive, model, *flags_of_each):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"--coordinator=localhost:{free.getsockname()[1]}"
    common = [where, "--num_processes=2", "--cpu_devices=1"]
    return [start(archive, model, *common, f"--process_id={i}", *flags) for i, flags in enumerate(flags_of_each)]


def wait_for_checkpoints(model, count, process):
    seen = set()
    while len(seen) < count:
        assert process.poll() is None, process.communicate()
        seen |= {path.name for path in (model / "checkpoints").glob("*/*") if path.name.isdigit()}
        time.sleep(0.01)


def kill_one_of_two(archive, model, victim, checkpoints):
    """Kills one after some checkpoints; the other must leave by itself and say why. What that one printed."""
    both = start_two(archive, model, [], [])
    wait_for_checkpoints(model, checkpoints, both[victim])
    both[victim].send_signal(signal.SIGKILL)
    out, errors = both[1 - victim].communicate(timeout=200)
    both[victim].communicate()
    assert both[1 - victim].returncode == 75, (both[1 - victim].returncode, errors)
    assert f"interrupted: process {1 - victim} of 2 lost the others" in errors and "Traceback" not in errors, errors
    return out


def test_a_process_that_jax_aborts_was_interrupted():
    """JAX calls abort() in a thread of its own where it sees first that the coordinator is gone."""
    program = """
import ctypes, threading, time
from syscall_lm import processes
processes._interrupt_on_abort("this one lost the others")
threading.Thread(target=ctypes.CDLL(None).abort).start()
time.sleep(100)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    expected = "interrupted: this one lost the others; start all again with the same command to go on\n"
    assert (done.returncode, done.stderr) == (75, expected)


def losses(model):
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [row["train_nll"] + row["held_out_nll"] for row in rows]


def test_if_the_process_that_the_others_meet_at_is_killed_they_leave_too(archive, tmp_path):
    kill_one_of_two(archive, tmp_path / "model", victim=0, checkpoints=1)


def test_a_killed_process_ends_the_other_and_another_number_goes_on(archive, tmp_path):
    whole = start(archive, tmp_path / "whole", *TO_THE_END)
    _, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors

    model = tmp_path / "model"
    out = kill_one_of_two(archive, model, victim=1, checkpoints=2)
    assert "mesh member=1 x data=2: 2 devices (cpu) of 2 processes" in out and "calls/s in the first steps" in out

    alone = start(archive, model, "--cpu_devices=1")  # SIGTERM is what schedulers send before they kill
    wait_for_checkpoints(model, 3, alone)
    alone.send_signal(signal.SIGTERM)
    _, errors = alone.communicate(timeout=100)
    assert alone.returncode == 75 and "asked to stop after step" in errors and "Traceback" not in errors, errors

    last = start(archive, model, *TO_THE_END, "--cpu_devices=3")
    out, errors = last.communicate(timeout=200)
    assert last.returncode == 0 and "data=3" in out, errors
    np.testing.assert_allclose(losses(model), losses(tmp_path / "whole"), rtol=1e-5)


def test_two_processes_train_to_the_end_and_the_first_writes_the_model(archive, tmp_path):
    model = tmp_path / "model"
    flags = ["--members=1x6,1x6", "--epochs=1", "--far=0.2"]
    processes = start_two(archive, model, flags, flags)
    done = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    assert f"model: {model}" in done[0][0] and "model:" not in done[1][0]
    for number, (out, _) in enumerate(done):
        assert f"[{number}/2] 1x6: mesh member=2 x data=1" in out and f"[{number}/2]   1x6 epoch 1/1" in out
    assert (model / "model.json").exists()
    alone = start(archive, tmp_path / "alone", *flags, "--cpu_devices=1")
    _, errors = alone.communicate(timeout=200)
    assert alone.returncode == 0, errors
    np.testing.assert_allclose(losses(model), losses(tmp_path / "alone"), rtol=1e-5)


def test_sigterm_for_one_of_two_stops_both_at_the_same_step_and_they_go_on(archive, tmp_path):
    model = tmp_path / "model"
    both = start_two(archive, model, [], [])
    wait_for_checkpoints(model, 2, both[0])
    both[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [75, 75], errors
    steps = [re.findall(r"asked to stop after step (\d+)", text) for text in errors]
    assert len(steps[0]) == 1 and steps[0] == steps[1] and not any("Traceback" in text for text in errors), errors
    last = start(archive, model, *TO_THE_END)
    _, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert len(losses(model)) == 5


def test_processes_that_do_not_fit_together_all_refuse(archive, tmp_path):
    processes = start_two(archive, tmp_path / "model", ["--seed=1"], ["--seed=2"])
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 2 and "different flags, data or versions" in errors, errors
    assert not (tmp_path / "model").exists()


def test_mistakes_are_one_sentence(archive, tmp_path, commands):
    common = [f"--archive={archive}", f"--model={tmp_path}/new"]
    cases = {
        "belong together": [*common, "--coordinator=here:1"],
        "HOST:PORT": [*common, "--coordinator=here", "--num_processes=2", "--process_id=0"],
        "from 0 to num_processes - 1": [*common, "--coordinator=here:1", "--num_processes=2", "--process_id=2"],
    }
    for expected, result in commands("train", cases).items():
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1, result
