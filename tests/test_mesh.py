"""Training and scoring give the same on any number of devices, whether or not they divide lanes and members."""

import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from syscall_lm import optimisation, scoring, steps, training, window_scoring, window_training
from syscall_lm.kernels import choice
from syscall_lm.models import language_model, lstm, shapes
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import WindowScorer

V = 5
TRACES = Sequences.from_list([(np.arange(33 + i % 15) + i) % 3 for i in range(24)])
FOUR = f"""
import importlib.util, json, jax
jax.config.update("jax_num_cpu_devices", 4)
from syscall_lm import optimisation
optimisation.CORE_FLOPS = 1e-9  # else steps as small as these would be left to one device
spec = importlib.util.spec_from_file_location("test_mesh", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
done = [module.losses(), module.compiled_step(), module.scores(), module.undivided(), module.window_scores()]
done += [module.chosen(), module.scores_of_one_program(), module.losses()]
print(json.dumps(done))
"""


def losses():
    """Training and held-out losses of every case on all devices; of 4, a mesh of 2 x 2, 1 x 4 and 1 x 4.

    Programs are for each core, as long as XLA offers it (see `scores_of_one_program`).
    """
    lanes = training.Recipe(epochs=2, minibatch_calls=221, steps=17, learning_rate=0.02)  # 13 lanes
    traces = training.Recipe(epochs=1, minibatch_calls=400, steps=64, learning_rate=0.02, batching="traces")
    window_training.MERGED_MULTIPLE = 1  # so that windows do not divide by the devices
    windows = window_training.WindowRecipe(epochs=1, length=3, minibatch_windows=27, learning_rate=0.02, together=3)
    shape = lstm.Shape(V, 6)
    histories = {
        "two members": training.train_group(shape, [0, 1], lanes, TRACES, TRACES.take(np.arange(11))).history,
        "one member": training.train_group(shape, [0], traces, TRACES, TRACES.take(np.arange(5))).history,
        "windows": window_training.train_group(
            shapes.window_shape("autoencoder", V, 3, 4), [0], windows, TRACES, TRACES
        ).history,
    }
    return {name: [[row["train_nll"], row["held_out_nll"]] for row in rows] for name, rows in histories.items()}


def compiled_step():
    """The program of one step on a mesh of 2 x 2, as text."""
    from syscall_lm.mesh import Mesh

    recipe, mesh = training.Recipe(minibatch_calls=272, steps=17), Mesh(2)
    objective = training.LanguageModelling(lstm.Shape(V, 6), recipe, TRACES, TRACES)
    whole, _ = optimisation.begin(objective, [0, 1], recipe, 10, mesh)
    plan = next(iter(objective.plans(0)))
    origin = np.zeros(2, np.uint32), np.arange(2)
    step = steps.OnMesh(mesh, steps.Member(objective, optimisation._optimizer(recipe, 10)), origin)
    state = step.spread(whole)
    lowered = jax.jit(step.one, static_argnames="lanes").lower(
        state, mesh.feed(objective.gather, plan), origin, lanes=16
    )
    return lowered.compile().as_text()


def scores():
    """Surprisals and states on all devices: of lanes for 4, 2 and 1 of them; one call of several streams."""
    small, usual = lstm.Shape(V, 6, 2), lstm.Shape(V, 200)  # so wide that the number of rows changes a product's bits
    rng = np.random.default_rng(0)
    members = [
        Member(name, shape, jax.tree.map(lambda leaf: 2 * leaf, language_model.initialise(jax.random.key(0), shape)))
        for name, shape in (("a", small), ("b", usual), ("c", small))
    ]
    scorer = scoring.Scorer(members, lanes=80, steps=16)
    traces = [rng.integers(0, V, n) for n in rng.integers(1, 40, 1300)]
    programs = rng.integers(0, V, (20, 60))
    alike = [np.append(programs[i % 20][: rng.integers(9, 60)], rng.integers(0, V, 5)) for i in range(700)]
    scored = [scorer.surprisal(Sequences.from_list(alike)).ravel()]
    scored += [scorer.surprisal(Sequences.from_list(traces[:count])).ravel() for count in (1300, 200, 40, 1)]
    devices = [sum(mesh.size for mesh in scoring._meshes(lanes)) for lanes in (640, 512, 128, 127, 34, 1)]
    for lanes in (12, 128):
        stream = scorer.stream(lanes)
        scored += [stream.push(rng.integers(0, V, lanes)).ravel() for _ in range(3)]
    states = scorer.final_states(Sequences.from_list(traces))
    return devices, [array.tolist() for array in (*scored, *(state.ravel() for state in states))]


