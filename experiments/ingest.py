"""Turns captures of system calls into a trace archive, which every other command reads.

Inputs are files, patterns, folders, or - for standard input; zip and tar archives are read without being extracted, and
gzip, bzip2, xz and zstd are unpacked on the way. Examples:

  strace -f -o run.strace make && python -m experiments.ingest --output=run.parquet run.strace
  python -m experiments.ingest --output=adfa.parquet ADFA-LD.zip
  python -m experiments.ingest --output=lpr.parquet --mapping=syscallMap.txt --label=normal traces.tar.gz

What cannot be read is skipped, counted by reason, and listed at the end. Speed: about a million lines of strace a
second on one core.
"""

import sys

from absl import flags
from tqdm import tqdm

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.traces import readers
from syscall_lm.traces.ingest import AUTO, Summary, ingest
from syscall_lm.traces.readers import Options

FORMAT = flags.DEFINE_string(
    "format", AUTO, f"The inputs' format: {', '.join(readers.names())}; or auto: by their content."
)
OUTPUT = flags.DEFINE_string("output", "", "The trace archive to write (Parquet).")
ABI = flags.DEFINE_string("abi", "x86_64", "The ABI whose table of calls is the vocabulary (strace).")
MAPPING = flags.DEFINE_string("mapping", "", "A list of call names, one a line, in the order of their numbers (UNM).")
NUMBERING = flags.DEFINE_string("numbering", "", "Which numbering the call numbers follow (UNM: A or B).")
HOST = flags.DEFINE_string("host", "", "Where the capture was recorded.")
LABEL = flags.DEFINE_enum("label", "", ["", "normal", "attack"], "What the traces are, where they do not say it.")
FAMILY = flags.DEFINE_string("family", "", "The kind of attack, or the program, where the traces do not say it.")
SPLIT = flags.DEFINE_string("split", "", "train, validation or test, where the traces do not say it.")
MAX_BAD_FRACTION = flags.DEFINE_float(
    "max_bad_fraction", 1.0, "Fail if a larger share of lines cannot be read; 0 also refuses truncated files."
)


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
    )
    with tqdm(unit=" calls", unit_scale=True, file=sys.stderr, disable=None) as bar:
        summary = ingest(
            argv,
            OUTPUT.value,
            FORMAT.value,
            options,
            MAX_BAD_FRACTION.value,
            progress=lambda trace: bar.update(len(trace.calls)),
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
    for (label, split), traces in sorted(summary.groups.items()):
        rows.append(f"{label or 'unlabelled'}, {split or 'no split'}: {traces:,} traces")
    if summary.renamed:
        rows.append(f"renamed, because an id stood twice: {summary.renamed:,} traces")
    for title, counts in (
        ("skipped", counters.skipped),
        ("files skipped", summary.skipped_files),
        ("calls outside the vocabulary", counters.unknown),
    ):
        if counts:
            shown = [f"{reason}: {times:,}" for reason, times in counts.most_common(8)]
            shown += [f"and {len(counts) - 8:,} others"] if len(counts) > 8 else []
            rows.append(f"{title}: {', '.join(shown)}")
    if summary.bad:
        rows.append(f"bad: {summary.bad:,} lines, a share of {summary.bad_fraction:.2g}")
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in row) for row in rows)


if __name__ == "__main__":
    command.run(main)
