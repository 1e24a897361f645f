"""The benchmark's cases: for each a list of contenders, ours first, that do the same work on the same weights."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import jax
import numpy as np

from syscall_lm import loop, scoring, training
from syscall_lm.experiments.benchmark_peers import Flax, Peer, Torch
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.trace import Sequences

V = 342  # ADFA-LD's: the calls of i386
SCORING_CALLS = 2**15
TRAINING_CALLS = 2**12
SCORING_LANES, TRAINING_LANES = 256, 64
PEER_TRAINING_LANES = (16, 64)
TORCH_LANES = (16, 64, 128)  # at its best of these
PADDED_LANES = (8, 16, 32)
SWEEP_LANES, SWEEP_STEPS = (64, 128, 256, 512, 1024), (32, 128, 512)
MEMBERS = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass
class Contender:
    """One implementation of a case: a function to time, and the real calls that it works through."""

    name: str
    run: Callable[[], object]
    calls: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0

    @property
    def speed(self) -> float:
        """Real calls per second, median."""
        return self.calls / statistics.median(self.seconds)


def fixed_scoring(shape: lstm.Shape, threads: Sequence[int]) -> list[Contender]:
    """Traces of one length, `[T, B]`; every implementation scores the same number of calls on the same weights."""
    params = language_model.initialise(jax.random.key(0), shape)
    inputs, targets = random_calls(SCORING_CALLS // SCORING_LANES, SCORING_LANES)
    scorer = scoring.Scorer([Member("ours", shape, params)], SCORING_LANES, len(inputs))
    sequences = Sequences.from_list(targets.T)
    expected = scorer.surprisal(sequences).reshape(targets.T.shape).T
    contenders = [Contender("ours", lambda: scorer.surprisal(sequences), SCORING_CALLS)]

    def add(name: str, peer: Peer, lanes: int) -> None:
        np.testing.assert_allclose(peer.score(inputs, targets), expected, rtol=1e-4, atol=1e-4)
        batches = [random_calls(SCORING_CALLS // SCORING_LANES, lanes, seed) for seed in range(SCORING_LANES // lanes)]
        contenders.append(Contender(name, lambda: [peer.score(*batch) for batch in batches], SCORING_CALLS))

    for count in threads:
        for lanes in TORCH_LANES:
            add(f"torch, {lanes} traces, {count} threads", Torch(shape, params, count), lanes)
    add(f"flax, {SCORING_LANES} traces", Flax(shape, params), SCORING_LANES)
    return contenders


def training_peers(shape: lstm.Shape, threads: Sequence[int]) -> list[Contender]:
    """One minibatch of 4,096 calls: forward, backward, clip, Adam, with dropout."""
    contenders = []
    for count in threads:
        for lanes in PEER_TRAINING_LANES:
            name = f"torch, {lanes} x {TRAINING_CALLS // lanes}, {count} threads"
            contenders.append(Contender(name, torch_training(shape, count, lanes), TRAINING_CALLS))
    params = language_model.initialise(jax.random.key(0), shape)
    flax, batch = Flax(shape, params), random_calls(TRAINING_CALLS // TRAINING_LANES, TRAINING_LANES)
    return [*contenders, Contender("flax, 64 x 64", lambda: flax.train_step(*batch), TRAINING_CALLS)]


def torch_training(shape: lstm.Shape, threads: int, lanes: int) -> Callable[[], object]:
    """A function that makes one step in PyTorch, on a minibatch of so many lanes."""
    peer = Torch(shape, language_model.initialise(jax.random.key(0), shape), threads)
    batch = random_calls(TRAINING_CALLS // lanes, lanes)
    return lambda: peer.train_step(*batch)


def three_seeds(shape: lstm.Shape) -> list[Contender]:
    """Three members together, and one after another."""
    alone = [our_training(shape, 1) for _ in range(3)]
    return [
        Contender("ours, together", our_training(shape, 3), 3 * TRAINING_CALLS),
        Contender("ours, one after another", lambda: [step() for step in alone], 3 * TRAINING_CALLS),
    ]


def our_training(shape: lstm.Shape, members: int) -> Callable[[], object]:
    """A function that makes one step of this project's training, as `train` does."""
    _, targets = random_calls(TRAINING_CALLS // TRAINING_LANES, TRAINING_LANES)
    sequences = Sequences.from_list(targets.T)
    recipe = training.Recipe(minibatch_calls=TRAINING_CALLS, steps=len(targets))
    objective = training.LanguageModelling(shape, recipe, sequences, sequences)
    state, step = loop.begin(objective, range(members), recipe, 1000)
    plan = next(iter(objective.plans(0)))

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, plan))

    return run


