"""A scored shard is never lost and never scored again, and the output is the same to the byte."""

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syscall_lm import files
from syscall_lm.engines import local, shards
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

SCHEMA = pa.schema([("id", pa.string()), ("total", pa.int64())])
SHARDS = 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "traces"
    with TraceArchiveWriter(path, Vocabulary(("read", "write"))) as writer:
        for i in range(10 * SHARDS):
            writer.write(Trace((np.arange(10) * i % 3).astype(np.uint16), f"t{i}"))
    return TraceArchive(path)


class Counting:
    """Scores, counts the shards, and fails where it is told to."""

    def __init__(self, fail_after=10**9, error=KeyboardInterrupt):
        self.shards, self.fail_after, self.error = 0, fail_after, error

    def __call__(self, batch):
        if self.shards == self.fail_after:
            raise self.error
        self.shards += 1
        totals = np.add.reduceat(batch.calls.calls, batch.calls.offsets[:-1], dtype=np.int64)
        return pa.table({"id": batch.info["id"], "total": totals})


def run(archive, output, score, configuration=None):
    return shards.score_archive(archive, local.engine(score), SCHEMA, output, configuration or {"model": 1}, 100)


def test_rows_come_in_the_archives_order(archive, tmp_path):
    score = Counting()
    assert run(archive, tmp_path / "out", score) == 0 and score.shards == SHARDS
    table = pq.read_table(tmp_path / "out")
    calls = archive.read().calls
    assert table["id"].to_pylist() == [f"t{i}" for i in range(10 * SHARDS)]
    assert table["total"].to_pylist() == [int(trace.sum()) for trace in calls]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_manifest_tells_what_was_scored_and_with_what(archive, tmp_path):
    run(archive, tmp_path / "out", Counting())
    manifest = json.loads(pq.read_metadata(tmp_path / "out").metadata[shards.MANIFEST_KEY.encode()])
    assert manifest == {"model": 1, "calls_per_shard": 100, "shards": SHARDS, "traces": 200, "calls": 2000}


@pytest.mark.parametrize("stops", [(1,), (0, 7), (3, 5, 5, 2), (19,), (20,)])
def test_interrupted_it_scores_each_shard_once_and_ends_with_the_same_bytes(archive, tmp_path, stops):
    run(archive, tmp_path / "whole", Counting())
    scored = 0
    for stop in stops:
        score = Counting(stop)
        if stop < SHARDS:
            with pytest.raises(KeyboardInterrupt):
                run(archive, tmp_path / "out", score)
            assert not (tmp_path / "out").exists()
            scored += score.shards
    last = Counting()
    assert run(archive, tmp_path / "out", last) == scored
    assert scored + last.shards == SHARDS
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_full_disk_is_one_sentence_and_loses_nothing(archive, tmp_path, monkeypatch):
    write = pq.write_table
    written = 0

    def write_some(table, path, **options):
        nonlocal written
        if written == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += 1
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", write_some)
    with pytest.raises(SyscallLMError, match="No space left on device"):
        run(archive, tmp_path / "out", Counting())
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part"))
    assert run(archive, tmp_path / "out", Counting()) == 4


def test_shards_of_another_run_are_refused_and_kept(archive, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(archive, tmp_path / "out", Counting(5))
    with pytest.raises(SyscallLMError, match="another model, archive or flags"):
        run(archive, tmp_path / "out", Counting(), {"model": 2})
    shutil.copy(archive.path, tmp_path / "traces")
    os.utime(tmp_path / "traces", ns=(1, 1))
    with pytest.raises(SyscallLMError, match="another model, archive or flags"):
        run(TraceArchive(tmp_path / "traces"), tmp_path / "out", Counting())
    assert run(archive, tmp_path / "out", Counting()) == 5


def test_a_damaged_shard_is_named(archive, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(archive, tmp_path / "out", Counting(5))
    damaged = tmp_path / "out.parts" / "00000002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(SyscallLMError, match=r"00000002\.parquet: a damaged shard"):
        run(archive, tmp_path / "out", Counting())
    damaged.unlink()
    assert run(archive, tmp_path / "out", Counting()) == SHARDS - 1


def test_what_else_lies_among_the_shards_is_kept(archive, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(archive, tmp_path / "out", Counting(5))
    (tmp_path / "out.parts" / "notes").write_text("mine")
    assert run(archive, tmp_path / "out", Counting()) == 5
    assert os.listdir(tmp_path / "out.parts") == ["notes"]


def test_a_second_run_on_the_same_output_is_refused(archive, tmp_path):
    with files.exclusive(tmp_path / "out.parts"), pytest.raises(SyscallLMError, match="another run is at work"):
        run(archive, tmp_path / "out", Counting())


def test_the_command_killed_at_random_moments_ends_with_the_same_bytes(archive, tiny_model, tmp_path):
    model = tiny_model(tmp_path / "model", archive.vocabulary, ("1x4", "2x3"))
    rng = random.Random(0)

    def start(output):
        command = [sys.executable, "-m", "syscall_lm.experiments", "score", f"--model={model}", "--shard_calls=20"]
        command += [f"--archive={archive.path}", f"--output={output}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=120) == 0
    whole.communicate()
    output, parts = tmp_path / "out", tmp_path / "out.parts"
    kills = 0
    for attempt in range(3):
        process = start(output)
        wanted = count(parts) + rng.randrange(1, 12)
        while process.poll() is None and count(parts) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert attempt > 1 or not output.exists()
    process = start(output)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert kills == 3 and "resumed: " in printed
    assert output.read_bytes() == pathlib.Path(tmp_path / "whole").read_bytes()
    assert not parts.exists()


def count(folder):
    return len(list(folder.glob("*.parquet"))) if folder.exists() else 0


def test_a_disk_that_is_really_full_loses_nothing(archive, tiny_model, tmp_path):
    """On a file system of 2 MiB, in a mount namespace of the command's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=2m none {disk} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    model = tiny_model(tmp_path / "model", archive.vocabulary, ("1x4",))
    score = f"{sys.executable} -m syscall_lm.experiments score --model={model} --archive={archive.path}"
    score += f" --output={disk}/out --shard_calls=20"
    script = f"""
    head -c 1900k /dev/zero >{disk}/other
    {score}; echo "full: $?"; ls -A {disk}
    rm {disk}/other
    {score}; echo "freed: $?"; cp {disk}/out {tmp_path}/out; ls -A {disk}
    """
    done = subprocess.run([*mounted, "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert "full: 2\nother\nout.parts\n" in done.stdout, done
    assert done.stderr.startswith("error: ") and "No space left on device" in done.stderr.splitlines()[0]
    assert "resumed: " in done.stdout and "freed: 0\nout\n" in done.stdout, done
    run_whole = [*score.replace(f"{disk}/out", f"{tmp_path}/whole").split()]
    assert subprocess.run(run_whole, capture_output=True, timeout=120).returncode == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_read_only_output_is_one_sentence(archive, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o ro none {disk} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    code = f"""
import pathlib
from syscall_lm import files
from syscall_lm.errors import SyscallLMError
for write in (files.exclusive, lambda path: files.complete_file(path)):
    try:
        with write(pathlib.Path("{disk}/out")):
            pass
    except SyscallLMError as error:
        print(error)
"""
    done = subprocess.run([*mounted, sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("cannot be written (Read-only file system)") == 2, done
