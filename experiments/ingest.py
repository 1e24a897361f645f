"""Turns captures of system calls into a trace archive, which every other command reads.

Inputs are files, patterns, folders, or - for standard input; zip and tar archives are read without being extracted, and
gzip, bzip2, xz and zstd are unpacked on the way. Examples:

  strace -f -o run.strace make && syscall-lm ingest --output=run.parquet run.strace
  syscall-lm ingest --output=adfa.parquet ADFA-LD.zip
  syscall-lm ingest --output=lpr.parquet --mapping=syscallMap.txt --label=normal traces.tar.gz

  syscall-lm ingest --output=host.parquet --workers=4 captures/*.sc.gz
  zcat day.json.gz | syscall-lm ingest --output=day.parquet --format=tracee --group=process -

Where a capture tells the time of each call (DRAKVUF, Tracee, Tetragon, bpftrace, tables with such a column), calls can
be put in order and doubly recorded ones dropped (Soni et al. 2019, section VI); both are counted, and noted in the
archive under "filters". Memory holds fewer traces then, since a late call may come until the capture's end:

  syscall-lm ingest --output=guest.parquet --order_events --drop_doubled_events drakvuf.json

What cannot be read is skipped, counted by reason, and listed at the end. A run that was killed is resumed by the same
command: what it has read lies in OUTPUT.parts. `ingest_rates` measures how fast each format is read.
"""

import os
import sys

from absl import flags
from tqdm import tqdm

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.traces import readers
from syscall_lm.traces.ingest import AUTO, Summary, ingest
from syscall_lm.traces.parts import NOT_RECOGNISED
from syscall_lm.traces.readers import Options
from syscall_lm.traces.tally import most

FORMAT = flags.DEFINE_string("format", AUTO, "The inputs' format, one of those below; or auto: by their content.")
OUTPUT = flags.DEFINE_string("output", "", "The trace archive to write (Parquet).")
ABI = flags.DEFINE_string("abi", "x86_64", "The ABI whose table of calls is the vocabulary, or explains numbers.")
MAPPING = flags.DEFINE_string(
    "mapping", "", "What call numbers mean: a list of names, one a line, in the order of the numbers; bsm: audit_event."
)
NUMBERING = flags.DEFINE_string(
    "numbering", "", "Which numbering the call numbers follow (UNM: A or B; formats with any numbers: abi)."
)
GROUP = flags.DEFINE_enum(
    "group", "", ["", "thread", "process"], "Whose calls make a trace; by default threads where a format tells them."
)
MAX_GAP = flags.DEFINE_float(
    "max_gap",
    0.0,
    "Seconds of silence after which a process id is another process's, if times are told; 0: never.",
    lower_bound=0,
)
COLUMNS = flags.DEFINE_string(
    "columns",
    "",
    "csv, jsonl, parquet: what columns hold, as WHAT=NAME,...; WHAT is call, calls, trace, pid, tid, command, host, "
    "time or label; WHAT= says that none does.",
)
ORDER_EVENTS = flags.DEFINE_bool(
    "order_events", False, "Put each trace's calls in the order of their times, where a capture has one for each."
)
DROP_DOUBLED_EVENTS = flags.DEFINE_bool(
    "drop_doubled_events", False, "Drop a call that equals the one before it in thread, time and name: recorded twice."
)
HOST = flags.DEFINE_string("host", "", "Where the capture was recorded.")
LABEL = flags.DEFINE_enum("label", "", ["", "normal", "attack"], "What the traces are, where they do not say it.")
FAMILY = flags.DEFINE_string("family", "", "The kind of attack, or the program, where the traces do not say it.")
SPLIT = flags.DEFINE_enum(
    "split", "", ["", "train", "validation", "test"], "Which part they are, where they do not say it."
)
MAX_BAD_FRACTION = flags.DEFINE_float(
    "max_bad_fraction", 1.0, "Fail if a larger share of lines cannot be read; 0 also refuses truncated files."
)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that read; 0: one for each core.", lower_bound=0)


