"""Scores shards in this process, one after the other."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from syscall_lm.engines.shards import Engine, Shard
from syscall_lm.traces.archive import TraceBatch


def engine(score: Callable[[TraceBatch], pa.Table]) -> Engine:
    """The engine that runs `score` (from n traces to n rows of the output) here."""

    def run(missing: Iterator[tuple[Shard, TraceBatch]]) -> Iterator[Shard]:
        for shard, batch in missing:
            shard.write(score(batch))
            yield shard

    return run
