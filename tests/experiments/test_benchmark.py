"""Every part of the benchmark runs, on models that are far too small to measure anything."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from syscall_lm import scoring
from syscall_lm.experiments.benchmarking import cases, roofline, worker
from syscall_lm.models import lstm
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

TINY = "1x4"
SHAPE = lstm.Shape.parse(TINY, cases.V)
WIDER = lstm.Shape.parse("2x5", cases.V)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra `bench`")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "traces.parquet"
    rng = np.random.default_rng(0)
    with TraceArchiveWriter(path, Vocabulary.from_abi("i386")) as writer:
        for i in range(40):
            calls = rng.integers(0, 300, 10 + i // 2 * 7)
            writer.write(Trace(calls.astype(np.uint16), f"t{i}", split="train" if i % 2 else "test"))
    return path


def test_a_table_and_a_roofline_come_of_it(commands, tmp_path):
    flags = [f"--output={tmp_path}", "--shapes=1x4", "--rounds=1", "--torch_threads=1"]
    # Without PyTorch's contenders: it may not be here.
    setup = "module.worker.SCORING_LANES, module.worker.SCORING_REPEATS = (), 1\nmodule.cases.MEMBERS = (1, 2)"
    cases = {"run": [*flags, "--cases=scoring,members"], "again": [*flags, "--cases=members"]}
    for done in commands("benchmark", cases, setup).values():
        assert done.code == 0, done.err
    table = (tmp_path / "table.md").read_text()
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    for row in ("| ours | ", "| flax, 256 traces |", "| ours, 2 members |"):
        assert row in table, table
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| scoring 1x4, fixed shape")]
    assert table.count("| scoring, members of 1x4 |") == 2  # measured anew; what was not asked for is kept
    assert cells[0][5] == "1.00" and all(float(row[2].replace(",", "")) > 0 for row in cells)


def test_mistakes_are_one_sentence(commands, tmp_path):
    flags = [f"--output={tmp_path / 'new'}"]
    cases = {"there are": [*flags, "--cases=nothing"], "numbers of threads": [*flags, "--torch_threads=two"]}
    for expected, result in commands("benchmark", cases).items():
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1, result
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("maker", "needs_archive", "arguments"),
    [
        ("our_epoch", True, []),
        ("flax_training", False, []),
        ("our_stream", False, [2]),
        ("peer_epoch", True, [8]),
        pytest.param("torch_training", False, [1, 16], marks=needs_torch),
        pytest.param("peer_epoch", True, [8, 1], marks=needs_torch),
    ],
)
def test_what_is_timed_runs_and_runs_again(archive, maker, needs_archive, arguments):
    run = getattr(cases, maker)(SHAPE, *[str(archive)] * needs_archive, *arguments)
    for _ in range(2):
        run()


def test_a_worker_times_itself_in_a_process_of_its_own():
    settings = {
        "shapes": [TINY],
        "maker": "our_training",
        "arguments": [1, 64],
        "options": {},
        "keep_freed_memory": True,
    }
    run = worker._in_process(settings | {"devices": 2, "repeats": 2})
    assert 0 < run.seconds < run.first and run.memory is not None and run.memory > 0
    assert set(dataclasses.asdict(run)) == {"first", "compiling", "seconds", "memory"}
    assert 0 < run.compiling < run.first


@pytest.mark.parametrize("make", [worker.three_seeds, worker.three_scored])
def test_members_are_timed_side_by_side_too(make, monkeypatch):
    monkeypatch.setattr(worker, "SCORING_REPEATS", 1)
    assert "(vmap)" in make(SHAPE)[1].name
    make(SHAPE)[1].run()  # an error of the process is raised


def test_the_start_is_that_of_the_command_score():
    worker.start(SHAPE)[1].run()  # an error of `score` is raised


@needs_torch
def test_peers_score_what_we_do(archive):
    of_archive = worker.archive([SHAPE, WIDER], str(archive), False, 1)
    for contender in [*worker.scoring([SHAPE], [1]), *of_archive, *worker.streams(WIDER, 3, [1])]:
        contender.check()


def test_flax_scores_an_archive_as_we_do(archive):
    common = {"path": str(archive), "whole": True}
    ours = cases.our_archive(SHAPE, WIDER, **common)()
    assert ours.shape == (2, 40)
    np.testing.assert_allclose(cases.peer_archive(SHAPE, WIDER, **common, lanes=8)(), ours, rtol=1e-5, atol=1e-5)


def test_padding_holds_every_trace_once():
    rng = np.random.default_rng(0)
    traces = cases.Sequences.from_list([rng.integers(0, 9, n) for n in rng.integers(1, 30, 50)])
    seen = []
    for targets, chosen in cases.padded(traces, 8):
        for lane, trace in enumerate(chosen):
            seen.append(trace)
            calls = targets[:, lane]
            np.testing.assert_array_equal(calls[calls >= 0], traces[int(trace)])
            assert (calls[len(traces[int(trace)]) :] == -1).all()
    assert sorted(seen) == list(range(50))


def test_the_roofline_is_drawn_of_fixed_shapes_only():
    assert roofline.figure([{"case": "training 1x4, fixed shape"}], cases.V) is None
    narrow, wide = (roofline.bytes_per_call(SHAPE, lanes) for lanes in (16, scoring.LANES))
    assert narrow > wide
