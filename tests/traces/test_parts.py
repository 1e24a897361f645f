"""Ingestion in several processes, killed, resumed."""

import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parts, tally
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.ingest import _DistinctIds, ingest
from syscall_lm.traces.readers import Options

DRAKVUF = '{"Plugin":"syscall","TimeStamp":"1.5","PID":%d,"TID":%d,"ProcessName":"p%d","Method":"%s","Module":"nt"}\n'


@pytest.fixture
def captures(tmp_path):
    """A folder of 12 files whose names of calls differ from file to file; some are twice the same."""
    folder = tmp_path / "in"
    folder.mkdir()
    generator = random.Random(0)
    for number in range(12):
        rows = []
        for _ in range(200):
            pid = generator.randrange(1, 9)
            rows.append(DRAKVUF % (pid, pid, pid % 3, f"Nt{generator.choice('ABCDEFGH')}{number // 2}"))
        data = "".join(rows).encode()
        (folder / f"{number:02}.json.gz").write_bytes(gzip.compress(data, mtime=0))
    (folder / "README").write_text("not a capture\n")
    return folder


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "FILES_PER_PART", 2)


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def test_the_archive_is_the_same_whatever_the_number_of_workers(tmp_path, captures, small_parts):
    told = []
    for workers in (1, 2):
        calls = []
        summary = ingest([str(captures)], tmp_path / f"{workers}.parquet", workers=workers, progress=calls.append)
        told.append((summary.to_json(), summary.longest, digest(tmp_path / f"{workers}.parquet"), sum(calls)))
    assert told[0] == told[1]
    assert (
        summary.counters.calls == 2400 and summary.sources == 12 and summary.skipped_files == {"file not recognised": 1}
    )
    archive = TraceArchive(tmp_path / "1.parquet")
    names = archive.vocabulary.names
    assert list(names) == sorted(names) and len(names) == 48 and archive.vocabulary.origin == "names seen"
    assert not list(tmp_path.glob("*.parts"))
    assert archive.metadata["by_command"].keys() == {"p0", "p1", "p2"}
    assert sum(calls for _, calls in archive.metadata["by_source"].values()) == 2400


def test_the_calls_are_those_of_the_files(tmp_path, captures, small_parts):
    (tmp_path / ".x.parquet.abc.part").write_text("left by a run that was killed")
    (tmp_path / ".y.parquet.abc.part").write_text("of another run")
    ingest([str(captures)], tmp_path / "x.parquet")
    assert {path.name for path in tmp_path.glob(".*")} == {".y.parquet.abc.part"}
    archive = TraceArchive(tmp_path / "x.parquet")
    batch = archive.read()
    found = {
        ident: [archive.vocabulary.name(int(call)) for call in calls]
        for ident, calls in zip(batch.column("id"), batch.calls, strict=True)
    }
    expected = {}
    for path in sorted(captures.glob("*.gz")):
        for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines()):
            expected.setdefault(f"{path}:{row['TID']}", []).append(row["Method"])
    assert found == expected


def test_what_was_read_before_a_failure_is_not_read_again(tmp_path, captures, small_parts, monkeypatch):
    ingest([str(captures)], tmp_path / "whole.parquet")
    read = []
    real = parts.read

    def failing(part, *arguments):
        if len(read) == 3:
            raise SyscallLMError("the power went out")
        read.append(part.key)
        return real(part, *arguments)

    monkeypatch.setattr(parts, "read", failing)
    with pytest.raises(SyscallLMError, match="power"):
        ingest([str(captures)], tmp_path / "x.parquet")
    assert len(list((tmp_path / "x.parquet.parts").glob("*.json"))) == 3
    changed = captures / "00.json.gz"
    os.utime(changed, ns=(1, 1))  # its part has to be read again
    again = []
    monkeypatch.setattr(parts, "read", lambda part, *arguments: (again.append(part.key), real(part, *arguments))[1])
    summary = ingest([str(captures)], tmp_path / "x.parquet")
    assert summary.resumed == 2 and len(again) == 5 and not set(again) & set(read)
    assert digest(tmp_path / "x.parquet") == digest(tmp_path / "whole.parquet")
    assert not list(tmp_path.glob("*.parts"))


