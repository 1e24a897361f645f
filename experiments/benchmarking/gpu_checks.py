"""The cases of `gpu_check` that tell whether kernels are right: each against a reference in float32."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from syscall_lm import training as lm_training
from syscall_lm.experiments import data
from syscall_lm.experiments.benchmarking.gpu_rows import Case
from syscall_lm.kernels import choice, shapes
from syscall_lm.kernels import lstm as lstm_kernel
from syscall_lm.kernels import scoring as scoring_kernel
from syscall_lm.kernels.scoring import mosaic_gpu as mosaic_scoring
from syscall_lm.kernels.scoring import ring
from syscall_lm.kernels.scoring import xla as xla_scoring
from syscall_lm.models import language_model, lstm, store
from syscall_lm.models.store import Member
from syscall_lm.scoring import Scorer
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences

# On an H100 surprisals differed by up to 1.9e-2, states by 1e-2, their gradients by 8e-3 of the greatest of an array,
# those of whole models by 3.2e-3 of the greatest, scores of real traces by 4.6e-2 (results/gpu/h100); emulated, under
# another model, by 6.3e-2 (results/precision/operands).
SURPRISAL_BOUND, STATE_BOUND, GRADIENT_BOUND, SCORE_BOUND = 3e-2, 2e-2, 5e-3, 1e-1
RUNS = 10  # of what may race


def tile(shape: shapes.ModelShape, steps: int, lanes: int, seed: int = 0) -> tuple[Any, ...]:
    """Random arguments of `score_tile`, one call in fifty a trace's start."""
    rng = np.random.default_rng(seed)
    params = language_model.initialise(jax.random.key(seed), lstm.Shape(shape.vocabulary, shape.cells, shape.layers))
    folded = lstm.fold(params)
    layers = [folded["layers"][str(number)] for number in range(shape.layers)]
    targets = rng.integers(0, shape.vocabulary, (steps, lanes)).astype(np.int32)
    reset = rng.random((steps, lanes)) < 0.02
    inputs = np.where(reset, shape.vocabulary, np.roll(targets, 1, 0)).astype(np.int32)
    carry = [tuple(rng.normal(size=(lanes, shape.cells)).astype(np.float32) for _ in range(2)) for _ in layers]
    # Weights of trained models are larger than fresh ones, and errors grow with them.
    table, head = 10 * folded["table"], (4 * folded["w_out"], folded["b_out"])
    arrays = (
        table,
        [layer["w_hh"] for layer in layers],
        [(layer["w_ih"], layer["b"]) for layer in layers[1:]],
        *head,
        inputs,
        targets,
        reset,
        carry,
    )
    return jax.device_put(arrays)


def greatest_difference(actual: Any, expected: Any) -> float:
    """Over all leaves; NaN where anything is NaN."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return greatest([jnp.max(jnp.abs(a - b)) for a, b in pairs])


def greatest(values: Sequence[Any]) -> float:
    """NaN where any is, unlike Python's `max`."""
    return float(np.max(values))


