"""A file that kills the process which reads it kills the child, not this one."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import parquet_check
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary


def test_a_child_that_dies_is_a_sentence_and_the_next_check_works(tmp_path):
    os.mkfifo(tmp_path / "never")  # the child waits for its content until it is killed
    (tmp_path / "other").write_bytes(b"no Parquet")
    checker = parquet_check._Checker()
    assert checker.survives(os.fspath(tmp_path / "other"))

    def kill():
        time.sleep(0.2)
        os.kill(checker._child.pid, signal.SIGABRT)

    thread = threading.Thread(target=kill)
    thread.start()
    assert not checker.survives(os.fspath(tmp_path / "never"))
    thread.join()
    (tmp_path / "other").write_bytes(b"no Parquet, and another time")
    assert checker.survives(os.fspath(tmp_path / "other"))
    checker.close()


def test_an_archive_that_kills_its_reader_is_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"PAR1")
    monkeypatch.setattr(parquet_check._CHECKER, "survives", lambda path: False)
    with pytest.raises(SyscallLMError, match="damaged or hostile"):
        TraceArchive(tmp_path / "x")


def test_rows_of_an_archive_are_those_of_its_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("syscall_lm.traces.archive.TRACES_PER_GROUP", 3)
    with TraceArchiveWriter(tmp_path / "x", Vocabulary(("read", "write"))) as writer:
        for i in range(11):
            writer.write(Trace((np.arange(i + 1) % 3).astype(np.uint16), f"t{i}"))
    archive = TraceArchive(tmp_path / "x")
    whole = archive.read()
    for first in range(11):
        for count in range(1, 12 - first):
            rows, expected = archive.rows(first, count), whole.take(np.arange(first, first + count))
            assert rows.info.equals(expected.info)
            assert [calls.tolist() for calls in rows.calls] == [calls.tolist() for calls in expected.calls]
    for first, count in ((0, 12), (11, 1), (-1, 2), (3, 0)):
        with pytest.raises(SyscallLMError, match="has no traces"):
            archive.rows(first, count)


def test_a_file_that_costs_more_time_than_its_size_explains_ends_the_process_that_reads_it(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1")
    program = (
        "import sys; from syscall_lm.traces import parquet_check; parquet_check.SECONDS = 0; "
        "parquet_check.limit_time(sys.argv[1])\nwhile True: pass"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], check=False)
    assert run.returncode == -signal.SIGXCPU


@pytest.mark.parametrize("limit", ["-v 6000000", "-t 50", "-c 0"])
def test_a_limit_of_the_user_s_own_is_no_damage(tmp_path, limit):
    with TraceArchiveWriter(tmp_path / "x", Vocabulary(("read",))) as writer:
        writer.write(Trace(np.zeros(3, np.uint16), "t"))
    program = f"from syscall_lm.traces import parquet_check as c; c.check({os.fspath(tmp_path / 'x')!r})"
    told = subprocess.run(["bash", "-c", f"ulimit {limit}; {sys.executable} -c {shlex.quote(program)}"], check=False)
    assert told.returncode == 0
