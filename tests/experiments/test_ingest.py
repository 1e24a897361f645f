import json
import os
import pathlib
import subprocess
import sys

from syscall_lm.traces import readers
from syscall_lm.traces.archive import TraceArchive

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments, data=b""):
    command = [sys.executable, "-m", "experiments.ingest", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, input=data, capture_output=True, timeout=120, check=False)


def test_the_command_reads_standard_input_and_tells_what_it_did(tmp_path):
    data = b"7 read(0) = 0\n7 \x1b[31m\n7 bad\x1bname(0) = 0\n"
    done = run(f"--output={tmp_path}/x.parquet", "--label=normal", "-", data=data)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "format: strace (recognised)" in text and "1 traces, 1 calls from 1 files" in text
    assert "normal, no split: 1 traces" in text and "not a call: 2" in text
    assert TraceArchive(tmp_path / "x.parquet").num_calls == 1


def test_help_explains_every_format():
    text = run("--help").stdout.decode()
    assert all(f"\n  {name}: {readers.reader(name).DESCRIPTION}\n" in text for name in readers.names())


def test_filters_of_events_are_counted_apart_from_what_was_skipped(tmp_path):
    data = b"pid,time,call\n7,2,read\n7,1,open\n7,1,open\n"
    flags = ("--format=csv", "--order_events", "--drop_doubled_events", "-")
    done = run(f"--output={tmp_path}/x.parquet", *flags, data=data)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "filtered: call recorded after a later one: 2, call recorded twice: 1" in text and "skipped" not in text
    archive = TraceArchive(tmp_path / "x.parquet")
    assert [archive.vocabulary.names[call] for call in archive.read().calls.calls] == ["open", "read"]


def test_a_hostile_name_reaches_the_terminal_without_control_characters(tmp_path):
    name = "a\x1b[31m\n.strace"
    (tmp_path / name).write_bytes(b"7 read(0) = 0\n")
    done = run(f"--output={tmp_path}/x.parquet", tmp_path / name)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and b"\\x1b[31m\\n.strace" in done.stdout
    (tmp_path / name).write_bytes(b"hello\n")
    done = run(f"--output={tmp_path}/x.parquet", tmp_path / name)
    assert done.returncode == 2 and b"\x1b" not in done.stderr


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path):
    for arguments in (
        [f"--output={tmp_path}/x.parquet", tmp_path / "missing"],
        [f"--output={tmp_path}/x.parquet"],
        [tmp_path],
        [f"--output={tmp_path}/x.parquet", "--label=good", tmp_path],
        [f"--output={tmp_path}/x.parquet", "--no_such_flag", tmp_path],
    ):
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == b""
        assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text_are_one_sentence(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / odd).write_bytes(b"7 read(0) = 0\n")
    for output, host, code in (("x", "a", 0), ("x", odd, 2), (odd + "2", "a", 2)):
        done = run(f"--output={tmp_path}/{output}", f"--host={host}", tmp_path / odd)
        assert done.returncode == code and done.stderr.count(b"\n") == (code == 2), done.stderr
    assert sorted(os.listdir(tmp_path)) == [odd, "x"]


def test_adfa_ld_from_the_original_zip(tmp_path, shared_data):
    done = run(f"--output={tmp_path}/x.parquet", shared_data / "adfa_ld/ADFA-LD.zip")
    assert done.returncode == 0, done.stderr
    for row in (b"5,951 traces, 2,747,550 calls", b"normal, train: 833", b"normal, test: 4,372", b"attack, test: 746"):
        assert row in done.stdout
    archive = TraceArchive(tmp_path / "x.parquet")
    assert archive.num_traces == 5951 and len(archive.vocabulary.names) == 341


def test_hostile_captures_end_as_they_must(tmp_path, commands):
    """The quick ones; the command `hostile` runs them all."""
    chosen = "--cases=links,truncated,empty,torn,mixed,footer,half garbage"
    done = commands("hostile", {"": [f"--output={tmp_path}", f"--scratch={tmp_path}", chosen]})[""]
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "hostile.json").read_text())["rows"]
    assert [row["exit_code"] for row in rows if row["case"] == "empty"] == [2] and len(rows) == 7
    assert not any(row["wrong"] for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.json", "hostile.md"]