def correctness() -> Iterator[Case]:
    """Every kernel against the float32 reference, then the programs that use them."""

    def check(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Case:
        return Case(f"check {what}", functools.partial(function, *arguments, **options), group="check")

    for shape in (*shapes.MODELS, *shapes.ODD):
        for steps, lanes in ((1, 1), (66, 300), (3, shapes.LANES[-1])):
            yield check(f"score_tile {shape}, T {steps}, B {lanes}", check_scoring, shape, steps, lanes)
        yield check(f"lstm {shape} with gradient", check_lstm, shape)
    for shape in (*shapes.MODELS[:3], shapes.ODD[0]):
        for name, options in cuts(shape).items():
            yield check(f"score_tile {shape}, T 66, B 300, {name}", check_scoring, shape, 66, 300, **options)
    few, more = shapes.LANES[:2]
    for shape, lanes in (*((shape, few) for shape in shapes.MODELS), *((shape, more) for shape in shapes.MODELS[:2])):
        yield check(f"score_tile {shape}, T 1000, B {lanes}, two blocks as one", check_parts, shape, 1000, lanes)
    for shape in shapes.MODELS[:3]:
        for name, steps in (("xla", 66), ("by_layer", 500)):  # of two blocks of steps
            options = {"implementation": name}
            yield check(f"score_tile {shape}, T {steps}, B 300, {name}", check_scoring, shape, steps, 300, **options)
        yield check(f"Scorer, two members of {shape}", check_scorer, shape)
        yield check(f"a training step of {shape}", check_training, shape)


def cuts(shape: shapes.ModelShape) -> dict[str, dict[str, Any]]:
    """Name -> options of the kernel for every way of cutting its work up: warpgroups a block, blocks a cluster."""
    size = mosaic_scoring.operand_bytes(shape.cells, shape.layers)
    configs = [ring.Config(warpgroups, ring.MIN_STAGES, parts) for warpgroups in (1, 2) for parts in (1, 2)]
    return {f"mosaic_gpu, {config}": {"config": config} for config in configs if config.fits(size)}


def scoring_by(implementation: str, **options: Any) -> Callable[..., Any]:
    """`score_tile` by one implementation, with options that it alone has."""
    if options:
        module = {"mosaic_gpu": mosaic_scoring, "xla": xla_scoring}[implementation]
        return functools.partial(module.score_tile, **options)
    return functools.partial(scoring_kernel.score_tile, implementation=implementation)


def check_scoring(
    shape: shapes.ModelShape, steps: int, lanes: int, implementation: str = "mosaic_gpu", **options: Any
) -> Callable[[], dict[str, float]]:
    """Surprisals and states of one tile, and of two with carried state; `options` are those of `scoring_by`."""

    def run() -> dict[str, float]:
        *arrays, inputs, targets, reset, carry = tile(shape, steps, lanes)
        score = functools.partial(scoring_by(implementation, **options), *arrays)
        with jax.default_matmul_precision("highest"):
            expected = scoring_by("reference")(*arrays, inputs, targets, reset, carry)
        actual = score(inputs, targets, reset, carry)
        half = steps // 2
        # One program for both halves; XLA may choose others for a half.
        if half == steps - half and implementation == "mosaic_gpu":
            first, between = score(inputs[:half], targets[:half], reset[:half], carry)
            rest, _ = score(inputs[half:], targets[half:], reset[half:], between)
            if (apart := greatest_difference(jnp.concatenate([first, rest]), actual[0])) > 1e-5:
                raise ArithmeticError(f"two tiles with carried state differ from one by {apart}")
        return {"difference": greatest_difference(actual, expected), "bound": SURPRISAL_BOUND}

    return run


def check_parts(shape: shapes.ModelShape, steps: int, lanes: int) -> Callable[[], dict[str, float]]:
    """Two blocks that own the same lanes against one, which does the same arithmetic; often, since races are rare."""

    def run() -> dict[str, float]:
        arrays = tile(shape, steps, lanes)
        one, two = (mosaic_scoring.choose_config(lanes, shape.cells, shape.layers, parts) for parts in (1, 2))
        expected = mosaic_scoring.score_tile(*arrays, config=one)
        found = (mosaic_scoring.score_tile(*arrays, config=two) for _ in range(RUNS))
        return {"difference": greatest([greatest_difference(again, expected) for again in found]), "bound": 1e-5}

    return run


def check_lstm(shape: shapes.ModelShape, implementation: str = "mosaic_gpu") -> Callable[[], dict[str, float]]:
    """The recurrence's outputs and its gradients, of several draws, since races are rare."""
    cells = shape.cells

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.grad, argnums=(1, 2, 4), has_aux=True)
    def both(implementation, x, w_hh, reset, carry):
        h, after = lstm_kernel.lstm(x, w_hh, reset, carry, implementation=implementation)
        return jnp.mean(h * x[..., :cells]) + jnp.mean(after[0] * after[1]), (h, after)

    def draw(seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        steps, lanes = 17, 2100  # more clusters than run at a time
        x = jnp.asarray(rng.normal(size=(steps, lanes, 4 * cells)), jnp.float32)
        w_hh = jnp.asarray(rng.normal(size=(cells, 4 * cells)) / math.sqrt(cells), jnp.float32)
        reset = jnp.asarray(rng.random((steps, lanes)) < 0.05)
        carry = tuple(jnp.asarray(rng.normal(size=(lanes, cells)), jnp.float32) for _ in range(2))

        with jax.default_matmul_precision("highest"):
            expected_gradient, expected = both("reference", x, w_hh, reset, carry)
        gradient, actual = both(implementation, x, w_hh, reset, carry)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True)
        apart = greatest([greatest_difference(a, b) / float(jnp.max(jnp.abs(b))) for a, b in pairs])
        return greatest_difference(actual, expected), apart

    def run() -> dict[str, float]:
        states, gradients = (greatest(found) for found in zip(*map(draw, range(RUNS)), strict=True))
        if not gradients <= STATE_BOUND:
            raise ArithmeticError(f"gradients differ by {gradients} of the greatest of their array")
        return {"difference": states, "bound": STATE_BOUND}

    return run


