"""Filters an archive into another: orders traces, drops doubles, repetitions and named calls, and counts what it drops.

  syscall-lm filter --archive=traces.parquet --output=filtered.parquet --order --drop_doubles --max_repeats=2
  syscall-lm filter --archive=traces.parquet --output=filtered.parquet --drop=clock_gettime,gettimeofday

Soni et al. (2019) obtain their sequences "through filtering and ordering of redundant system calls" (section VI). Every
filter is off unless it is asked for; what was done and how much it dropped stands in the archive's metadata, under
"filters". A model must be trained on and applied to traces that were filtered alike. About 2 seconds for ADFA-LD.
"""

import collections
from collections.abc import Iterator

from absl import flags
from tqdm import tqdm

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.filters import Filters
from syscall_lm.traces.trace import Trace

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to read", required=True)
OUTPUT = flags.DEFINE_string("output", None, "trace archive to write", required=True)
ORDER = flags.DEFINE_bool("order", False, "order traces by host, process and start time")
DROP_DOUBLES = flags.DEFINE_bool("drop_doubles", False, "drop traces of one process that were recorded twice")
MAX_REPEATS = flags.DEFINE_integer("max_repeats", 0, "how many equal calls in a row stay; 0 keeps all")
DROP = flags.DEFINE_list("drop", [], "names of calls to drop")


def main() -> None:
    """Reads, filters, writes, and tells what became of the traces."""
    filters = Filters(ORDER.value, DROP_DOUBLES.value, tuple(DROP.value), MAX_REPEATS.value)
    if filters == Filters():
        raise SyscallLMError("no filter is asked for; name --order, --drop_doubles, --max_repeats or --drop")
    archive = TraceArchive(ARCHIVE.value)
    files.require_no_input(OUTPUT.value, [archive.path])
    counts: collections.Counter[str] = collections.Counter()
    with TraceArchiveWriter(OUTPUT.value, archive.vocabulary) as writer:
        with tqdm(total=archive.num_calls, unit=" calls", unit_scale=True, disable=None) as bar:
            for trace in filters.apply(read(archive, bar), archive.vocabulary, counts):
                writer.write(trace)
        if not writer.num_traces:
            raise SyscallLMError(f"{archive.path}: nothing is left after these filters")
        own = ("version", "vocabulary", "traces", "calls")
        writer.metadata.update({name: value for name, value in archive.metadata.items() if name not in own})
        step = {**filters.to_json(), "counts": dict(counts.most_common())}
        writer.metadata["filters"] = [*archive.metadata.get("filters", []), step]
    print(
        f"read: {archive.num_traces:,} traces, {archive.num_calls:,} calls; "
        f"kept: {writer.num_traces:,} traces, {writer.num_calls:,} calls"
    )
    for reason, times in counts.most_common():
        if times:
            print(f"{reason}: {times:,}")
    print(f"wrote {OUTPUT.value}")


def read(archive: TraceArchive, bar: tqdm) -> Iterator[Trace]:
    """The archive's traces, one after another."""
    for batch in archive.batches():
        rows = batch.info.to_pylist()
        for calls, row in zip(batch.calls, rows, strict=True):
            bar.update(len(calls))
            yield Trace(calls=calls, **{name: value for name, value in row.items() if value is not None})


if __name__ == "__main__":
    command.run(main)
