"""Scores shards on a Ray cluster, or on all cores or accelerators of this machine: Ray Data hands them to actors.

Only the shards' names travel. Each actor loads the model once, reads a shard's traces from the archive itself and
writes its rows beside the output; so every machine of the cluster must see model, archive and output under the same
paths, and have this package installed. An actor that dies is started again by Ray and its shard is scored again.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from syscall_lm.engines.shards import Engine, Shard
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.archive import TraceArchive, TraceBatch

_OBJECTS = 2**27  # bytes of shared memory on this machine: shards' names need little
_ACCELERATORS = ("GPU", "TPU")  # as Ray calls them
_MOST_BLOCKS = 10_000
_PATIENCE = 10  # seconds to reach a cluster

Score = Callable[[TraceBatch], pa.Table]


@contextlib.contextmanager
def cluster(address: str, workers: int) -> Iterator[None]:
    """Ray, started or reached before anything else: it forks, which JAX's threads do not like.

    Args:
      address: of a running cluster ("HOST:6379", "auto"); empty: Ray is started on this machine.
      workers: how many actors there are to be, see `engine`.

    Raises:
      SyscallLMError: Ray is not installed or cannot be reached.
    """
    # Nothing is told to anybody, and users get sentences instead of log lines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise SyscallLMError("--engine=ray needs Ray; install it with: pip install -e '.[ray]'") from error
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address:
            host, _, port = address.rpartition(":")
            if host:  # Ray itself would try for ever
                socket.create_connection((host, int(port)), _PATIENCE).close()
            ray.init(address, **quiet)
        else:
            cores = max(workers, len(os.sched_getaffinity(0)))
            ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECTS, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        problem = " ".join(str(error).split())[:200]
        raise SyscallLMError(f"--ray_address={address}: Ray cannot be reached or started ({problem})") from error
    try:
        yield
    finally:
        ray.shutdown()


def engine(
    archive: str | os.PathLike[str], scorer: Callable[..., Score], arguments: tuple[Any, ...], workers: int
) -> Engine:
    """The engine that runs `scorer(*arguments)` in actors, within `cluster`.

    Args:
      archive: path of the archive.
      scorer: is called once in each actor; makes what turns n traces into n rows of the output. Knows nothing of Ray.
      arguments: can be pickled.
      workers: how many actors; 0: one for each accelerator of the cluster, or for each core where there is none.

    Raises:
      SyscallLMError: (when it runs) there are fewer accelerators or cores than workers, or Ray gave up.
    """

    def run(missing: Iterator[tuple[Shard, TraceBatch]]) -> Iterator[Shard]:
        shards = [shard for shard, _ in missing]
        if shards:
            yield from _score(shards, (pathlib.Path(archive), scorer, arguments), workers)

    return run


def _score(shards: list[Shard], worker: tuple[Any, ...], workers: int) -> Iterator[Shard]:
    import ray
    import ray.data
    import ray.exceptions

    there = ray.cluster_resources()
    kind = next((name for name in _ACCELERATORS if there.get(name, 0) >= 1), "CPU")
    available = int(there.get(kind, 0))
    if workers > available:
        raise SyscallLMError(f"--workers={workers}: Ray has {available} {kind}s, and each worker takes one")
    workers = min(workers or available, len(shards))
    needs = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}, "CPU": {"num_cpus": 1}}[kind]

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [dataclasses.asdict(shard) | {"part": str(shard.part), "number": i} for i, shard in enumerate(shards)]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
        _Worker,
        fn_constructor_args=worker,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        **needs,
    )
    try:
        for row in dataset.iter_rows():
            if row["error"]:
                raise SyscallLMError(row["error"])
            yield shards[row["number"]]
    except ray.exceptions.RayError as error:
        problem = str(error).strip().splitlines()[-1][:200]
        raise SyscallLMError(
            f"Ray gave up ({problem}); the same command goes on with the shards that are missing"
        ) from error


class _Worker:
    """The actor: reads shards, has them scored, writes their rows. Errors of the user are told in words."""

    def __init__(self, archive: pathlib.Path, scorer: Callable[..., Score], arguments: tuple[Any, ...]):
        self._error = ""
        try:
            self._archive = TraceArchive(archive)
            self._score = scorer(*arguments)
        except SyscallLMError as error:
            self._error = str(error)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        error = self._error
        first, traces, calls = (int(rows[name][0]) for name in ("first", "traces", "calls"))
        shard = Shard(first, traces, calls, pathlib.Path(rows["part"][0]))
        try:
            if not error and not shard.part.exists():  # it does where an actor died just after
                shard.write(self._score(self._archive.rows(shard.first, shard.traces)))
        except SyscallLMError as failed:
            error = str(failed)
        return {"number": rows["number"], "error": np.array([error])}
