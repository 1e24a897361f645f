import functools
import logging
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from syscall_lm.experiments.benchmarking import gpu_checks
from syscall_lm.kernels import choice, clusters, hopper, lstm, scoring, shapes
from syscall_lm.kernels.lstm import mosaic_gpu as mosaic_lstm
from syscall_lm.kernels.scoring import api as scoring_api
from syscall_lm.kernels.scoring import mosaic_gpu as mosaic_scoring
from syscall_lm.kernels.scoring import ring


def lower(function, *arguments):
    """Mosaic's part of the compilation, layouts included, for compute capability 9.0; it needs no GPU."""
    shaped = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return jax.jit(function).trace(*shaped).lower(lowering_platforms=("cuda",)).as_text()


def test_the_kernels_lower_for_hopper():
    streamed = ring.Config(2, 4)
    tile = gpu_checks.tile(shapes.ModelShape(2, 33, 70), 3, 130)
    assert "mosaic_gpu" in lower(lambda *tile: mosaic_scoring.score_tile(*tile, config=streamed), *tile)
    shared = ring.Config(1, 4, 2)
    assert clusters.FENCE in lower(lambda *tile: mosaic_scoring.score_tile(*tile, config=shared), *tile)
    state = np.zeros((130, 33), np.float32)
    inputs = np.zeros((3, 130, 132), np.float32), np.zeros((33, 132), np.float32), np.zeros((3, 130), bool)
    assert clusters.FENCE in lower(mosaic_lstm.run, *inputs, (state, state))
    members = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), (inputs[0], inputs[1], (state, state)))

    def loss(x, w_hh, carry):
        return mosaic_lstm.lstm(x, w_hh, inputs[2], carry)[0].sum()

    assert "mosaic_gpu" in lower(jax.vmap(jax.grad(loss, (0, 1))), *members)