def scores_of_one_program():
    """The same where devices share a program, as accelerators do, and cores if XLA offers them no other way."""
    scoring.cpu.single_cores = lambda count: ()
    scoring._meshes.cache_clear()
    return scores()


def window_scores():
    """Of how many windows how many devices get how many; surprisals of windows for 4, 2 and 1 devices."""
    sizes = [list(window_scoring._shares(count)) for count in (1, 65, 1000, 10**6)]
    rng = np.random.default_rng(0)
    traces = [rng.integers(0, V, n) for n in rng.integers(1, 40, 1200)]
    scored = []
    for name in shapes.WINDOW_MODELS:
        shape = shapes.window_shape(name, V, 7, 200)
        tree = jax.eval_shape(lambda key, shape=shape: shapes.initialise(key, shape), jax.random.key(0))
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, (2, *leaf.shape)).astype(np.float32), tree)
        scorer = WindowScorer(shape, params)
        scored += [scorer.surprisal(Sequences.from_list(traces[:count])).ravel() for count in (1200, 1)]
    return sizes, [array.tolist() for array in scored]


def undivided():
    """What the choice of a kernel is told of a partitioned computation, and within `shard_map`."""
    found = []

    def body(x):
        found.append(choice.on_one_device())
        return x

    spec, mesh = PartitionSpec("lane"), jax.sharding.Mesh(np.array(jax.devices()), ("lane",))
    jax.jit(body)(np.zeros(8))
    jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec))(np.zeros(8))
    return found


def chosen():
    """Rows and columns of the mesh for one member and for two, where a step is enough for 20 devices, 3 and none."""
    found = []
    optimisation.CORE_FLOPS = 5.0
    for flops in (100.0, 17.0, 4.0):
        meshes = [optimisation.mesh_for(types.SimpleNamespace(step_flops=flops), members) for members in (1, 2)]
        found.append([[mesh.rows, mesh.columns] for mesh in meshes])
    return found


@pytest.fixture(scope="module")
def on_four_devices():
    done = subprocess.run([sys.executable, "-c", FOUR], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("programs", [0, 7], ids=["for each core", "for all"])
def test_four_devices_give_the_losses_of_one(on_four_devices, programs):
    alone, together = losses(), on_four_devices[programs]
    assert alone.keys() == together.keys()
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, err_msg=name)


def test_a_small_step_is_left_to_few_devices_a_row(on_four_devices):
    assert on_four_devices[5] == [[[1, 4], [2, 2]], [[1, 3], [2, 2]], [[1, 1], [2, 1]]]


def test_four_devices_score_as_one(on_four_devices):
    alone = scores()[1]
    for devices, together in (on_four_devices[2], on_four_devices[6]):
        assert devices == [4, 4, 4, 1, 2, 1]
        for one, there in zip(alone, together, strict=True):
            np.testing.assert_allclose(there, one, rtol=0, atol=1e-5)


def test_four_devices_score_windows_as_one_to_the_bit(on_four_devices):
    sizes, together = on_four_devices[4]
    assert sizes == [[64, 1], [128, 1], [512, 2], [512, 4]]
    alone_sizes, alone = window_scores()
    assert alone_sizes == [[64, 1], [128, 1], [512, 1], [512, 1]]
    for one, there in zip(alone, together, strict=True):
        np.testing.assert_array_equal(there, one)


def test_a_kernel_may_run_where_each_device_has_its_own_share(on_four_devices):
    assert on_four_devices[3] == [False, True]


def test_devices_talk_between_minibatches_only(on_four_devices):
    """A collective within the scan over time would be one for every call of a lane."""
    text = on_four_devices[1]
    collective = r"= .* (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    computations = {
        name: body for name, body in re.findall(r"^(?:ENTRY )?%?(\S+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    }
    assert any(re.search(collective, body) for body in computations.values())
    loops = {name: set(re.findall(r"body=%?([\w.-]+)", body)) for name, body in computations.items()}
    bodies = set().union(*loops.values())
    assert bodies
    for name in bodies:
        innermost = not loops[name]  # the scans over time; the loop over members holds them
        assert not (innermost and re.search(collective, computations[name])), computations[name]
