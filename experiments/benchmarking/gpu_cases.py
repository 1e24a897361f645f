"""The cases of `gpu_check` that are timed: each makes its arrays and compiles only when its turn comes."""

import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.layout import Format, Layout

from syscall_lm import optimisation, window_training
from syscall_lm import training as lm_training
from syscall_lm.experiments.benchmarking.gpu_checks import correctness, scores, scoring_by, tile
from syscall_lm.experiments.benchmarking.gpu_rows import Case
from syscall_lm.experiments.benchmarking.peers import CLIP, DROPOUT, RATE, Flax, Torch
from syscall_lm.experiments.soni2019 import settings as soni2019
from syscall_lm.kernels import choice, shapes
from syscall_lm.kernels.scoring import mosaic_gpu as mosaic_scoring
from syscall_lm.kernels.scoring import ring
from syscall_lm.models import language_model, lstm
from syscall_lm.models import shapes as model_shapes
from syscall_lm.models.store import Member
from syscall_lm.scoring import Scorer
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Array, Params

# What may make XLA's own scan faster. It can record a scan's kernels once and replay them (CUDA graphs), which removes
# most of the cost of launching them; it takes several steps at a time, or one; it can choose how arguments lie in
# memory.
COMMAND_BUFFERS = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,WHILE"}
OF_XLA: dict[str, dict[str, Any]] = {
    "xla": {},
    "xla, command buffers": {"compiler_options": COMMAND_BUFFERS},
    "xla, command buffers of any size": {"compiler_options": {**COMMAND_BUFFERS, "xla_gpu_graph_min_graph_size": 1}},
    "xla, step by step": {"unroll": 1},
    "xla, layouts of its choice": {"layouts": Format(Layout.AUTO)},
}
CUDNN_LANES = 4096  # it keeps what a gradient would need, some 40 kB a call
SWEPT_STAGES = (4, 8, 14)


def scoring() -> Iterator[Case]:
    """Scoring, every implementation, many lanes."""
    for shape in shapes.MODELS:
        for lanes in shapes.LANES:
            for name, run in scoring_implementations(shape, lanes).items():
                peer = "cuDNN" in name or name in OF_XLA
                yield scoring_case(f"score {shape}, B {lanes}, {name}", shape, lanes, run, peer)


def sweep() -> Iterator[Case]:
    """The kernel's configurations whose blocks are as many as the multiprocessors, or half as many."""
    cuts: dict[int, list[tuple[int, int]]] = {4096: [(1, 1), (1, 2)], 8448: [(1, 1), (2, 2)], 16_896: [(2, 1)]}
    for shape, lanes in itertools.product(shapes.MODELS, shapes.LANES):
        for (warpgroups, parts), stages in itertools.product(cuts[lanes], SWEPT_STAGES):
            config = ring.Config(warpgroups, stages, parts)
            if config.fits(mosaic_scoring.operand_bytes(shape.cells, shape.layers)):
                make = functools.partial(jitted_scoring, shape, lanes, config=config)
                case = scoring_case(f"sweep score {shape}, B {lanes}, {config}", shape, lanes, make)
                case.group = f"sweep score {shape}, B {lanes}"
                yield case


def scoring_case(
    name: str, shape: shapes.ModelShape, lanes: int, make: Callable[[], Callable[[], Any]], peer: bool = False
) -> Case:
    """A case of one tile of `shapes.STEPS` steps."""
    flops = lstm.Shape(shape.vocabulary, shape.cells, shape.layers).flops_per_call
    target = "2 x the best peer, aim 4 x"
    return Case(name, make, shapes.STEPS * lanes, flops, target, f"score {shape}, B {lanes}", peer)