def check_scorer(shape: shapes.ModelShape, implementation: str = "mosaic_gpu") -> Callable[[], dict[str, float]]:
    """A kernel where `score` may run it: members of one shape together, packed lanes; against the reference."""

    def run() -> dict[str, float]:
        whole = lstm.Shape(shape.vocabulary, shape.cells, shape.layers)
        members = [Member(str(i), whole, language_model.initialise(jax.random.key(i), whole)) for i in range(2)]
        rng = np.random.default_rng(0)
        traces = Sequences.from_list(rng.integers(0, shape.vocabulary, n) for n in rng.integers(1, 300, 400))
        with choice.preferring(implementation):
            actual = Scorer(members).surprisal(traces)
        with choice.preferring("reference"), jax.default_matmul_precision("highest"):
            expected = Scorer(members).surprisal(traces)
        return {"difference": greatest_difference(actual, expected), "bound": SURPRISAL_BOUND}

    return run


def check_training(shape: shapes.ModelShape, implementation: str = "mosaic_gpu") -> Callable[[], dict[str, float]]:
    """Gradients of two members' losses with a kernel in `train`, against XLA's in float32, of the greatest entry."""

    def run() -> dict[str, float]:
        whole = lstm.Shape(shape.vocabulary, shape.cells, shape.layers)
        sequences = Sequences.from_list(np.random.default_rng(0).integers(0, shape.vocabulary, (64, 48)))
        recipe = lm_training.Recipe(minibatch_calls=64 * 48, steps=48, dropout=0.0)
        objective = lm_training.LanguageModelling(whole, recipe, sequences, sequences)
        params = jax.vmap(objective.initialise)(jax.random.split(jax.random.key(0), 2))
        batch = objective.gather(next(iter(objective.plans(0))))

        def loss(params):
            carry = objective.initial_carry(params)
            return objective.loss(params, jax.random.key(1), carry, batch, 0)[0]

        gradient = jax.jit(jax.vmap(jax.grad(loss)))
        with choice.preferring(implementation):
            actual = gradient(params)
        with choice.preferring("xla"), jax.default_matmul_precision("highest"):
            expected = gradient(params)
        scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
        return {"difference": greatest_difference(actual, expected) / scale, "bound": GRADIENT_BOUND}

    return run


def scores(model: str, archive: str, implementation: str = "mosaic_gpu") -> Iterator[Case]:
    """What a kernel's precision does to the scores and the AUC of a trained model, member by member."""
    for member in store.load(pathlib.Path(model)).members:
        if isinstance(member.shape, lstm.Shape):
            check = functools.partial(check_scores, member, archive, implementation)
            yield Case(f"check scores of {pathlib.Path(archive).name} by {member.name}", check)


def check_scores(member: Member, path: str, implementation: str) -> Callable[[], dict[str, float]]:
    """Scores through a kernel against XLA's in float32; told too: a call's surprisal, ranks and AUC."""

    def run() -> dict[str, float]:
        benchmark = data.benchmark(TraceArchive(path))
        with choice.preferring(implementation):
            actual = Scorer([member]).surprisal(benchmark.traces)[0]
        with choice.preferring("xla"), jax.default_matmul_precision("highest"):
            expected = Scorer([member]).surprisal(benchmark.traces)[0]
        effect = benchmark.effect(actual, expected)
        return {"difference": effect["largest_difference_of_a_score"], "bound": SCORE_BOUND, **effect}

    return run
