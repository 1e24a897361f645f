"""Scoring: the surprisal of every call under every member, batch and streaming, by one step.

Traces lie in lanes side by side, and lanes never meet: all devices of the process score at once, each its own share of
the lanes, without talking to each other. Accelerators share one program (a mesh), cores have one each. A device gets
SHARE lanes or more, or one device gets all, since narrow arrays are slow. Products of other shapes may round
differently: scores on different numbers of cores agree within 1e-5, and to the bit where a row's product does not
depend on how many rows there are (XLA's from 12 on, on the processors tried).
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from syscall_lm import cpu
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import lstm, shapes
from syscall_lm.models.store import Member
from syscall_lm.traces import beginnings, packing
from syscall_lm.traces.trace import Sequences, require_ids
from syscall_lm.types import Array, HostArray, Params
from syscall_lm.window_scoring import WindowScorer

LANES, ACCELERATOR_LANES = 512, 16_896  # for each device; so many give an H200's 132 multiprocessors 128 each
STEPS, STATE_STEPS = 128, 16
SHARE, ACCELERATOR_SHARE = 16, 64  # lanes
# What a step costs beside its lanes, in lanes: narrower tiles are cheaper for a core, not for an accelerator.
OVERHEAD, ACCELERATOR_OVERHEAD = 8, 10**6
OPERANDS = ("float32", "bfloat16")  # of matrix products
FAMILIES = 4  # of traces that begin alike, and more, for each lane where traces are many and short
BRANCHING = 1.03  # what a step that may branch off takes, in steps; measured 1.01 to 1.03
TILES_IN_FLIGHT = 2  # the host prepares and unpacks tiles while the device computes others


class Scorer:
    """Scores calls under M members.

    Args:
      members: trained models of one vocabulary: language models, and models of windows among them.
      lanes: traces that each device scores side by side, None for what suits the kind of device; fewer are used where
        one long trace would outlast the others.
      steps: T of a tile.
      operands: of the products of language models on a CPU, one of OPERANDS; all else is float32. bfloat16 is faster
        where the processor multiplies it (AVX512-BF16, AMX), and slower elsewhere.

    Raises:
      SyscallLMError: bfloat16 where there is an accelerator, whose kernels choose for themselves.
    """

    def __init__(
        self, members: Sequence[Member], lanes: int | None = None, steps: int = STEPS, operands: str = "float32"
    ):
        if operands != "float32" and jax.default_backend() != "cpu":
            raise SyscallLMError(f"{operands} operands are a choice for CPUs; here kernels choose for themselves")
        self._program = _PROGRAMS[operands]
        self.names = [member.name for member in members]
        self.go = members[0].shape.vocabulary_size
        self._lanes = lanes or (LANES if jax.default_backend() == "cpu" else ACCELERATOR_LANES)
        self._steps = steps
        groups: dict[shapes.Shape, list[int]] = collections.defaultdict(list)
        for number, member in enumerate(members):
            groups[member.shape].append(number)
        self._order: list[int] = []  # the language models' numbers, group by group
        self._groups: list[Params] = []  # their folded parameters, stacked over the members of a group
        self._copies: dict[Mesh, list[Params]] = {}  # the same, on each device of a mesh
        self._by_windows: list[tuple[list[int], WindowScorer]] = []
        for shape, numbers in groups.items():
            params = [members[number].params for number in numbers]
            if isinstance(shape, lstm.Shape):
                self._order += numbers
                self._groups.append(_stacked([lstm.with_operands(lstm.fold(one), operands) for one in params]))
            else:
                self._by_windows.append((numbers, WindowScorer(shape, _stacked(params))))

    def surprisal(self, sequences: Sequences) -> np.ndarray:
        """Scores traces of any lengths; identical ones are computed once, on CPUs identical beginnings too.

        Args:
          sequences: N traces, ids in the members' vocabulary.

        Returns:
          float32 `[M, total]`: -log P(call | the calls before it) in nats, laid out like `sequences.calls`; under a
          model of windows what `WindowScorer.surprisal` says.

        Raises:
          SyscallLMError: an id outside the vocabulary.
        """
        require_ids(sequences.calls, self.go)
        first, inverse = sequences.distinct()
        if len(first) == len(sequences):
            return self._surprisal(sequences)
        distinct = sequences.take(first)
        scores = self._surprisal(distinct)
        shift = np.repeat(distinct.offsets[:-1][inverse] - sequences.offsets[:-1], sequences.lengths)
        return scores[:, np.arange(len(sequences.calls)) + shift]

    def _surprisal(self, sequences: Sequences) -> np.ndarray:
        scores = np.empty((len(self.names), len(sequences.calls) + 1), np.float32)  # the last is padding's, in plans -1
        for numbers, scorer in self._by_windows:
            scores[numbers, :-1] = scorer.surprisal(sequences)
        if self._groups and len(sequences):
            self._score_lanes(sequences, scores)
        return scores[:, :-1]

    def _score_lanes(self, sequences: Sequences, scores: np.ndarray) -> None:
        packer = packing.Packer(sequences, self.go)
        in_flight: collections.deque[tuple[np.ndarray, list[list[Array]]]] = collections.deque()
        found = self._families(sequences)
        tiles = self._tiles(sequences, packer) if found is None else self._branching_tiles(sequences, packer, found)
        for plan, surprisals in tiles:
            in_flight.append((plan, surprisals))
            if len(in_flight) > TILES_IN_FLIGHT:
                self._collect(scores, *in_flight.popleft())
        while in_flight:
            self._collect(scores, *in_flight.popleft())
        if found is not None:
            for number in self._order:
                found.complete(scores[number], sequences)

    def _tiles(self, sequences: Sequences, packer: packing.Packer) -> Iterator[tuple[np.ndarray, list[list[Array]]]]:
        """Plans, and what `tile` says of them."""
        lanes = self._lanes_for(sequences.lengths)
        states = self.initial_states(lanes)
        for plan in packing.lane_plans(sequences, lanes, self._steps):
            states, surprisals = self.tile(states, _gathered(packer, plan))
            yield plan, surprisals

    def _families(self, sequences: Sequences) -> beginnings.Families | None:
        """Which traces go on from which; None if it does not pay, or some devices share a program."""
        if jax.default_backend() != "cpu":
            return None  # its kernels keep no states
        lanes = self._lanes * len(jax.local_devices())
        most = max(sequences.longest, len(sequences.calls) // (FAMILIES * lanes))  # no lane is longer for families
        found = beginnings.families(sequences, most)
        alone = all(mesh.size == 1 for mesh in _meshes(self._lanes_for(found.sizes)))
        pays = BRANCHING * self._time_for(found.sizes) < self._time_for(sequences.lengths)
        return found if alone and pays else None

    def _branching_tiles(
        self, sequences: Sequences, packer: packing.Packer, found: beginnings.Families
    ) -> Iterator[tuple[np.ndarray, list[list[Array]]]]:
        """The same, of what is left of the traces."""
        lanes = self._lanes_for(found.sizes)
        both = zip(self.initial_states(lanes), self.initial_states(lanes, beginnings.SLOTS), strict=True)
        states: list[list[Any]] = [list(zip(*of_mesh, strict=True)) for of_mesh in both]
        for plan, branches in beginnings.branching_plans(sequences, found, lanes, self._steps, len(states)):
            states, surprisals = self._on_lanes(_branching, states, _gathered(packer, plan), branches)
            yield plan, surprisals

    def _collect(self, scores: np.ndarray, plan: np.ndarray, surprisals: list[list[Array]]) -> None:
        with jax.profiler.TraceAnnotation("collect a tile"):
            for lanes, groups in zip(_split(plan, len(surprisals)), surprisals, strict=True):
                members = iter(self._order)
                for of_group in map(np.asarray, groups):
                    for values in of_group:
                        scores[next(members), lanes] = values

    def final_states(self, sequences: Sequences) -> list[np.ndarray]:
        """What the last layer holds after all calls of a trace: lstm(x) of Kim et al., section 2.3.

        That is h, not c: h is what the layer passes on and lies within (-1, 1), while c grows with a trace's length
        and would rule a Euclidean distance.

        Args:
          sequences: N traces, ids in the members' vocabulary.

        Returns:
          for each member float32 `[N, H]`.

        Raises:
          SyscallLMError: a member is a model of windows, or an id is outside the vocabulary.
        """
        self._require_language_models("the state after a trace")
        require_ids(sequences.calls, self.go)
        first, inverse = sequences.distinct()
        # A model reads the call before the one it predicts, so it has read a whole trace one position later.
        longer = Sequences.from_list(np.append(sequences[int(i)], 0) for i in first)
        lanes = self._lanes_for(longer.lengths)
        packer = packing.Packer(longer, self.go)
        trace_of_end = np.full(len(longer.calls) + 1, -1, np.int64)  # the last entry is padding, read by -1
        trace_of_end[longer.offsets[1:] - 1] = np.arange(len(longer))
        states = self.initial_states(lanes)
        sizes = [group["w_out"].shape[:2] for group in self._groups]
        found = [np.empty((members, len(longer), cells), np.float32) for members, cells in sizes]
        for plan in packing.lane_plans(longer, lanes, min(self._steps, STATE_STEPS)):  # all h of a tile are in memory
            tile, ends = packer.gather(plan), trace_of_end[plan]
            at_end = ends >= 0
            states, hidden = self._on_lanes(_hidden, states, tile)
            for place, parts in enumerate(zip(*hidden, strict=True)):
                found[place][:, ends[at_end]] = np.concatenate(parts, axis=2)[:, at_end]
        in_order = dict(zip(self._order, (member for group in found for member in group), strict=True))
        return [in_order[number][inverse] for number in range(len(self.names))]

    def _lanes_for(self, lengths: np.ndarray) -> int:
        """As many lanes for things of these lengths as cost least: empty ones cost too, with fewer it takes more steps.

        They are 2^k or 3 2^k, since each number is compiled anew, a multiple of the devices that share them.
        """
        devices, together = len(jax.local_devices()), lengths.sum() / lengths.max()
        fewer = 1 << int(together).bit_length() - 1
        lengths = -np.sort(-lengths)
        lanes = min((fewer, fewer * 3 // 2, fewer * 2), key=lambda lanes: self._cost(lengths, lanes, lanes))
        lanes = min(lanes, self._lanes * devices)
        sharing = min(devices, max(1, lanes // _share()))
        return -(-lanes // sharing) * sharing

    def _time_for(self, lengths: np.ndarray) -> float:
        """What scoring things of these lengths takes, reckoned in steps of a tile of one lane."""
        lanes = self._lanes_for(lengths)
        return self._cost(-np.sort(-lengths), lanes, lanes / len(_meshes(lanes)))

    def _cost(self, longest_first: np.ndarray, lanes: int, side_by_side: float) -> float:
        """What the steps cost if a device has so many of the lanes."""
        # Of the k lanes + 1 longest traces some lane holds k + 1; and no lane can hold less than the mean.
        heaped = longest_first[::lanes]
        steps = max(longest_first.sum() / lanes, (heaped * np.arange(1, len(heaped) + 1)).max())
        overhead = OVERHEAD if jax.default_backend() == "cpu" else ACCELERATOR_OVERHEAD
        return -(-steps // self._steps) * (side_by_side + overhead)

    def initial_states(self, lanes: int, of_lane: int = 1) -> "States":
        """Before a trace; so many of each lane."""
        meshes = _meshes(lanes)
        count = lanes // len(meshes) * of_lane
        return [
            [lstm.initial_state(group, count, _layout(mesh, _BY_LANE)) for group in self._groups] for mesh in meshes
        ]

    def tile(self, states: "States", tile: packing.Tile) -> tuple["States", list[list[Array]]]:
        """Scores one tile `[T, B]`; the states are used up.

        Returns:
          the states after it, and for each mesh and group its members' surprisals `[members, T, B / meshes]`.
        """
        return self._on_lanes(_surprisal, states, tile)

    def _on_lanes(
        self,
        function: "_OfMember",
        states: list[list[Any]],
        tile: packing.Tile,
        branches: Sequence[beginnings.Branches] | None = None,
    ) -> tuple[list[list[Any]], list[list[Array]]]:
        """What `function` says of each mesh's share of a tile, and of what branches off in it."""
        after: list[list[Any]] = []
        found: list[list[Array]] = []
        parts = zip(*(_split(part, len(states)) for part in tile), strict=True)
        shares: list[Any] = [packing.Tile(*part) for part in parts]
        if branches is not None:
            shares = list(zip(shares, branches, strict=True))
        for mesh, share, before in zip(_meshes(tile.inputs.shape[1]), shares, states, strict=True):
            groups = zip(self._groups_on(mesh), before, strict=True)
            results = [self._program(function, group, state, share, mesh) for group, state in groups]
            after.append([state for state, _ in results])
            found.append([values for _, values in results])
        return after, found

    def _groups_on(self, mesh: Mesh) -> list[Params]:
        if mesh not in self._copies:
            self._copies[mesh] = jax.device_put(self._groups, _layout(mesh, PartitionSpec()))
        return self._copies[mesh]

    def stream(self, lanes: int = 1) -> "Stream":
        """A live stream of `lanes` traces, scored call by call.

        Raises:
          SyscallLMError: a member is a model of windows (`WindowScorer` has a stream of their own).
        """
        self._require_language_models("this stream")
        return Stream(self, lanes)

    def _require_language_models(self, what: str) -> None:
        for numbers, _ in self._by_windows:
            raise SyscallLMError(f"member {self.names[numbers[0]]} reads windows; only language models have {what}")