def scoring_implementations(shape: shapes.ModelShape, lanes: int) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Name -> what prepares it."""
    found: dict[str, Callable[[], Callable[[], Any]]] = {
        name: functools.partial(jitted_scoring, shape, lanes, name) for name in ("mosaic_gpu", "by_layer")
    }
    if mosaic_scoring.choose_config(lanes, shape.cells, shape.layers).parts > 1:
        one = mosaic_scoring.choose_config(lanes, shape.cells, shape.layers, parts=1)
        found["mosaic_gpu, lanes of one block"] = functools.partial(jitted_scoring, shape, lanes, config=one)
    for name, options in OF_XLA.items():
        found[name] = functools.partial(jitted_scoring, shape, lanes, "xla", **options)
    found["cuDNN through PyTorch, TF32"] = functools.partial(torch_scoring, shape, lanes, half=False)
    found["cuDNN through PyTorch, bfloat16"] = functools.partial(torch_scoring, shape, lanes, half=True)
    found["cuDNN through JAX"] = functools.partial(cudnn_scoring, shape, lanes)
    return found


def jitted_scoring(
    shape: shapes.ModelShape,
    lanes: int,
    implementation: str = "mosaic_gpu",
    compiler_options: dict[str, Any] | None = None,
    layouts: Format | None = None,
    **options: Any,
) -> Callable[[], Any]:
    """One tile on the device, compiled; `options` are those of the implementation alone."""
    arrays = tile(shape, shapes.STEPS, lanes)
    lowered = jax.jit(scoring_by(implementation, **options), in_shardings=layouts).lower(*arrays)
    compiled = lowered.compile(compiler_options=compiler_options)
    if layouts is not None:
        arrays = jax.device_put(arrays, compiled.input_formats[0])
    return lambda: compiled(*arrays)


def peer(shape: shapes.ModelShape) -> Torch:
    """The PyTorch model with fresh weights."""
    whole = lstm.Shape(shape.vocabulary, shape.cells, shape.layers)
    return Torch(whole, language_model.initialise(jax.random.key(0), whole), 8)


def torch_scoring(shape: shapes.ModelShape, lanes: int, half: bool) -> Callable[[], Any]:
    """`nn.LSTM` on cuDNN, with tensor cores on; arrays lie on the GPU before and after, as ours do."""
    torch = peer(shape)
    calls = np.random.default_rng(0).integers(0, shape.vocabulary, (shapes.STEPS, lanes))
    return torch.scoring_on_gpu(calls, calls, half)


def cudnn_scoring(shape: shapes.ModelShape, lanes: int) -> Callable[[], Any]:
    """`jax.experimental.rnn.lstm`, and the head in blocks of time, since all logits would not fit."""
    recurrence, parameters = cudnn(shape)
    calls = jnp.asarray(np.random.default_rng(0).integers(0, shape.vocabulary, (lanes, shapes.STEPS)))
    parts = calls.reshape(max(1, lanes // CUDNN_LANES), -1, shapes.STEPS)

    @jax.jit
    def score(parameters):
        def block(step):
            h, targets = step
            logits = h @ parameters["w_out"] + parameters["b_out"]
            chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return jax.nn.logsumexp(logits, -1) - chosen

        def part(calls):
            h = recurrence(parameters, calls)
            return jax.lax.map(block, (h.swapaxes(0, 1), calls.T), batch_size=4)

        return jax.lax.map(part, parts)

    return lambda: score(parameters)


def cudnn(shape: shapes.ModelShape) -> tuple[Callable[[Params, Array], Array], Params]:
    """The recurrence of cuDNN as JAX offers it: from parameters and calls `[B, T]` to h `[B, T, H]`."""
    from jax.experimental import rnn  # its import registers a custom call

    cells, layers = shape.cells, shape.layers
    params = language_model.initialise(jax.random.key(0), lstm.Shape(shape.vocabulary, cells, layers))
    params = {name: params[name] for name in ("embedding", "w_out", "b_out")}
    params["rnn"] = rnn.init_lstm_weight(jax.random.key(0), cells, cells, layers, False)

    def recurrence(params: Params, calls: Array) -> Array:
        zeros = jnp.zeros((layers, calls.shape[0], cells))
        lengths = jnp.full((calls.shape[0],), calls.shape[1], jnp.int32)
        x = params["embedding"][calls]
        result: Any = rnn.lstm(x, zeros, zeros, params["rnn"], lengths, cells, cells, layers, 0.0, False)
        return result[0]

    return recurrence, params


TRAINING_LANES, TRAINING_STEPS, MINIBATCHES = 1024, 64, 3 * optimisation.TOGETHER


def training() -> Iterator[Case]:
    """Steps of training, one after another without waiting: forward, backward, clip, Adam, with dropout."""
    for shape in shapes.MODELS[:3]:
        flops = 3 * lstm.Shape(shape.vocabulary, shape.cells, shape.layers).flops_per_call
        calls = MINIBATCHES * TRAINING_LANES * TRAINING_STEPS
        work = f"train {shape}, {MINIBATCHES} minibatches of B {TRAINING_LANES}, T {TRAINING_STEPS}"
        for name, make in training_implementations(shape).items():
            peer = name == "Flax" or "cuDNN" in name
            yield Case(f"{work}, {name}", make, calls, flops, "1.2 x the best peer, aim 2 x", work, peer)


def training_implementations(
    shape: shapes.ModelShape, lanes: int = TRAINING_LANES, steps: int = TRAINING_STEPS
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Name -> what prepares it."""
    work = shape, lanes, steps
    return {
        "ours": functools.partial(our_training, *work),
        "ours through XLA": functools.partial(our_training, *work, implementation="xla"),
        "cuDNN through PyTorch, TF32": functools.partial(torch_training, *work),
        "cuDNN through PyTorch, bfloat16": functools.partial(torch_training, *work, half=True),
        "cuDNN through JAX": functools.partial(cudnn_training, *work),
        "Flax": functools.partial(flax_training, *work),
    }


