import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from syscall_lm.experiments.benchmarking import gpu_cases, gpu_checks, gpu_rows
from syscall_lm.kernels import choice, shapes
from syscall_lm.models import lstm
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

TINY = shapes.ModelShape(1, 4, 6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(commands, tmp_path):
    done = commands("gpu_check", {"run": [f"--output={tmp_path / 'rows'}"]})["run"]
    assert (done.code, done.err) == (2, "error: gpu_check needs an NVIDIA GPU; this is cpu\n")
    assert not (tmp_path / "rows").exists()


def test_a_case_that_fails_is_a_row_and_others_go_on():
    def broken():
        raise RuntimeError("no such kernel")

    calls = []

    def breaks_later():
        calls.append(0)
        if len(calls) == 3:
            raise ArithmeticError("too hot")

    peers = gpu_cases.scoring_implementations(TINY, 3)
    cases = [
        gpu_rows.Case("broken", broken),
        gpu_cases.scoring_case("xla", TINY, 3, peers["xla"]),
        gpu_cases.scoring_case("peer", TINY, 3, lambda: lambda: time.sleep(0.02), peer=True),
        gpu_cases.scoring_case("faster peer", TINY, 3, lambda: lambda: time.sleep(0.01), peer=True),
        gpu_cases.scoring_case("breaks later", TINY, 3, lambda: breaks_later, peer=True),
        gpu_rows.Case("check", lambda: lambda: {"difference": 0.5, "bound": 0.1}),
        gpu_rows.Case("not a number", lambda: lambda: {"difference": float("nan"), "bound": 0.1}),
        gpu_rows.Case("right", lambda: lambda: {"difference": 0.05, "bound": 0.1}),
    ]
    groups = list(gpu_rows.grouped(cases))
    assert [len(group) for group in groups] == [1, 4, 1, 1, 1]
    rows = [row for group in groups for row in gpu_rows.attempt(group, 4, 1e12)]
    assert [row["case"] for row in rows] == [case.name for case in cases]
    assert rows[0]["error"] == "RuntimeError: no such kernel" and "too hot" in rows[4]["error"]
    assert rows[1]["calls_per_second"] == pytest.approx(3 * shapes.STEPS / rows[1]["seconds"])
    assert 0 < rows[1]["of_peak"] < 1
    assert rows[1]["ratio_to_best_peer"] == rows[3]["seconds"] / rows[1]["seconds"]
    assert rows[3]["ratio_to_best_peer"] == 1 and rows[2]["ratio_to_best_peer"] < 0.9
    assert [gpu_rows.failed(row) for row in rows] == [True, False, False, False, True, True, True, False]
    environment = {"device": "d", "jax": "1", "commit": "c"}
    table = gpu_rows.table_of({"environment": environment, "bfloat16_rate": 1e12, "rows": rows})
    assert table.count("\n") == 4 + len(rows)
    assert len({line.count("|") for line in table.splitlines()[2:]}) == 1
    assert "| broken | failed: RuntimeError: no such kernel |" in table
    assert table.count("BEYOND") == 2 and table.count("within") == 1
    json.dumps(rows)


def test_every_case_has_its_own_name_and_the_sweep_comes_last():
    cases = list(gpu_cases.every("adfa.parquet"))
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) > 50
    kinds = [name.partition(" ")[0] for name in names]
    assert list(dict.fromkeys(kinds)) == ["check", "epoch", "all", "train", "score", "sweep"]
    assert names[kinds.index("all") + 1] == f"{names[kinds.index('all')]}: the device's share"
    groups = {group[0].group: group for group in gpu_rows.grouped(cases) if group[0].group}
    assert {len({case.group for case in group}) for group in groups.values()} == {1}
    for name, group in groups.items():
        assert {case.peer for case in group} == ({False} if name.startswith(("check", "sweep")) else {True, False})


def test_a_group_is_prepared_side_by_side():
    meeting = threading.Barrier(2, timeout=60)

    def make():
        meeting.wait()
        return lambda: None

    rows = gpu_rows.attempt([gpu_rows.Case(name, make, group="both") for name in "ab"], 1, 1e12)
    assert [gpu_rows.failed(row) for row in rows] == [False, False]


@pytest.mark.parametrize("options", [{"unroll": 4}, gpu_cases.OF_XLA["xla, layouts of its choice"]], ids=str)
def test_other_ways_to_compile_a_scan_score_alike(options):
    plain, other = (gpu_cases.jitted_scoring(TINY, 3, "xla", **how)() for how in ({"unroll": 1}, options))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ours", "Flax"])
def test_what_is_trained_on_a_gpu_runs_on_any_device(name):
    run = gpu_cases.training_implementations(TINY, 4, 3)[name]()
    for _ in range(2):
        run()


