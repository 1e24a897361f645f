"""Scoring by windows: the surprisal of every call under models that read windows, batch and streaming.

Traces are cut into windows of L calls without overlap, so that every call is scored once. All devices of the process
score at once, each its own share of the windows. How large a share is does not depend on their number: products of
other shapes round differently, and the number of devices must not show in the results.

A stream does the same with carried state, at the cost of one step per call: each window is read by the encoder while
the one before it is decoded. Batch and stream give the same numbers, call by call, window by window and trace by trace
(tested). What a stream does not give are the scores of overlapping windows, as training uses them: with stride s they
would need L / s encoders and decoders side by side, and L / s steps per call.
"""

import collections
import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from syscall_lm.models import lstm
from syscall_lm.models.shapes import WindowShape, module_of
from syscall_lm.traces.trace import Sequences, require_ids
from syscall_lm.traces.windows import Batch, Windows, in_batches
from syscall_lm.types import Array, Params

SHARES = (64, 512)  # windows that a device scores side by side, at least and at most
CHUNK = 2**16  # windows among which identical ones are looked for
BATCHES_IN_FLIGHT = 2  # the host gathers and unpacks batches while the devices compute others


class WindowScorer:
    """Scores calls under M members of one shape.

    Args:
      shape: of each member.
      params: their parameters, every array with a leading axis M.
    """

    def __init__(self, shape: WindowShape, params: Params):
        self.shape = shape
        self.params = params
        self.members = len(jax.tree.leaves(params)[0])
        self._copies: dict[Mesh, Params] = {}  # the parameters, on each device of a mesh

    def windows(self, sequences: Sequences) -> Windows:
        """The windows in which traces are scored."""
        return Windows(sequences, self.shape.length, self.shape.length, self.shape.vocabulary_size)

    def surprisal(self, sequences: Sequences) -> np.ndarray:
        """Scores traces of any lengths; identical windows are computed once.

        Args:
          sequences: N traces, ids in the members' vocabulary.

        Returns:
          float32 `[M, total]` in nats, laid out like `sequences.calls`: for the encoder-decoder -ln P(call | the window
          before, the window's earlier calls), for the autoencoder the reconstruction error -ln Q(call | its window).

        Raises:
          SyscallLMError: an id outside the vocabulary.
        """
        require_ids(sequences.calls, self.shape.vocabulary_size)
        windows = self.windows(sequences)
        scores = np.empty((self.members, len(sequences.calls)), np.float32)
        for begin in range(0, len(windows), CHUNK):
            numbers = np.arange(begin, min(begin + CHUNK, len(windows)))
            batch = windows.gather(numbers)
            rows = np.ascontiguousarray(np.concatenate([batch.before, batch.calls]).T)
            _, first, inverse = np.unique(
                rows.view(f"V{rows.dtype.itemsize * rows.shape[1]}")[:, 0], return_index=True, return_inverse=True
            )
            values = self._distinct(windows, numbers[first])[..., inverse]  # [M, L, chunk]
            positions = windows.starts[numbers] + np.arange(self.shape.length)[:, None]
            scores[:, positions[batch.mask]] = values[:, batch.mask]
        return scores

    def _distinct(self, windows: Windows, numbers: np.ndarray) -> np.ndarray:
        """What `read` says of the windows with these numbers, in batches."""
        in_flight: collections.deque[Array] = collections.deque()
        parts = []
        share, devices = _shares(len(numbers))
        for plan in in_batches(numbers, share * devices):
            in_flight.append(self._begin(windows.gather(plan), devices))
            if len(in_flight) > BATCHES_IN_FLIGHT:
                parts.append(np.asarray(in_flight.popleft()))
        return np.concatenate([*parts, *map(np.asarray, in_flight)], -1)

    def read(self, batch: Batch) -> np.ndarray:
        """Surprisal of every call of B windows, float32 `[M, L, B]` in nats; it means nothing where they are masked."""
        return np.asarray(self._begin(batch))

    def _begin(self, batch: Batch, devices: int = 1) -> Array:
        """The same, on so many devices; does not wait for them."""
        mesh = _mesh(devices)
        if mesh not in self._copies:
            self._copies[mesh] = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        return _surprisal(self._copies[mesh], batch, self.shape, mesh)

    def stream(self, lanes: int = 1) -> "WindowStream":
        """A live stream of `lanes` traces, scored call by call."""
        return WindowStream(self, lanes)


def window_means(surprisal: np.ndarray, sequences: Sequences, length: int) -> np.ndarray:
    """The average surprisal of every window in which traces are scored: `[total]` to float64 `[W]`."""
    windows = Windows(sequences, length, length, go=0)
    sums = np.add.reduceat(surprisal, windows.starts, dtype=np.float64) if len(windows) else np.zeros(0)
    return sums / windows.sizes


def _shares(windows: int) -> tuple[int, int]:
    """How many of so many windows a device gets at a time (powers of two: each is compiled anew), and how many do."""
    least, most = SHARES
    share = min(max(least, 1 << (windows - 1).bit_length()), most)
    return share, min(len(jax.local_devices()), -(-windows // share))


@functools.cache
def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:devices]), ("window",))


@functools.partial(jax.jit, static_argnames=("shape", "mesh"))
def _surprisal(params: Params, batch: Batch, shape: WindowShape, mesh: Mesh) -> Array:
    def share(params: Params, batch: Batch) -> Array:
        return lstm.over_members(module_of(shape).surprisal, params, shared=(batch,))

    # Each device runs the whole on its windows; the partitioner could not split a kernel of our own.
    inputs = (PartitionSpec(), PartitionSpec(None, "window"))
    result = PartitionSpec(None, None, "window")
    return jax.shard_map(share, mesh=mesh, in_specs=inputs, out_specs=result, check_vma=False)(params, batch)


class WindowStream:
    """Scores B live traces, one call of each at a time, with carried state.

    The encoder-decoder tells a call's surprisal when the call comes; the autoencoder L calls later, since it must have
    seen a window to tell it again (`delay`).
    """

    def __init__(self, scorer: WindowScorer, lanes: int):
        self.shape = scorer.shape
        self.delay = self.shape.delay
        model = module_of(self.shape)
        alone = jax.device_put(scorer.params, jax.local_devices()[0])  # several devices start later than one, by a call
        self._folded = jax.vmap(model.fold)(alone)
        self._start = jax.vmap(lambda folded: model.begin(folded, self.shape, lanes))(self._folded)
        self._state = self._start

    def push(self, calls: np.ndarray) -> np.ndarray:
        """The next call of every lane.

        Args:
          calls: `[B]` ids; GO (V) stands for no call: `delay` of them after a trace's end tell its last calls.

        Returns:
          float32 `[M, B]`, the surprisals in nats of the calls that came `delay` pushes before; NaN if none did.

        Raises:
          SyscallLMError: an id that is neither in the vocabulary nor GO.
        """
        require_ids(calls, self.shape.vocabulary_size + 1)
        self._state, surprisal = _advance(self._folded, self._state, np.asarray(calls, np.int32), self.shape)
        return np.asarray(surprisal)

    def restart(self, lane: int) -> None:
        """A new trace begins in a lane."""
        self._state = jax.tree.map(lambda now, new: now.at[:, lane].set(new[:, lane]), self._state, self._start)


@functools.partial(jax.jit, static_argnames="shape")
def _advance(folded: Params, state, calls: Array, shape: WindowShape):
    def member(folded, state, calls):
        return module_of(shape).advance(folded, shape, state, calls)

    return lstm.over_members(member, folded, state, shared=(calls,))
