import json

import jax
import pytest

from syscall_lm.experiments.benchmarking import gpu_cases, gpu_rows
from syscall_lm.kernels import shapes

TINY = shapes.ModelShape(1, 4, 6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(commands, tmp_path):
    done = commands("gpu_check", {"run": [f"--output={tmp_path / 'rows'}"]})["run"]
    assert (done.code, done.err) == (2, "error: gpu_check needs an NVIDIA GPU; this is cpu\n")
    assert not (tmp_path / "rows").exists()


def test_a_case_that_fails_is_a_row_and_others_go_on():
    def broken():
        raise RuntimeError("no such kernel")

    peers = gpu_cases.scoring_implementations(TINY, 3)
    cases = [
        gpu_rows.Case("broken", broken),
        gpu_cases.scoring_case("xla", TINY, 3, peers["xla"]),
        gpu_rows.Case("check", lambda: lambda: {"difference": 0.5, "bound": 0.1}),
        gpu_rows.Case("not a number", lambda: lambda: {"difference": float("nan"), "bound": 0.1}),
    ]
    rows = [gpu_rows.attempt(case, 2, 1e12) for case in cases]
    assert rows[0]["error"] == "RuntimeError: no such kernel"
    assert rows[1]["calls_per_second"] == pytest.approx(3 * shapes.STEPS / rows[1]["seconds"])
    assert 0 < rows[1]["of_peak"] < 1
    environment = {"device": "d", "jax": "1", "commit": "c"}
    table = gpu_rows.table_of({"environment": environment, "bfloat16_rate": 1e12, "rows": rows})
    assert table.count("\n") == 4 + len(rows)
    assert "| broken | failed: RuntimeError: no such kernel |" in table
    assert table.count("BEYOND") == 2
    json.dumps(rows)


def test_every_case_has_its_own_name():
    names = [case.name for case in gpu_cases.every()]
    assert len(names) == len(set(names)) > 50