@pytest.mark.parametrize(("wrong", "failed"), [(None, False), (7, True), (9, True)])
def test_one_wrong_draw_of_several_is_found(monkeypatch, wrong, failed):
    """Each compares four gradients, then the states; counted from 0, the eighth and tenth are the second draw's."""
    difference, calls = gpu_checks.greatest_difference, itertools.count()
    monkeypatch.setattr(gpu_checks, "RUNS", 3)
    monkeypatch.setattr(
        gpu_checks, "greatest_difference", lambda *both: np.nan if next(calls) == wrong else difference(*both)
    )
    case = gpu_rows.Case("lstm", lambda: gpu_checks.check_lstm(TINY, "xla"))
    (row,) = gpu_rows.attempt([case], 1, 1e12)
    assert gpu_rows.failed(row) == failed and next(calls) == 15


def test_what_checks_whole_programs_finds_nothing_here():
    for check in (gpu_checks.check_scorer, gpu_checks.check_training):
        found = check(shapes.ModelShape(2, 4, 6), "xla")()
        assert found["difference"] < 1e-5 < found["bound"]


def test_scores_and_auc_of_a_trained_model_are_compared(tmp_path, tiny_model):
    vocabulary, rng = Vocabulary(("a", "b", "c")), np.random.default_rng(0)
    with TraceArchiveWriter(tmp_path / "archive", vocabulary) as writer:
        for number in range(12):
            calls, attack = rng.integers(0, 3, 20).astype(np.uint16), number > 8
            label, split = ATTACK if attack else NORMAL, "train" if number < 4 else "test"
            writer.write(Trace(calls, f"t{number}", label=label, family="f" * attack, split=split))
    model = tiny_model(tmp_path / "model", vocabulary, ("1x4", "encoder-decoder-3x4"))
    (case,) = gpu_checks.scores(str(model), str(tmp_path / "archive"), "reference")
    row = gpu_rows.attempt([case], 1, 1e12)[0]
    assert row["case"] == "check scores of archive by 1x4.1"
    assert row["difference"] < 1e-5 and row["largest_difference"] < 1e-5
    assert 0 < row["auc_float32"] < 1 and row["auc_difference"] == 0 and row["rank_correlation"] > 0.9999


def test_an_epoch_of_windows_and_a_whole_archive_are_timed(tmp_path):
    row = gpu_rows.attempt([gpu_cases.windows(30, 3, 2)], 1, 1e12)[0]
    assert row["calls_per_second"] == pytest.approx(3 * 32 / row["seconds"])  # 32 begin in 63 calls, every second one
    with TraceArchiveWriter(tmp_path / "archive", Vocabulary(("a", "b"))) as writer:
        writer.write(Trace(np.array([0, 1, 1], np.uint16), "t"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm.Shape, "parse", lambda text, size: lstm.Shape(size, 3))
        row = gpu_rows.attempt([gpu_cases.whole_archive(str(tmp_path / "archive"))], 1, 1e12)[0]
    assert row["calls_per_second"] == pytest.approx(3 / row["seconds"])


def test_the_share_of_a_device_is_the_union_of_what_its_profile_tells():
    assert gpu_cases.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert gpu_cases.covered([]) == 0
    product = jax.jit(lambda a: a @ a)
    case = gpu_rows.Case("products", lambda: lambda: product(np.ones((300, 300), np.float32)), 7)
    here, nowhere = (gpu_cases.device_share(case, device, "") for device in ("/host:CPU", "/device:GPU:0"))
    row, failed = (gpu_rows.attempt([each], 1, 1e12)[0] for each in (here, nowhere))
    assert 0 < row["seconds"] < row["first_seconds"] and row["calls_per_second"] == 7 / row["seconds"]
    assert gpu_rows.failed(failed) and "tells nothing of /device:GPU:0" in failed["error"]


def test_what_is_preferred_is_taken_where_nothing_is_named():
    implementations = {"xla": lambda: "xla", "reference": lambda: "reference"}
    assert choice.dispatch("op", implementations, None, ()) == "xla"
    with choice.preferring("reference"):
        assert choice.dispatch("op", implementations, None, ()) == "reference"
        assert choice.dispatch("op", implementations, "xla", ()) == "xla"
    assert choice.dispatch("op", implementations, None, ()) == "xla"


def test_what_is_preferred_holds_in_compiled_programs_and_in_one_thread():
    implementations = {"xla": lambda x: x + 1, "reference": lambda x: x + 2}
    program = jax.jit(lambda x: choice.dispatch("op", implementations, None, (x,)))

    def run(name, meeting):
        with choice.preferring(name):
            meeting.wait()
            return int(program(0))

    names = [None, "reference", "xla", "reference"]
    for together in (1, len(names)):
        meeting = threading.Barrier(together, timeout=60)
        with ThreadPoolExecutor(together) as pool:
            assert list(pool.map(run, names, [meeting] * len(names))) == [1, 2, 1, 2]
