"""The train command: resumes after SIGKILL to the last bit, and refuses what it cannot mean."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("read", "write", "open", "close"), "names of a test")
SMALL = ["--members=1x6,1x5,1x6", "--epochs=3", "--minibatch_calls=136", "--steps=17", "--cpu_devices=2"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """60 normal traces without a split, and attacks that no one may learn from."""
    path = tmp_path_factory.mktemp("train") / "traces.parquet"
    with TraceArchiveWriter(path, VOCABULARY) as writer:
        for i in range(60):
            writer.write(Trace(((np.arange(30 + i) + i) % 3).astype(np.uint16), f"n{i}", label=NORMAL))
        for i in range(5):
            writer.write(Trace(np.full(20, 3, np.uint16), f"a{i}", label=ATTACK))
    return path


def start(archive, model, *flags):
    command = [sys.executable, "-m", "experiments.train", f"--archive={archive}", f"--model={model}", *flags]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(archive, tmp_path_factory, commands):
    model = tmp_path_factory.mktemp("whole") / "model"
    flags = [f"--archive={archive}", f"--model={model}", *SMALL]
    windows = [
        flags[0],
        f"--model={model}-of-windows",
        "--members=encoder-decoder-3x4,autoencoder-3x4",
        "--epochs=2",
        SMALL[-1],
    ]
    cases = {"first": flags, "again": flags, "other": [*flags, "--epochs=4"], "windows": windows}
    windows.append(f"--profile_dir={model}-profile")
    slow = "from syscall_lm.experiments import profiling; profiling.SECONDS = 250"  # a machine that others use
    done = commands("train", cases, slow)
    return model, done


def test_models_of_windows_are_trained_by_the_same_command(uninterrupted, archive):
    path, done = uninterrupted
    assert done["windows"].code == 0, done["windows"].err
    model = store.load(path.with_name(f"{path.name}-of-windows"))
    assert [str(member.shape) for member in model.members] == ["encoder-decoder-3x4", "autoencoder-3x4"]
    profile = next(path.with_name(f"{path.name}-profile").rglob("*.xplane.pb")).read_bytes()
    assert all(scope in profile for scope in (b"adam", b"fold", b"encoder", b"decoder"))
    assert all(phase in profile for phase in (b"gather minibatches", b"judge held-out traces"))
    recipes = model.info["configuration"]["windows"]
    assert [recipe["length"] for recipe in recipes.values()] == [3, 3]
    assert recipes["encoder-decoder-3x4"]["learning_rate"] != recipes["autoencoder-3x4"]["learning_rate"]
    scores = LanguageModelDetector.load(model).member_scores(TraceArchive(archive).read().calls)
    assert scores.shape == (2, 65) and np.isfinite(scores).all()


def test_trains_calibrates_and_tells(uninterrupted, archive):
    path, done = uninterrupted
    assert done["first"].code == 0, done["first"].err
    assert "holding out 6, " in done["first"].out and "55 normal" not in done["first"].out
    model = store.load(path)
    assert [member.name for member in model.members] == ["1x6.1", "1x5", "1x6.2"]
    assert model.vocabulary == VOCABULARY
    detector = LanguageModelDetector.load(model)
    calls = TraceArchive(archive).read().calls
    scores = detector.decision_function(calls)
    assert scores[60:].min() > scores[:60].max()  # the attacks hold a call that no normal trace holds
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["shape"], row["epoch"]) for row in rows] == [(s, e) for s in ("1x6", "1x5") for e in (1, 2, 3)]
    card = (path / store.CARD).read_text()
    assert "54 normal traces" in card and "| 1x6.2 |" in card
    assert not list(path.rglob("*.pkl")) and not list(path.rglob("*.pickle"))


def test_the_same_command_again_does_nothing_and_another_configuration_is_refused(uninterrupted):
    _, done = uninterrupted
    assert done["again"].code == 0 and "already trained" in done["again"].out
    assert done["other"].code == 2 and done["other"].err.count("\n") == 1
    assert "epochs = 3, not 4" in done["other"].err


def test_killed_at_any_moment_it_ends_with_the_same_parameters(uninterrupted, archive, tmp_path):
    model = tmp_path / "model"
    kills, told = 0, ""
    for attempt in range(40):
        # A checkpoint a step takes longer than the steps; the last run makes few.
        process = start(archive, model, *SMALL, f"--checkpoint_seconds={0 if attempt < 3 else 1000}")
        if attempt < 3:  # kill it some checkpoints after it went on, each time a bit later
            before, new = checkpoints(model), set()
            while process.poll() is None and len(new) < 2 + 5 * attempt:
                new |= checkpoints(model) - before
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        told, errors = process.communicate(timeout=300)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert kills == 3 and "goes on in epoch " in told
    whole, resumed = store.load(uninterrupted[0]), store.load(model)
    for a, b in zip(whole.members, resumed.members, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert (model / store.CALIBRATION).read_bytes() == (uninterrupted[0] / store.CALIBRATION).read_bytes()
    timeless = []
    for path in (model, uninterrupted[0]):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        times = ("calls_per_second", "seconds")
        timeless.append([{key: value for key, value in row.items() if key not in times} for row in rows])
    assert timeless[0] == timeless[1]


def checkpoints(model):
    folder = model / "checkpoints"
    return {path for path in folder.glob("*/*") if path.name.isdigit()} if folder.exists() else set()


def test_mistakes_are_one_sentence_and_exit_code_2(archive, tmp_path, commands, uninterrupted):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    (tmp_path / "text").write_text("hello")
    with TraceArchiveWriter(tmp_path / "attacks", VOCABULARY) as writer:
        writer.write(Trace(np.zeros(3, np.uint16), "a", label=ATTACK))
    with TraceArchiveWriter(tmp_path / "single", VOCABULARY) as writer:
        writer.write(Trace(np.zeros(1, np.uint16), "a"))
    truncated = tmp_path / "truncated"
    truncated.write_bytes(archive.read_bytes()[:-50])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    good, new = f"--archive={archive}", f"--model={tmp_path}/new"
    cases = {
        "mistakes: no archive flag": [new],
        "no such file": [f"--archive={tmp_path}/none", new],
        "not a trace archive": [f"--archive={tmp_path}/text", new],
        "or truncated": [f"--archive={truncated}", new],
        "no normal traces": [f"--archive={tmp_path}/attacks", new],
        "too few": [f"--archive={tmp_path}/single", new],
        "LAYERSxCELLS": [good, new, "--members=200"],
        "name at least one": [good, new, "--members="],
        "learning_rate=-1": [good, new, "--learning_rate=-1"],
        "held_out=2": [good, new, "--held_out=2"],
        "--epochs=many": [good, new, "--epochs=many"],
        "--dropout: concerns language models": [good, new, "--members=autoencoder-3x4", "--dropout=0.2"],
        "batching": [good, new, "--batching=tracs"],
        "Unknown command line flag 'epoch'": [good, new, "--epoch=3"],
        "what is 'traces.parquet'": [good, new, "traces.parquet"],
        "no model directory": [good, f"--model={tmp_path}/foreign"],
        "damaged, not JSON": [good, f"--model={damaged}"],
        "is a file, but a folder": [good, f"--model={tmp_path}/text"],
    }
    done = commands("train", cases)
    for expected, result in done.items():
        assert result.code == 2, (expected, result)
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        if not expected.startswith("mistakes"):
            assert expected in result.err, result.err
    assert not (tmp_path / "new" / "model.json").exists()
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "mine"


def test_what_is_damaged_is_named_and_not_called_trained(uninterrupted, archive, tmp_path, commands):
    untold = shutil.copytree(uninterrupted[0], tmp_path / "untold")
    (untold / "model.json").write_text("{}")
    broken = shutil.copytree(uninterrupted[0], tmp_path / "broken")
    (broken / "model.json").unlink()
    newest = max(checkpoints(broken), key=lambda path: int(path.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * 10)
    done = commands("train", {m.name: [f"--archive={archive}", f"--model={m}", *SMALL] for m in (untold, broken)})
    assert done["untold"].code == 2 and "model.json: damaged" in done["untold"].err, done
    assert done["broken"].code == 2 and "damaged checkpoint" in done["broken"].err, done
    assert newest.name in done["broken"].err


def test_a_full_disk_and_damaged_parameters_are_one_sentence(uninterrupted, archive, tmp_path):
    """In processes of their own: threads of TensorStore's must stay quiet to the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=300k none {disk} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")

    def run(experiment, *flags, before=()):
        command = [*before, sys.executable, "-m", "syscall_lm.experiments", experiment, *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    large = [f"--archive={archive}", f"--model={disk}/model", "--members=1x60", "--epochs=1"]
    done = run("train", *large, before=mounted)
    folder = disk / "model/checkpoints/1x60"
    told = f"error: {folder}: a checkpoint cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (2, told), done.stderr
    shutil.copytree(uninterrupted[0], tmp_path / "model")
    for file in (tmp_path / "model/parameters").rglob("d/*"):
        file.write_bytes(b"")
    done = run("score", f"--model={tmp_path}/model", f"--archive={archive}", f"--output={tmp_path}/scores")
    told = f"error: {tmp_path}/model/parameters: missing or damaged (ValueError)\n"
    assert (done.returncode, done.stderr) == (2, told), done.stderr