def more_help() -> list[str]:
    """What `--help` says of the formats."""
    names = readers.names()
    return ["", "formats:", *(f"  {name}: {readers.reader(name).DESCRIPTION}" for name in names)]


def main(argv: list[str]) -> None:
    """Reads the inputs that `argv` names into the archive that --output names."""
    if not OUTPUT.value:
        raise SyscallLMError("--output names no file; expected the path of the archive to write")
    options = Options(
        abi=ABI.value,
        mapping=MAPPING.value,
        numbering=NUMBERING.value,
        host=HOST.value,
        label=LABEL.value,
        family=FAMILY.value,
        split=SPLIT.value,
        group=GROUP.value,
        max_gap=MAX_GAP.value,
        columns=COLUMNS.value,
        order_events=ORDER_EVENTS.value,
        drop_doubled_events=DROP_DOUBLED_EVENTS.value,
    )
    with tqdm(unit=" calls", unit_scale=True, file=sys.stderr, disable=None) as bar:
        summary = ingest(
            argv,
            OUTPUT.value,
            FORMAT.value,
            options,
            MAX_BAD_FRACTION.value,
            WORKERS.value or len(os.sched_getaffinity(0)),
            bar.update,
        )
    print(describe(summary, recognised=FORMAT.value == AUTO))
    print(f"wrote {OUTPUT.value}")


def describe(summary: Summary, recognised: bool = False) -> str:
    """The summary for people; names from the inputs are shown without their control characters.

    Args:
      summary: of an ingestion.
      recognised: whether the format was found out rather than named.
    """
    counters = summary.counters
    rows = [
        f"format: {summary.format}{' (recognised)' if recognised else ''}",
        f"read: {counters.traces:,} traces, {counters.calls:,} calls from {summary.sources:,} files",
        f"longest: {summary.longest[0]}, {summary.longest[1]:,} calls",
    ]
    if summary.numbering:
        rows.insert(1, f"numbering: {summary.numbering}")
    if summary.warning:
        rows.append(f"note: {summary.warning}")
    if summary.resumed:
        rows.append(f"resumed: {summary.resumed:,} parts had been read by an earlier run")
    for (label, split), traces in sorted(summary.groups.items()):
        rows.append(f"{label or 'unlabelled'}, {split or 'no split'}: {traces:,} traces")
    for title, by_name in (
        ("sources", summary.by_source),
        ("hosts", summary.by_host),
        ("commands", summary.by_command),
    ):
        if set(by_name) != {""}:
            shown = [f"{name or '(unknown)'} {calls:,}" for name, (_, calls) in most(by_name, 5).items()]
            rows.append(f"calls by {title}: {', '.join(shown)}{', ...' if len(by_name) > 5 else ''}")
    if summary.renamed:
        rows.append(f"renamed, because an id stood twice: {summary.renamed:,} traces")
    for title, counts in (
        ("skipped", counters.skipped),
        ("filtered", counters.filtered),
        ("files skipped, whole or in part", summary.skipped_files),
        ("calls outside the vocabulary", counters.unknown),
    ):
        if counts:
            shown = [f"{reason}: {times:,}" for reason, times in counts.most_common(8)]
            shown += [f"and {len(counts) - 8:,} others"] if len(counts) > 8 else []
            rows.append(f"{title}: {', '.join(shown)}")
    if summary.unread:
        more = ", ..." if summary.skipped_files[NOT_RECOGNISED] > len(summary.unread) else ""
        rows.append(f"not recognised (--format=NAME reads them as what they are): {', '.join(summary.unread)}{more}")
    if summary.bad:
        rows.append(f"bad: {summary.bad:,} lines, a share of {summary.bad_fraction:.2g}")
    return "\n".join(map(command.printable, rows))


if __name__ == "__main__":
    command.run(main)
