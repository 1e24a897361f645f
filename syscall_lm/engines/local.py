"""Scores shards in this process, one after the other.

A thread reads the next shard and writes the last one meanwhile, so that the device waits for neither.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from syscall_lm.engines.shards import Engine, Shard
from syscall_lm.traces.archive import TraceBatch


def engine(score: Callable[[TraceBatch], pa.Table]) -> Engine:
    """The engine that runs `score` (from n traces to n rows of the output) here."""

    def run(missing: Iterator[tuple[Shard, TraceBatch]]) -> Iterator[Shard]:
        with ThreadPoolExecutor(1) as aside:
            read, written = aside.submit(next, missing, None), None
            while (found := read.result()) is not None:
                shard, batch = found
                read = aside.submit(next, missing, None)
                rows = score(batch)
                if written is not None:
                    yield written.result()
                written = aside.submit(_write, shard, rows)
            if written is not None:
                yield written.result()

    return run


def _write(shard: Shard, rows: pa.Table) -> Shard:
    shard.write(rows)
    return shard