def archive(shape: lstm.Shape, traces: Sequences, threads: Sequence[int]) -> list[Contender]:
    """All traces of an archive: ours packs lanes and scores identical traces once; PyTorch sorts by length and pads."""
    params = language_model.initialise(jax.random.key(0), shape)
    scorer = scoring.Scorer([Member("ours", shape, params)])
    calls = len(traces.calls)
    contenders = [Contender("ours, identical traces once", lambda: scorer.surprisal(traces), calls)]
    for lanes in PADDED_LANES:
        peer = Torch(shape, params, max(threads))
        name = f"torch, length-sorted, {lanes} traces"
        contenders.append(Contender(name, lambda peer=peer, lanes=lanes: padded(peer, traces, lanes), calls))
    return contenders


def members(shape: lstm.Shape) -> list[Contender]:
    """1 to 32 members of one shape on the same traces; calls count once a member."""
    _, targets = random_calls(SCORING_CALLS // SCORING_LANES // 4, SCORING_LANES)
    sequences = Sequences.from_list(targets.T)
    contenders = []
    for count in MEMBERS:
        keys = jax.random.split(jax.random.key(0), count)
        group = [Member(str(i), shape, language_model.initialise(key, shape)) for i, key in enumerate(keys)]
        scorer = scoring.Scorer(group, SCORING_LANES)
        name = f"ours, {count} member{'s' * (count > 1)}"
        run = lambda scorer=scorer: scorer.surprisal(sequences)  # noqa: E731
        contenders.append(Contender(name, run, count * targets.size))
    return contenders


def sweep(shape: lstm.Shape) -> list[Contender]:
    """What the number of lanes and of steps in a tile does to scoring, the defaults first."""
    params = language_model.initialise(jax.random.key(0), shape)
    sizes = [(lanes, steps) for lanes in SWEEP_LANES for steps in SWEEP_STEPS]
    sizes.sort(key=lambda size: size != (scoring.LANES, scoring.STEPS))
    contenders = []
    for lanes, steps in sizes:
        _, targets = random_calls(2 * SCORING_CALLS // lanes, lanes)
        scorer = scoring.Scorer([Member("ours", shape, params)], lanes, steps)
        sequences = Sequences.from_list(targets.T)
        run = lambda scorer=scorer, sequences=sequences: scorer.surprisal(sequences)  # noqa: E731
        contenders.append(Contender(f"ours, {lanes} lanes x {steps} steps", run, targets.size))
    return contenders


def padded(peer: Peer, traces: Sequences, lanes: int) -> np.ndarray:
    """Mean surprisal of each trace, in minibatches of similar length, padded to the longest."""
    order = np.argsort(traces.lengths, kind="stable")
    means = np.empty(len(traces))
    for start in range(0, len(order), lanes):
        chosen = order[start : start + lanes]
        targets = np.zeros((traces.lengths[chosen].max(), len(chosen)), np.int64)
        for lane, trace in enumerate(chosen):
            targets[: traces.lengths[trace], lane] = traces[int(trace)]
        inputs = np.concatenate([np.full((1, len(chosen)), V), targets[:-1]])
        surprisal = peer.score(inputs, targets)
        for lane, trace in enumerate(chosen):
            means[trace] = surprisal[: traces.lengths[trace], lane].mean()
    return means


def random_calls(steps: int, lanes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `[T, B]` of random traces."""
    targets = np.random.default_rng(seed).integers(0, V, (steps, lanes))
    return np.concatenate([np.full((1, lanes), V), targets[:-1]]), targets