def test_other_options_make_other_parts(captures):
    paths = [(str(path), False) for path in sorted(captures.glob("*.gz"))]
    keys = {
        part.key
        for options in (Options(), Options(label="normal"), Options(group="process"))
        for part in parts.divide(paths, "drakvuf", True, options)
    }
    assert len(keys) == 3


def test_a_second_run_on_the_same_output_is_refused(tmp_path, captures):
    folder = tmp_path / "x.parquet.parts"
    folder.mkdir()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SyscallLMError, match="another run is at work"):
            ingest([str(captures)], tmp_path / "x.parquet")


def test_an_error_in_a_worker_is_told_and_leaves_no_folder_without_use(tmp_path, captures, small_parts):
    (captures / "05.json.gz").unlink()
    (captures / "05.json.gz").mkdir()  # is walked into; nothing there
    for name in ("x1", "x2"):
        bomb = gzip.compress(bytes(2**27))
        (captures / f"{name}.json.gz").write_bytes(bomb)
    for workers in (1, 2):
        with pytest.raises(SyscallLMError, match="x1.json.gz: unpacks to over 500 times"):
            ingest([str(captures)], tmp_path / "x.parquet", "drakvuf", workers=workers)
    assert not (tmp_path / "x.parquet").exists()
    assert len(list((tmp_path / "x.parquet.parts").glob("*.json"))) == 6


COMMAND = [sys.executable, "-m", "experiments.ingest", "--workers=2"]


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on(tmp_path, captures, kills):
    """SIGKILL at random moments; at last the archive is that of a run that was left alone, and no process is left."""
    for number in range(4):  # parts of their own
        row = DRAKVUF % (number, number, number, "NtClose")
        (captures / f"big{number}.json").write_bytes(row.encode() * (parts.BYTES_PER_PART // 16 // len(row)))
    ingest([str(captures)], tmp_path / "whole.parquet", max_bad_fraction=0.5)
    generator = random.Random(kills)
    root = pathlib.Path(__file__).parents[2]
    command = [*COMMAND, f"--output={tmp_path / 'x.parquet'}", str(captures)]
    killed = 0
    for number in range(kills):
        run = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(generator.uniform(0.3, 2.5) if number else 0.5)  # no run is done by then
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            killed += 1
        if not killed or (tmp_path / "x.parquet").exists():
            break
        time.sleep(0.3)  # for the workers to see that they are orphans
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert killed and done.returncode == 0, done.stderr
    assert digest(tmp_path / "x.parquet") == digest(tmp_path / "whole.parquet")
    assert not list(tmp_path.glob("*.parts"))


def test_names_and_ids_are_counted_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(tally, "MAX_DISTINCT", 3)
    counted = {}
    for i in range(10):
        tally._add(counted, f"n{i}", 1, i)
    assert counted == {"n0": [1, 0], "n1": [1, 1], "n2": [1, 2], "others": [7, 42]}


def test_ids_are_made_distinct_across_tables(monkeypatch):
    import numpy as np

    from syscall_lm.traces.archive import to_table
    from syscall_lm.traces.trace import Trace

    monkeypatch.setattr(_DistinctIds, "_MERGE_AT", 10)
    distinct = _DistinctIds()
    seen = []
    for ids in (["a", "b", "a"], [f"t{i}" for i in range(20)], ["a", "t3", "b~2", "c"], ["t3", "t3", "a~3"]):
        table = distinct(to_table([Trace(np.ones(1, np.uint16), ident) for ident in ids]))
        seen += table["id"].to_pylist()
    assert len(set(seen)) == len(seen) == 30 and distinct.renamed >= 5
    assert seen[:2] == ["a", "b"] and "c" in seen
