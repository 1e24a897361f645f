"""The benchmark's cases: for each a list of contenders, ours first, that do the same work on the same weights."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence

import jax
import numpy as np

from syscall_lm import optimisation, scoring, training
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.benchmarking.peers import Flax, Peer, Torch
from syscall_lm.kernels.shapes import ADFA_LD_VOCABULARY
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces import beginnings
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.types import Params

V = ADFA_LD_VOCABULARY
SCORING_CALLS = 2**17
TRAINING_CALLS = 2**12
SCORING_LANES, TRAINING_LANES = 1024, 64
FLAX_LANES = 256
SWEEP_LANES, SWEEP_STEPS = (64, 128, 256, 512, 1024), (32, 128, 512)
MEMBERS = (1, 2, 4, 8, 16, 32)
PUSHES = 200  # of a live stream


@dataclasses.dataclass
class Run:
    """What one run of a contender in a process of its own tells.

    Attributes:
      first: seconds of the first run there, compilation included.
      compiling: seconds of it in which XLA compiled.
      seconds: median of the runs after it.
      memory: MiB by which the process grew over what it held before.
    """

    first: float
    compiling: float
    seconds: float
    memory: float | None


@dataclasses.dataclass
class Contender:
    """One implementation of a case.

    Attributes:
      name: of the implementation.
      run: what is timed; returns a `Run` if it times itself.
      calls: real calls that a run works through.
      lanes: traces side by side.
      computed: calls that it computes, if identical traces make that fewer than `calls`.
      check: raises if what it computes is not what ours does; called once, before anything is timed.
      seconds, first, compiling, memory: measured; see `Run`.
    """

    name: str
    run: Callable[[], object]
    calls: int
    lanes: int = 0
    computed: int = 0
    check: Callable[[], None] = lambda: None
    seconds: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0
    compiling: float = 0.0
    memory: float | None = None

    @property
    def speed(self) -> float:
        """Real calls per second, median."""
        return self.calls / statistics.median(self.seconds)


def training_flops(shape: lstm.Shape) -> int:
    """Floating-point operations of learning from one call on the folded path: forward, and twice as many backward."""
    return 3 * shape.flops_per_call


def our_scoring(*shapes: lstm.Shape, operands: str = "float32") -> Callable[[], np.ndarray]:
    """Scores traces of one length, `[T, B]`, under a model of each shape."""
    pairs = zip(shapes, _fresh(shapes), strict=True)
    scorer = scoring.Scorer([Member(str(number), *pair) for number, pair in enumerate(pairs)], operands=operands)
    _, targets = random_calls(SCORING_CALLS // SCORING_LANES, SCORING_LANES)
    return functools.partial(scorer.surprisal, Sequences.from_list(targets.T))


def peer_scoring(*shapes: lstm.Shape, lanes: int, threads: int | None = None) -> Callable[[], list[np.ndarray]]:
    """The same calls on the same weights, so many traces a batch: in PyTorch, or without threads in Flax.

    Gives each model's surprisals `[T, B]`.
    """
    peers = _peers(shapes, threads)
    calls = random_calls(SCORING_CALLS // SCORING_LANES, SCORING_LANES)
    batches = list(zip(*(np.split(array, SCORING_LANES // lanes, axis=1) for array in calls), strict=True))
    return lambda: [np.concatenate([peer.score(*batch) for batch in batches], axis=1) for peer in peers]


def our_stream(shape: lstm.Shape, lanes: int) -> Callable[[], np.ndarray]:
    """Scores live traces, so many of them, a call of each at a time; gives surprisals `[T, B]`, and then goes on."""
    (params,) = _fresh([shape])
    stream = scoring.Scorer([Member("ours", shape, params)]).stream(lanes)
    _, calls = random_calls(PUSHES, lanes)
    return lambda: np.stack([stream.push(row)[0] for row in calls])


def peer_stream(shape: lstm.Shape, lanes: int, threads: int) -> Callable[[], np.ndarray]:
    """The same calls on the same weights in PyTorch."""
    (params,) = _fresh([shape])
    push = Torch(shape, params, threads).stream(lanes, V)
    _, calls = random_calls(PUSHES, lanes)
    return lambda: np.stack([push(row) for row in calls])


def _peers(shapes: Sequence[lstm.Shape], threads: int | None) -> list[Peer]:
    pairs = zip(shapes, _fresh(shapes), strict=True)
    return [Flax(*pair) if threads is None else Torch(*pair, threads) for pair in pairs]


def _multiple(threads: int | None) -> int:
    """Of how many steps batches of real traces are: each number of them is a program that Flax has to compile."""
    return 256 if threads is None else 1


def _fresh(shapes: Sequence[lstm.Shape]) -> list[Params]:
    return [language_model.initialise(jax.random.key(0), shape) for shape in shapes]


def torch_training(shape: lstm.Shape, threads: int, lanes: int) -> Callable[[], object]:
    """A function that makes one step in PyTorch: forward, backward, clip, Adam, with dropout, on 4,096 calls."""
    peer = Torch(shape, language_model.initialise(jax.random.key(0), shape), threads)
    batch = random_calls(TRAINING_CALLS // lanes, lanes)
    return lambda: peer.train_step(*batch)


def flax_training(shape: lstm.Shape) -> Callable[[], object]:
    """The same step in Flax."""
    peer = Flax(shape, language_model.initialise(jax.random.key(0), shape))
    batch = random_calls(TRAINING_CALLS // TRAINING_LANES, TRAINING_LANES)
    return lambda: peer.train_step(*batch)


def our_training(shape: lstm.Shape, members: int = 1, lanes: int = TRAINING_LANES) -> Callable[[], object]:
    """The same step as `train` makes it, for members together."""
    _, targets = random_calls(TRAINING_CALLS // lanes, lanes)
    run = _steps(shape, members, Sequences.from_list(targets.T), len(targets))
    return lambda: run(1)


def in_turn(*shapes: lstm.Shape, maker: str, arguments: Sequence[object] = ()) -> Callable[[], object]:
    """What another function of this module makes of one shape, of each of these, one after another."""
    alone = [globals()[maker](shape, *arguments) for shape in shapes]
    return lambda: [run() for run in alone]


def by_vmap(*shapes: lstm.Shape, maker: str, arguments: Sequence[object] = ()) -> Callable[[], object]:
    """What another function makes, members side by side as on an accelerator; it stays so in this process."""
    lstm.over_members = lambda function, *stacked, shared=(): jax.vmap(lambda *one: function(*one, *shared))(*stacked)
    return globals()[maker](*shapes, *arguments)


def our_epoch(shape: lstm.Shape, archive: str) -> Callable[[], object]:
    """An epoch over an archive's training traces, packed into lanes as `train` does it, 4,096 calls a minibatch."""
    traces = epoch_traces(archive)
    _, steps = training.minibatches_for(len(traces.calls), traces.longest, minibatch_calls=TRAINING_CALLS)
    return _steps(shape, 1, traces, steps)


