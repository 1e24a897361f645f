import collections
import dataclasses
import pathlib
import random
import socket
import subprocess
import sys

import numpy as np
import pytest

from syscall_lm import corpus
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import record_corpus
from syscall_lm.experiments.corpus import recording
from syscall_lm.experiments.corpus.intrusions import INTRUSIONS
from syscall_lm.experiments.corpus.programs import PROGRAMS
from syscall_lm.experiments.corpus.workspace import Workspace
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.readers import Counters
from syscall_lm.traces.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def archive():
    return TraceArchive(corpus.path())


@pytest.fixture(scope="module")
def traces(archive):
    return archive.read()


@pytest.fixture(scope="module")
def normal(traces):
    return traces.take(traces.column("label") == "normal")


@pytest.fixture(scope="module")
def attacks(traces):
    return traces.take(traces.column("label") == "attack")


@pytest.fixture
def strace():
    try:
        return recording.check_strace()
    except SyscallLMError as error:
        pytest.skip(str(error))


def test_the_corpus_is_small_and_speaks_the_whole_x86_64_table(archive):
    assert corpus.path().stat().st_size <= 2_000_000
    assert archive.vocabulary.hash == Vocabulary.from_abi("x86_64").hash


def test_the_corpus_holds_enough_programs_and_normal_traces(normal):
    runs_of = collections.defaultdict(set)
    for program, run in zip(normal.column("family"), normal.column("source"), strict=True):
        runs_of[program].add(run)
    assert len(normal) >= 300
    assert len(runs_of) >= 15
    assert min(len(runs) for runs in runs_of.values()) >= 5


def test_the_corpus_holds_enough_kinds_of_intrusions(attacks):
    assert len(attacks) >= 40
    assert len(set(attacks.column("family"))) >= 5
    assert len(set(attacks.column("source"))) >= 40
    assert min(collections.Counter(attacks.column("family")).values()) >= 3


def test_every_trace_is_labelled_and_has_a_unique_id(traces):
    assert len(set(traces.column("id"))) == len(traces)
    assert set(traces.column("label")) == {"normal", "attack"}
    assert all(traces.column("family")) and all(traces.column("command"))


def test_no_run_is_in_two_splits_and_no_intrusion_is_outside_test(traces, attacks):
    splits_of = collections.defaultdict(set)
    for run, split in zip(traces.column("source"), traces.column("split"), strict=True):
        splits_of[run].add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set(traces.column("split")) == {"train", "validation", "test"}
    assert set(attacks.column("split")) == {"test"}


def test_every_program_is_in_every_split(normal):
    pairs = set(zip(normal.column("family"), normal.column("split"), strict=True))
    assert len(pairs) == 3 * len(set(normal.column("family")))


def test_no_call_is_unknown(archive, traces):
    assert (traces.calls.calls != archive.vocabulary.unk).all()


def test_most_normal_traces_are_distinct(normal):
    first, _ = normal.calls.distinct()
    assert len(first) > len(normal) / 2


def test_the_corpus_says_nothing_of_the_machine(traces):
    assert set(traces.column("host")) == {"corpus"}
    assert not any("/" in text for name in ("id", "source", "command") for text in traces.column(name))
    assert max(traces.column("pid")) < 1000  # numbers in order of appearance, no process ids
    content = corpus.path().read_bytes() + corpus.path().with_name("README.md").read_bytes()
    assert socket.gethostname().encode() + b"." not in content
    assert str(pathlib.Path(__file__).parents[2]).encode() not in content


def test_the_description_tells_the_corpus_s_own_counts(traces):
    text = corpus.path().with_name("README.md").read_text()
    for program in set(traces.column("family")):
        chosen = traces.take(traces.column("family") == program)
        runs = len(set(chosen.column("source")))
        assert f"| {program} | {runs} | {len(chosen)} | {len(chosen.calls.calls):,} |" in text


def test_intrusions_are_neither_plain_nor_impossible_to_tell_from_normal_traces(traces):
    # The share of windows of six calls that training never saw (STIDE): the corpus is not a degenerate one.
    def windows(calls):
        padded = np.pad(calls.astype(int), (0, max(0, 6 - len(calls))), constant_values=-1)
        return set(map(tuple, np.lib.stride_tricks.sliding_window_view(padded, 6)))

    split, attack = traces.column("split"), traces.column("label") == "attack"
    known = set().union(*(windows(traces.calls[i]) for i in np.flatnonzero(split == "train")))
    scores = np.array([np.mean([w not in known for w in windows(calls)]) for calls in traces.calls])
    abnormal, ordinary = scores[attack][:, None], scores[(split == "test") & ~attack][None, :]
    auc = np.mean((abnormal > ordinary) + 0.5 * (abnormal == ordinary))
    assert 0.6 < auc < 0.995