def our_training(shape: shapes.ModelShape, lanes: int, steps: int, implementation: str | None = None) -> Any:
    """As `train` does it."""
    targets = np.random.default_rng(0).integers(0, shape.vocabulary, (lanes, steps))
    sequences = Sequences.from_list(targets)
    recipe = lm_training.Recipe(minibatch_calls=lanes * steps, steps=steps)
    model = lstm.Shape(shape.vocabulary, shape.cells, shape.layers)
    objective = lm_training.LanguageModelling(model, recipe, sequences, sequences)
    whole, step = optimisation.begin(objective, range(1), recipe, 1000)
    state = step.spread(whole)
    plans = [next(iter(objective.plans(0)))] * MINIBATCHES

    def run() -> Any:
        nonlocal state
        with choice.preferring(implementation):
            for some in optimisation.in_runs(plans):
                state = step(state, *some)
        return jax.block_until_ready(state)["step"]

    return run


def torch_training(shape: shapes.ModelShape, lanes: int, steps: int, half: bool = False) -> Callable[[], Any]:
    """The same step in PyTorch."""
    torch = peer(shape)
    torch._torch.set_float32_matmul_precision("high")
    calls = np.random.default_rng(0).integers(0, shape.vocabulary, (steps, lanes))

    def run() -> Any:
        for _ in range(MINIBATCHES):
            torch.train_step(calls, calls, half)
        torch._torch.cuda.synchronize()
        return ()

    return run


def flax_training(shape: shapes.ModelShape, lanes: int, steps: int) -> Callable[[], Any]:
    """The same step with `nn.RNN`."""
    whole = lstm.Shape(shape.vocabulary, shape.cells, shape.layers)
    flax = Flax(whole, language_model.initialise(jax.random.key(0), whole))
    calls = np.random.default_rng(0).integers(0, shape.vocabulary, (steps, lanes))

    def run() -> Any:
        for _ in range(MINIBATCHES):
            flax.train_step(calls, calls)
        return ()

    return run