@pytest.mark.parametrize("implementation", ["mosaic_gpu"])  # has it interpreted where there is no GPU
@pytest.mark.parametrize("config", [ring.Config(2, 5), ring.Config(2, 24)], ids=str)
def test_warpgroups_blocks_and_a_ring_that_streams_change_nothing(implementation, config):
    """Two blocks, the second of which is not full, and a ring that holds fewer tiles than a step has, or all."""
    *arrays, inputs, targets, reset, carry = gpu_checks.tile(shapes.ModelShape(1, 40, 70), 3, 130)
    calls = inputs, targets, reset, carry
    found = mosaic_scoring.score_tile(*arrays, *calls, config=config)
    expected = scoring.score_tile(*arrays, *calls, implementation="reference")
    assert gpu_checks.greatest_difference(found, expected) < 8e-3
    assert implementation


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="interprets, on a CPU")
def test_blocks_of_a_cluster_and_gradients_in_parts_change_nothing_and_do_not_race():
    """In a process of its own: blocks that wait for one another each hold a thread of XLA's, of which it needs more."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of programs that mostly wait for one another
    }
    command = [sys.executable, pathlib.Path(__file__).with_name("interpreted_clusters.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (ran.stdout, ran.returncode) == ("equal, no races\n", 0), ran.stdout + ran.stderr


@pytest.mark.parametrize("shape", shapes.MODELS, ids=str)
def test_real_shapes_lower_for_hopper(shape):
    tile = jax.eval_shape(lambda: gpu_checks.tile(shape, 1, shapes.LANES[0]))
    size = shape.cells, shape.layers
    for config in {mosaic_scoring.choose_config(lanes, *size, parts) for lanes in shapes.LANES for parts in (1, 2)}:
        assert "mosaic_gpu" in lower(functools.partial(mosaic_scoring.score_tile, config=config), *tile)


@pytest.mark.parametrize("cells", [7, *sorted({shape.cells for shape in shapes.MODELS})])
def test_real_recurrences_and_their_gradients_lower_for_hopper(cells):
    def gradient(x, w_hh, reset, carry):
        return jax.grad(lambda *floats: mosaic_lstm.lstm(*floats[:2], reset, floats[2])[0].sum(), (0, 1, 2))(
            x, w_hh, carry
        )

    state = np.zeros((64, cells), np.float32)
    arrays = np.zeros((2, 64, 4 * cells), np.float32), np.zeros((cells, 4 * cells), np.float32)
    assert lower(gradient, *arrays, np.zeros((2, 64), bool), (state, state)).count("lstm_backward") > 0


@pytest.mark.parametrize("shape", shapes.MODELS, ids=str)
def test_every_real_shape_has_a_configuration_that_fits(shape):
    size = mosaic_scoring.operand_bytes(shape.cells, shape.layers)
    for lanes in (1, *shapes.LANES):
        config = mosaic_scoring.choose_config(lanes, shape.cells, shape.layers)
        assert config.fits(size) and config.block_lanes <= max(lanes, hopper.LANES)
        assert ring.MIN_STAGES <= config.stages <= ring.MAX_STAGES


def test_two_blocks_own_the_same_lanes_where_all_run_and_have_two_warpgroups_where_one_is_not_enough():
    def cut(cells, lanes, layers=1, parts=None):
        config = mosaic_scoring.choose_config(lanes, cells, layers, parts)
        return config.warpgroups, config.parts

    assert [cut(200, lanes) for lanes in (1, 4224, 4225, 8448, 8449)] == [(1, 2), (1, 2), (2, 2), (2, 2), (2, 1)]
    assert [cut(200, lanes, parts=1) for lanes in (1, 8448, 8449)] == [(1, 1), (1, 1), (2, 1)]
    # A second warpgroup's operands do not fit, and there is but one group of cells.
    assert [cut(400, lanes, layers=2) for lanes in (4224, 4225, 16_896)] == [(1, 2), (1, 1), (1, 1)]
    assert cut(32, 1) == (1, 1)


@pytest.mark.parametrize("shape", [*shapes.MODELS, shapes.ModelShape(3, 70, 130), shapes.ModelShape(1, 40, 5)], ids=str)
@pytest.mark.parametrize("parts", [1, 2])
def test_parts_share_all_work_evenly(shape, parts):
    groups, products = (-(-size // unit) for size, unit in ((shape.cells, 32), (shape.vocabulary, 128)))
    shares = ring.Work(groups, products, shape.layers, parts).shares
    for whole, owned in ((groups, [one.groups for one in shares]), (products, [one.products for one in shares])):
        assert [number for begin, end in owned for number in range(begin, end)] == list(range(whole))
    tiles = [one.tiles for one in shares]
    assert sum(tiles) == groups * ((2 * shape.layers - 1) * groups + products)
    assert [one.first_tile for one in shares] == [sum(tiles[:part]) for part in range(parts)]
    assert max(tiles) - min(tiles) <= (2 * shape.layers - 1) * groups  # one group of cells, over all layers


def test_what_blocks_wrote_is_fenced_on_both_sides_of_the_barrier(monkeypatch):
    done = []
    monkeypatch.setattr(clusters, "fence", lambda: done.append("fence"))
    monkeypatch.setattr(clusters.plgpu, "barrier_arrive", lambda barrier: done.append(f"arrive at {barrier}"))
    monkeypatch.setattr(clusters.plgpu, "barrier_wait", lambda barrier: done.append(f"wait for {barrier}"))
    clusters.meet("met")
    assert done == ["fence", "arrive at met", "wait for met", "fence"]


def test_recurrences_fit_or_are_refused():
    for cells in (1, 32, 33, 200, 400, 448):
        for backward in (False, True):
            plan = mosaic_lstm.plan(cells, backward=backward)
            assert plan.bytes <= hopper.SHARED_BYTES - hopper.RESERVED_BYTES and plan.parts * hopper.CELLS >= cells
            assert backward == bool(plan.stages) and plan.stages <= plan.parts
    with pytest.raises(choice.Unsuitable, match="449 cells take a cluster of 15 blocks"):
        mosaic_lstm.plan(449)


@pytest.mark.parametrize(("steps", "lanes"), [(0, 3), (2, 0)])
def test_kernels_refuse_to_do_nothing(steps, lanes):
    state = np.zeros((lanes, 8), np.float32)
    x, w_hh = np.zeros((steps, lanes, 32), np.float32), np.zeros((8, 32), np.float32)
    with pytest.raises(choice.Unsuitable, match="nothing to do"):
        mosaic_lstm.check(x, w_hh, (state, state))
    table, head, calls = np.zeros((6, 32), np.float32), np.zeros((8, 5), np.float32), np.zeros((steps, lanes), int)
    with pytest.raises(choice.Unsuitable, match="nothing to do"):
        mosaic_scoring.check(table, [w_hh], [], head, np.zeros(5, np.float32), calls, calls, calls, [(state, state)])
    h, _ = lstm.lstm(x, w_hh, calls.astype(bool), (state, state))
    assert h.shape == (steps, lanes, 8)


def test_a_vocabulary_that_would_unroll_without_end_is_refused():
    tile = jax.eval_shape(lambda: gpu_checks.tile(shapes.ModelShape(1, 33, 1025), 1, 4096))
    with pytest.raises(choice.Unsuitable, match="1,025 calls are too many for mosaic_gpu, whose head takes 1,024"):
        mosaic_scoring.check(*tile)


def test_more_blocks_than_groups_of_cells_are_refused():
    tile = jax.eval_shape(lambda: gpu_checks.tile(shapes.ModelShape(2, 7, 5), 1, 64))
    with pytest.raises(choice.Unsuitable, match="2 blocks cannot share 1 groups of cells"):
        jax.eval_shape(functools.partial(mosaic_scoring.score_tile, config=ring.Config(1, 4, 2)), *tile)


def test_what_does_not_fit_is_refused_with_the_bytes():
    size = mosaic_scoring.operand_bytes(4000, 1)
    with pytest.raises(choice.Unsuitable, match=f"{size:,} bytes"):
        mosaic_scoring.choose_config(4096, 4000, 1)


def test_what_does_not_suit_falls_back_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(choice, "_is_hopper", lambda: True)
    choice._log_once.cache_clear()

    def too_large(*_):
        raise choice.Unsuitable("too large")

    implementations = {"xla": lambda x: x + 1, "mosaic_gpu": too_large}
    with caplog.at_level(logging.WARNING):
        assert [choice.dispatch("op", implementations, None, (1,)) for _ in range(3)] == [2, 2, 2]
    assert [record.getMessage() for record in caplog.records] == ["op does without its kernel: too large"]
    with pytest.raises(ValueError, match="too large"):
        choice.dispatch("op", implementations, "mosaic_gpu", (1,))


def test_what_was_measured_to_be_fastest_is_chosen(monkeypatch):
    implementations = {name: lambda *_, name=name: name for name in scoring_api.IMPLEMENTATIONS}
    monkeypatch.setattr(scoring_api, "IMPLEMENTATIONS", implementations)

    def chosen(shape, lanes):
        return scoring.score_tile(*jax.eval_shape(lambda: gpu_checks.tile(shape, 1, lanes)))

    one, two = shapes.ModelShape(1, 33, 70), shapes.ModelShape(2, 7, 5)
    assert chosen(one, 4096) == "xla"
    monkeypatch.setattr(choice, "_is_hopper", lambda: True)
    monkeypatch.setattr(choice, "on_one_device", lambda: True)
    assert [chosen(one, lanes) for lanes in (2048, 2047)] == ["mosaic_gpu", "by_layer"]
    assert [chosen(two, lanes) for lanes in (4096, 4095)] == ["mosaic_gpu", "by_layer"]
    assert choice.dispatch("op", implementations, None, ()) == "mosaic_gpu"
    assert choice.dispatch("op", implementations, "reference", ()) == "reference"


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what happens without a GPU")
def test_without_a_hopper_gpu_the_kernel_is_refused_by_name_and_not_chosen():
    x, w_hh, reset = np.ones((1, 1, 8), np.float32), np.ones((2, 8), np.float32), np.zeros((1, 1), bool)
    carry = (np.zeros((1, 2), np.float32),) * 2
    with pytest.raises(ValueError, match="needs an NVIDIA Hopper GPU; this is cpu"):
        lstm.lstm(x, w_hh, reset, carry, implementation="mosaic_gpu")
    assert lstm.lstm(x, w_hh, reset, carry)[0].shape == (1, 1, 2)


def test_the_columns_of_a_group_are_the_four_gates_of_its_cells():
    cells = 40
    weights = np.arange(4 * cells)[None]
    groups = np.asarray(hopper.gate_columns(jax.numpy.asarray(weights), 64))
    assert groups.shape == (2, 1, 128)
    for group, start in enumerate((0, 32)):
        held = min(32, cells - start)
        gates = groups[group, 0].reshape(4, 32)
        np.testing.assert_array_equal(gates[:, :held], weights.reshape(4, cells)[:, start : start + held])
        assert not gates[:, held:].any()


def test_pallas_is_imported_by_those_who_need_it_only():
    code = (
        "import sys, numpy as np\n"
        "from syscall_lm.kernels import lstm, scoring\n"
        "one = np.ones((1, 1, 8), np.float32), np.ones((2, 8), np.float32), np.zeros((1, 1), bool)\n"
        "lstm.lstm(*one, (np.zeros((1, 2), np.float32),) * 2)\n"
        "print(sorted(name for name in sys.modules if 'pallas' in name))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.gpu
@pytest.mark.skipif(not choice.available(), reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("case", list(gpu_checks.correctness()), ids=lambda case: case.name)
def test_on_the_chip_kernels_equal_the_reference(case):
    outcome = case.make()()
    assert outcome["difference"] <= outcome["bound"]