def _steps(shape: lstm.Shape, members: int, traces: Sequences, steps: int) -> Callable[..., object]:
    recipe = training.Recipe(minibatch_calls=TRAINING_CALLS, steps=steps)
    objective = training.LanguageModelling(shape, recipe, traces, traces)
    whole, step = optimisation.begin(objective, range(members), recipe, 1000)
    state = step.spread(whole)
    plans = list(objective.plans(0))

    def run(count: int | None = None) -> None:
        nonlocal state
        for plan in plans[:count]:
            state = step(state, plan)
        jax.block_until_ready(state)

    return run


def peer_epoch(shape: lstm.Shape, archive: str, lanes: int, threads: int | None = None) -> Callable[[], object]:
    """The same epoch of a peer (see `peer_scoring`): whole traces, sorted by length and padded, so many a minibatch."""
    (peer,) = _peers([shape], threads)
    batches = [batch for batch, _ in padded(epoch_traces(archive), lanes, _multiple(threads))]

    def run() -> None:
        for targets in batches:
            peer.train_step(_shifted(targets), targets)

    return run


def epoch_traces(archive: str) -> Sequences:
    """The training traces."""
    batch = TraceArchive(archive).read()
    chosen = np.flatnonzero(batch.column("split") == "train")
    if not len(chosen):
        raise SyscallLMError(f"{archive}: no trace is in split train")
    return batch.calls.take(chosen)


def our_archive(*shapes: lstm.Shape, path: str, whole: bool = True) -> Callable[[], np.ndarray]:
    """Scores an archive, from its file to a score `[M, N]` of every model and trace: packed, what is alike once.

    Args:
      shapes: of the M models.
      path: of the archive.
      whole: all of its traces, or those to train on.
    """
    pairs = zip(shapes, _fresh(shapes), strict=True)
    scorer = scoring.Scorer([Member(str(number), *pair) for number, pair in enumerate(pairs)])

    def run() -> np.ndarray:
        traces = archive_traces(path, whole)
        return scoring.means(scorer.surprisal(traces), traces)

    return run