def _stacked(params: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


States = list[list[lstm.State]]  # of every mesh and group
_BY_LANE = PartitionSpec(None, "lane")  # of states [members, B, H] and of tiles [T, B]
_OfMember = Callable[[Params, Any, Any], tuple[Any, Array]]  # parameters, state and tile


def _share() -> int:
    return SHARE if jax.default_backend() == "cpu" else ACCELERATOR_SHARE


@functools.cache
def _meshes(lanes: int) -> list[Mesh]:
    """The devices that share so many lanes: as many as divide them into equal shares of SHARE or more."""
    devices = jax.local_devices()
    fitting = (count for count in range(len(devices), 1, -1) if lanes % count == 0 and lanes >= count * _share())
    chosen = devices[: next(fitting, 1)]
    alone = cpu.single_cores(len(devices)) if len(chosen) > 1 and jax.default_backend() == "cpu" else ()
    together = [[device] for device in alone[: len(chosen)]] or [chosen]
    return [Mesh(np.array(each), ("lane",)) for each in together]


def _gathered(packer: packing.Packer, plan: np.ndarray) -> packing.Tile:
    with jax.profiler.TraceAnnotation("gather a tile"):
        return packer.gather(plan)


def _split(array: HostArray, parts: int) -> list[np.ndarray]:
    """Equal shares of the lanes of `[T, B]`."""
    return np.split(np.asarray(array), parts, axis=1)


def _layout(mesh: Mesh, spec: PartitionSpec) -> jax.sharding.Sharding:
    """One device alone knows nothing of meshes: a program for several waits longer for its start, by a live call."""
    return NamedSharding(mesh, spec) if mesh.size > 1 else jax.sharding.SingleDeviceSharding(mesh.devices.item())


def _on_devices(function: _OfMember, group: Params, state: Any, tile: Any, mesh: Mesh) -> tuple[Any, Array]:
    """What `function` says of every member of a group; its values are `[members, T, B, ...]`."""

    def share(group: Params, state: Any, tile: Any) -> tuple[Any, Array]:
        return lstm.over_members(function, group, state, shared=(tile,))

    if mesh.size == 1:
        return share(group, state, tile)
    results = (_BY_LANE, PartitionSpec(None, None, "lane"))
    # Each device runs the whole kernel on its lanes; the partitioner could not split a kernel of our own.
    shared_out = jax.shard_map(
        share, mesh=mesh, in_specs=(PartitionSpec(), _BY_LANE, _BY_LANE), out_specs=results, check_vma=False
    )
    return shared_out(group, state, tile)


_PROGRAMS = {
    kind: cpu.jit(_on_devices, eigen=kind == "float32", static_argnums=(0, 4), donate_argnums=2) for kind in OPERANDS
}  # Eigen has no products of bfloat16 worth the name


def _surprisal(folded: Params, state: lstm.State, tile: packing.Tile) -> tuple[lstm.State, Array]:
    return lstm.score(folded, state, tile.inputs, tile.targets, tile.reset)


def _branching(
    folded: Params, states: tuple[lstm.State, lstm.State], tile: tuple[packing.Tile, beginnings.Branches]
) -> tuple[tuple[lstm.State, lstm.State], Array]:
    calls, branches = tile
    after, kept, surprisal = lstm.score_branching(folded, *states, calls.inputs, calls.targets, calls.reset, branches)
    return (after, kept), surprisal


def _hidden(folded: Params, state: lstm.State, tile: packing.Tile) -> tuple[lstm.State, Array]:
    """The last layer's h of every step, `[T, B, H]`."""

    def body(state: lstm.State, inputs: tuple[Array, Array]) -> tuple[lstm.State, Array]:
        return lstm.step(folded, state, *inputs)

    return jax.lax.scan(body, state, (jnp.asarray(tile.inputs), jnp.asarray(tile.reset)))


class Stream:
    """Scores B live traces, one call of each at a time, with carried state."""

    def __init__(self, scorer: Scorer, lanes: int):
        self._go, self._order, self._meshes = scorer.go, scorer._order, _meshes(lanes)
        self._groups = [scorer._groups_on(mesh) for mesh in self._meshes]
        self._states = scorer.initial_states(lanes)
        self._previous = np.full(lanes, scorer.go, np.int32)

    def push(self, calls: Iterable[int] | np.ndarray) -> np.ndarray:
        """Scores the next call of every lane.

        Args:
          calls: `[B]` ids.

        Returns:
          float32 `[M, B]`, surprisals in nats.

        Raises:
          SyscallLMError: an id outside the vocabulary.
        """
        calls = np.asarray(calls)
        require_ids(calls, self._go)
        read = np.stack([self._previous, np.asarray(calls, np.int32)])
        shares = zip(self._groups, self._states, _split(read, len(self._meshes)), self._meshes, strict=True)
        pushed = [_push(groups, states, share, self._go, mesh) for groups, states, share, mesh in shares]
        self._states, self._previous = [states for states, _ in pushed], read[1]
        values = np.concatenate([surprisals for _, surprisals in pushed], axis=1)
        result = np.empty_like(values)
        result[self._order] = values
        return result

    def restart(self, lane: int) -> None:
        """A new trace begins in a lane."""
        self._previous[lane] = self._go


@functools.partial(cpu.jit, static_argnums=(3, 4), donate_argnums=1)
def _push(
    groups: list[Params], states: list[lstm.State], read: HostArray, go: int, mesh: Mesh
) -> tuple[list[lstm.State], Array]:
    """One call of every lane under all members: a call waits for the dispatch more than for the arithmetic.

    Args:
      groups, states: of the scorer; the states are used up.
      read: int32 `[2, B]`, the call before (GO at a trace's start) and the call.
      go: that id.
      mesh: the devices.

    Returns:
      the states after the call, and surprisals `[M, B]` in group order.
    """
    previous, calls = jnp.split(jnp.asarray(read), 2)
    tile = packing.Tile(previous, calls, previous == go, jnp.ones(calls.shape, bool))
    results = [_on_devices(_surprisal, group, state, tile, mesh) for group, state in zip(groups, states, strict=True)]
    return [state for state, _ in results], jnp.concatenate([values for _, values in results])[:, 0]


def means(surprisal: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Average negative log-likelihood of each trace (Kim et al., section 2.1): `[..., total]` to float64 `[..., N]`."""
    if not len(sequences):
        return np.zeros((*surprisal.shape[:-1], 0))
    sums = np.add.reduceat(surprisal, sequences.offsets[:-1], axis=-1, dtype=np.float64)
    return sums / sequences.lengths


def least_expected(surprisal: np.ndarray, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The call of each trace that surprises most, of several equal ones the first.

    Args:
      surprisal: `[total]`, nats per call.
      sequences: N traces, none of them empty.

    Returns:
      its position int64 `[N]` (from the trace's first call, 0), and its surprisal `[N]`.
    """
    if not len(sequences):
        return np.zeros(0, np.int64), np.zeros(0, surprisal.dtype)
    begins = sequences.offsets[:-1]
    highest = np.maximum.reduceat(surprisal, begins)
    reached = np.flatnonzero(surprisal == np.repeat(highest, sequences.lengths))
    return reached[np.searchsorted(reached, begins)] - begins, highest


def most_surprising_stretches(
    surprisal: np.ndarray, sequences: Sequences, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In each trace the `length` consecutive calls with the highest mean (the whole trace, if it is shorter).

    Args:
      surprisal: `[total]`, nats per call.
      sequences: N traces.
      length: calls in a stretch.

    Returns:
      start int64 `[N]` (from the trace's first call, 0), length int64 `[N]`, mean float64 `[N]`.
    """
    starts = np.zeros(len(sequences), np.int64)
    lengths = np.minimum(sequences.lengths, length)
    best = np.zeros(len(sequences))
    for i, (begin, end) in enumerate(zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)):
        total = np.concatenate([[0.0], np.cumsum(surprisal[begin:end], dtype=np.float64)])
        window = (total[lengths[i] :] - total[: len(total) - lengths[i]]) / lengths[i]
        starts[i] = np.argmax(window)
        best[i] = window[starts[i]]
    return starts, lengths, best