def test_recording_works_and_choices_follow_the_seed(strace, tmp_path):
    programs = [name for name in ("ls", "sh", "python-files") if name in record_corpus.installed_programs()[0]]
    intrusions = {"reverse-shell": INTRUSIONS["reverse-shell"]}
    scripts = {"python": intrusions["reverse-shell"].scripts["python"]}
    intrusions["reverse-shell"] = dataclasses.replace(intrusions["reverse-shell"], scripts=scripts)
    tasks = [*record_corpus.normal_tasks(programs, 1, seed=1), *record_corpus.attack_tasks(intrusions, 1)]
    traces, counters, _ = record_corpus.record_tasks(tasks, seed=1, work_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # every temporary folder is gone
    assert not counters.unknown

    record_corpus.write_archive(str(tmp_path / "small.parquet"), traces, counters)
    read = TraceArchive(tmp_path / "small.parquet").read()
    assert set(read.column("family")) == {*programs, "reverse-shell"}
    attack = read.take(read.column("label") == "attack")
    names = Vocabulary.from_abi("x86_64").names
    called = {names[call] for call in attack.calls.calls}
    assert {"socket", "connect", "dup2", "execve"} <= called
    assert set(attack.column("command")) <= {"python3", "sh"}

    again, _, _ = record_corpus.record_tasks(tasks[:1], seed=1, work_dir=str(tmp_path))
    assert again[0].id == traces[0].id and (again[0].calls == traces[0].calls).all()


def test_a_fork_carries_the_command_of_the_process_that_forked_it(strace):
    run = recording.Run("fork", lambda workspace: ["sh", "-c", "(read -r x; :) < /dev/null; :"])
    vocabulary = Vocabulary.from_abi("x86_64")
    traces = recording.record(run, 0, None, vocabulary, Counters())
    assert [(trace.id, trace.pid, trace.command) for trace in traces] == [("fork:1", 1, "sh"), ("fork:2", 2, "sh")]


def test_a_run_that_fails_is_one_sentence_and_leaves_nothing(strace, tmp_path):
    run = recording.Run("broken", lambda workspace: ["sh", "-c", "echo the reason; exit 3"])
    with pytest.raises(SyscallLMError, match="broken: sh failed with code 3 .the reason."):
        recording.record(run, 0, str(tmp_path), Vocabulary.from_abi("x86_64"), Counters())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_end_is_ended(strace, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "TIME_LIMIT", 0.3)
    run = recording.Run("endless", lambda workspace: ["sleep", "60"])
    with pytest.raises(SyscallLMError, match="endless: sleep did not end"):
        recording.record(run, 0, str(tmp_path), Vocabulary.from_abi("x86_64"), Counters())


@pytest.mark.parametrize("stub, message", [(None, "not installed"), ("echo 'ptrace: denied' >&2; exit 1", "denied")])
def test_without_a_usable_strace_the_program_says_so_in_one_sentence(stub, message, tmp_path):
    if stub:
        (tmp_path / "strace").write_text(f"#!/bin/sh\n{stub}\n")
        (tmp_path / "strace").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "syscall_lm.experiments.record_corpus", f"--output={tmp_path}/corpus.parquet"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "corpus.parquet").exists()


def test_programs_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(record_corpus, "installed", lambda program: program not in ("node", "gcc"))
    programs, missing = record_corpus.installed_programs()
    assert "node" not in programs and {"node", "gcc", "make"} == set(missing)
    intrusions, missing_carriers = record_corpus.installed_intrusions()
    assert all("c" not in intrusion.scripts for intrusion in intrusions.values())
    assert missing_carriers == ["intrusions carried by c"]


def test_runs_are_dealt_sixty_twenty_twenty_and_by_the_seed():
    tasks = record_corpus.normal_tasks(PROGRAMS, 7, seed=0)
    share = collections.Counter(task.split for task in tasks)
    assert share["train"] == 3 * share["test"] == 3 * share["validation"]
    assert tasks == record_corpus.normal_tasks(PROGRAMS, 7, seed=0)
    splits = [[task.split for task in record_corpus.normal_tasks(PROGRAMS, 7, seed=seed)] for seed in (0, 1)]
    assert splits[0] != splits[1]


def test_the_same_seed_makes_the_same_inputs(tmp_path):

    commands = []
    for name in ("a", "b"):
        (tmp_path / name / "home").mkdir(parents=True)
        workspace = Workspace(tmp_path / name, tmp_path / name / "home", random.Random("0/find-00"))
        commands.append(PROGRAMS["find"].build(workspace))
    assert commands[0] == commands[1]
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert first == second and first