def peer_archive(
    *shapes: lstm.Shape, path: str, lanes: int, threads: int | None = None, whole: bool = True
) -> Callable[[], np.ndarray]:
    """The same of a peer (see `peer_scoring`): sorted by length and padded, so many traces a batch."""
    peers = _peers(shapes, threads)

    def run() -> np.ndarray:
        traces = archive_traces(path, whole)
        means = np.empty((len(peers), len(traces)))
        for targets, chosen in padded(traces, lanes, _multiple(threads)):
            for number, peer in enumerate(peers):
                surprisal = peer.score(_shifted(targets), np.maximum(targets, 0))
                for lane, trace in enumerate(chosen):
                    means[number, trace] = surprisal[: traces.lengths[trace], lane].mean(dtype=np.float64)
        return means

    return run


def archive_traces(path: str, whole: bool = True) -> Sequences:
    """All traces of an archive, or those to train on."""
    return TraceArchive(path).read().calls if whole else epoch_traces(path)


def calls_of(traces: Sequences) -> tuple[int, int]:
    """The calls of traces, all and those that we compute: of distinct traces, without what they begin alike with."""
    distinct = traces.take(traces.distinct()[0])
    return len(traces.calls), int(beginnings.families(distinct, distinct.longest).lengths.sum())


def members(shape: lstm.Shape) -> list[Contender]:
    """1 to 32 members of one shape on the same traces; calls count once a member."""
    _, targets = random_calls(SCORING_CALLS // SCORING_LANES // 4, SCORING_LANES)
    sequences = Sequences.from_list(targets.T)
    contenders = []
    for count in MEMBERS:
        keys = jax.random.split(jax.random.key(0), count)
        group = [Member(str(i), shape, language_model.initialise(key, shape)) for i, key in enumerate(keys)]
        scorer = scoring.Scorer(group, SCORING_LANES, len(targets))
        name = f"ours, {count} member{'s' * (count > 1)}"
        run = functools.partial(scorer.surprisal, sequences)
        contenders.append(Contender(name, run, count * targets.size, SCORING_LANES))
    return contenders


def sweep(shape: lstm.Shape) -> list[Contender]:
    """What the number of lanes and of steps in a tile does to scoring, the defaults first; traces fill every size."""
    params, devices = language_model.initialise(jax.random.key(0), shape), len(jax.local_devices())
    sizes = [(lanes, steps) for lanes in SWEEP_LANES for steps in SWEEP_STEPS]
    default = (scoring.LANES * devices, scoring.STEPS)
    sizes.sort(key=lambda size: size != default)
    _, targets = random_calls(max(SWEEP_STEPS), max(SWEEP_LANES))
    traces = Sequences.from_list(targets.T)
    contenders = []
    for lanes, steps in sizes:
        scorer = scoring.Scorer([Member("ours", shape, params)], max(1, lanes // devices), steps)
        run = functools.partial(scorer.surprisal, traces)
        contenders.append(Contender(f"ours, {lanes} lanes x {steps} steps", run, targets.size, lanes))
    return contenders


def padded(traces: Sequences, lanes: int, multiple: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Minibatches of similar length: targets `[T, B]`, -1 where a trace has ended, and the traces' numbers `[B]`.

    Args:
      traces: to be sorted by length.
      lanes: B; the last minibatch may have fewer, but where T is rounded up it has empty lanes.
      multiple: T is one of this.
    """
    order = np.argsort(traces.lengths, kind="stable")
    batches = []
    for start in range(0, len(order), lanes):
        chosen = order[start : start + lanes]
        steps = -(-traces.lengths[chosen].max() // multiple) * multiple
        targets = np.full((steps, lanes if multiple > 1 else len(chosen)), -1, np.int64)
        for lane, trace in enumerate(chosen):
            targets[: traces.lengths[trace], lane] = traces[int(trace)]
        batches.append((targets, chosen))
    return batches


def _shifted(targets: np.ndarray) -> np.ndarray:
    """The inputs of `[T, B]` targets: the call before each, and GO before the first."""
    return np.concatenate([np.full((1, targets.shape[1]), V), np.maximum(targets[:-1], 0)])


def random_calls(steps: int, lanes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `[T, B]` of random traces."""
    targets = np.random.default_rng(seed).integers(0, V, (steps, lanes))
    return _shifted(targets), targets