def cudnn_training(shape: shapes.ModelShape, lanes: int, steps: int) -> Callable[[], Any]:
    """The same step through `jax.experimental.rnn.lstm`, whose gradient is cuDNN's."""
    recurrence, params = cudnn(shape)
    calls = jnp.asarray(np.random.default_rng(0).integers(0, shape.vocabulary, (lanes, steps)))
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key):
        def loss(params):
            h = recurrence(params, calls)
            h = jnp.where(jax.random.bernoulli(key, 1 - DROPOUT, h.shape), h / (1 - DROPOUT), 0)
            logits = h @ params["w_out"] + params["b_out"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, calls).mean()

        updates, state = adam.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, keys = adam.init(params), itertools.count()

    def run() -> Any:
        nonlocal params, state
        for _ in range(MINIBATCHES):
            params, state = step(params, state, jax.random.key(next(keys)))
        jax.block_until_ready(params)
        return ()

    return run


def windows(count: int = 140_000, length: int = 10, epochs: int = 4) -> Case:
    """An epoch of Soni et al.'s encoder-decoder, of the H that soni2019 uses (they print none); they report 370 ms."""
    settings = soni2019.Settings(epochs=epochs, patience=epochs)

    def make() -> Callable[[], Any]:
        calls = np.random.default_rng(0).integers(0, shapes.ADFA_LD_VOCABULARY, settings.stride * count + length)
        sequences = Sequences.from_list([calls])
        model = soni2019.MODELS[0]
        shape = model_shapes.window_shape(model, shapes.ADFA_LD_VOCABULARY, length, settings.cells)

        def run() -> dict[str, float]:
            recipe = settings.recipe(model, length)
            history = window_training.train_group(shape, [0], recipe, sequences, sequences).history
            seconds = float(np.median([epoch["seconds"] for epoch in history[1:]]))
            learned = length * soni2019.windows(sequences, settings.stride)
            return {"seconds": seconds, "calls_per_second": learned / seconds}

        return run

    return Case(f"epoch of {count} windows of {length}, H = {settings.cells}", make, target="370 ms, aim 100 ms")


def whole_archive(path: str) -> Case:
    """Every trace of an archive through 1x200, 1x400 and 2x400, from the traces in memory to surprisals in memory."""

    def make() -> Callable[[], Any]:
        archive = TraceArchive(path)
        traces = archive.read().calls
        members = []
        for shape in (lstm.Shape.parse(text, archive.vocabulary.size) for text in ("1x200", "1x400", "2x400")):
            members.append(Member(str(shape), shape, language_model.initialise(jax.random.key(0), shape)))
        scorer = Scorer(members)
        case.calls = len(traces.calls)
        return lambda: scorer.surprisal(traces)

    case = Case(f"all of {pathlib.Path(path).name}, three members, from memory to memory", make, target="1 s")
    return case


def device_share(of: Case, device: str = "/device:GPU:0", line: str = "Stream") -> Case:
    """How long a device works in one run of a case: the union of its kernels' and copies' times, by jax.profiler.

    Args:
      of: the case.
      device, line: what the names of the profile's plane and of its lines begin with.
    """

    def make() -> Callable[[], Any]:
        run = of.make()

        def profiled() -> dict[str, float]:
            jax.block_until_ready(run())
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    jax.block_until_ready(run())
                (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
                planes = jax.profiler.ProfileData.from_file(str(path)).planes
                lines = [line for plane in planes if plane.name.startswith(device) for line in plane.lines]
                events = [event for each in lines if each.name.startswith(line) for event in each.events]
            if not events:
                raise ArithmeticError(f"the profile tells nothing of {device}")
            seconds = 1e-9 * covered((event.start_ns, event.start_ns + event.duration_ns) for event in events)
            return {"seconds": seconds, "calls_per_second": of.calls / seconds}

        return profiled

    return Case(f"{of.name}: the device's share", make, target="aim 0.1 s")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (begin, end)."""
    total = reached = 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def every(archive: str = "", model: str = "") -> Iterator[Case]:
    """All cases: what must be right first, then what the project promises, what helps to choose last."""
    yield from correctness()
    if archive and model:
        yield from scores(model, archive)
    yield windows()
    if archive:
        yield (whole := whole_archive(archive))
        yield device_share(whole)
    yield from training()
    yield from scoring()
    yield from sweep()
