"""Measures how fast every format is read, and what is read of real samples.

  syscall-lm ingest_rates --output=results/ingest [--samples=FOLDER]

A generated capture of each format (see ingest_samples.py) is read in this process, on one core, without writing an
archive; a row holds the median of --rounds. The command `ingest` is then run with one and two workers on four captures
of strace and of UNM. --samples names a folder of captures: each file that a format recognises is read, and counted by
format; nothing there is timed. Takes about three minutes.
"""

import collections
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, ingest_samples, provenance
from syscall_lm.traces import ingest, readers, sources
from syscall_lm.traces.readers import Counters, Options

OUTPUT = flags.DEFINE_string("output", None, "directory for ingest_rates.json and table.md", required=True)
CALLS = flags.DEFINE_integer("calls", 200_000, "calls in a generated capture; numbers alone: ten times as many", 1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "how often each is read", 1)
SAMPLES = flags.DEFINE_string("samples", "", "folder of real captures; empty for none")
MAPPING = flags.DEFINE_string("mapping", "", "mapping file for UNM's captures in --samples")

_NUMBERS = {"adfa_ld": 1, "awsctd": 1, "text_lines": 1, "unm": 2}  # integers to a call
_MAP = "".join(f"call{i}\n" for i in range(400))


def main() -> None:
    """Measures, and writes the tables."""
    result: dict[str, Any] = {"environment": provenance.environment()}
    with tempfile.TemporaryDirectory(prefix="syscall_lm.") as folder:
        scratch = pathlib.Path(folder)
        (scratch / "map").write_text(_MAP)
        result["readers"] = [_reader(name, scratch) for name in ingest_samples.SAMPLES]
        result["commands"] = [_command(name, workers, scratch) for name in ("strace", "unm") for workers in (1, 2)]
    result["samples"] = list(_real()) if SAMPLES.value else []
    output = pathlib.Path(OUTPUT.value)
    files.write_text(output / "ingest_rates.json", json.dumps(result, indent=1) + "\n")
    files.write_text(output / "table.md", _table(result))
    print(_table(result))


def _read(format: str, path: pathlib.Path, options: Options) -> Counters:
    module, counters = readers.reader(format), Counters()
    vocabulary = module.vocabulary(options)
    for source in sources.open_sources([str(path)], collections.Counter()):
        for _ in module.read(source, vocabulary, options, counters):
            pass
    return counters


def _reader(name: str, scratch: pathlib.Path) -> dict[str, Any]:
    format = name.partition(",")[0]
    data = ingest_samples.sample(name, CALLS.value * (10 if name in _NUMBERS else 1))
    path = scratch / "capture"
    path.write_bytes(data)
    seconds, counters = [], Counters()
    for _ in range(ROUNDS.value):
        started = time.perf_counter()
        counters = _read(format, path, Options(mapping=str(scratch / "map") if format == "unm" else ""))
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    row = {"format": name, "bytes": len(data), "lines": counters.lines, "calls": counters.calls}
    row |= {"skipped": dict(counters.skipped), "lines_per_second": round(counters.lines / median)}
    if name in _NUMBERS:
        row["integers_per_second"] = round(counters.calls * _NUMBERS[name] / median)
    return row | {"megabytes_per_second": round(len(data) / median / 1e6, 1), "seconds": seconds}


def _command(name: str, workers: int, scratch: pathlib.Path) -> dict[str, Any]:
    """The whole of `ingest` but its start: reading, grouping, writing the archive."""
    data = ingest_samples.sample(name, 5 * CALLS.value)
    paths = [scratch / f"{name}-{i}" for i in range(4)]
    for path in paths:
        path.write_bytes(data)
    options = Options(mapping=str(scratch / "map") if name == "unm" else "")
    started = time.perf_counter()
    summary = ingest.ingest([str(path) for path in paths], scratch / "x.parquet", name, options, workers=workers)
    seconds = time.perf_counter() - started
    lines = summary.counters.lines
    return {"format": name, "workers": workers, "lines": lines, "lines_per_second": round(lines / seconds)}


def _real() -> Iterator[dict[str, Any]]:
    """What is read of the files in --samples, by format."""
    found: dict[str, tuple[list[str], Counters]] = {}
    for source in sources.open_sources([SAMPLES.value], collections.Counter()):
        formats = list(readers.recognise(source.name, source.head))
        if len(formats) != 1:
            continue
        names, counters = found.setdefault(formats[0], ([], Counters()))
        module = readers.reader(formats[0])
        options = Options(mapping=MAPPING.value if formats[0] == "unm" else "")
        try:
            before = counters.calls
            for _ in module.read(source, module.vocabulary(options), options, counters):
                pass
        except SyscallLMError as error:
            names.append(f"{source.name}: {error}")
            continue
        if counters.calls > before:
            names.append(source.name)
    for format, (names, counters) in sorted(found.items()):
        yield {"format": format, "files": len(names), "first": pathlib.Path(names[0]).name if names else ""} | {
            "lines": counters.lines,
            "traces": counters.traces,
            "calls": counters.calls,
            "skipped": dict(counters.skipped.most_common()),
        }


def _reasons(skipped: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {times:,}" for reason, times in list(skipped.items())[:4]) or "nothing"


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"Made by experiments/ingest_rates.py, commit {result['environment']['commit']}, one core of a shared "
        "machine; medians; lines are records where a format has no lines.",
        "",
        "| format (generated capture) | calls read | skipped | lines/s | integers/s | MB/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["readers"]:
        integers = f"{row['integers_per_second']:,}" if "integers_per_second" in row else ""
        lines.append(
            f"| {row['format']} | {row['calls']:,} | {_reasons(row['skipped'])} | {row['lines_per_second']:,} "
            f"| {integers} | {row['megabytes_per_second']} |"
        )
    lines += ["", "| `ingest` of four captures | workers | lines | lines/s |", "|---|---|---|---|"]
    for row in result["commands"]:
        lines.append(f"| {row['format']} | {row['workers']} | {row['lines']:,} | {row['lines_per_second']:,} |")
    if result["samples"]:
        lines += [
            "",
            "| format (real samples) | files | such as | traces | calls read | skipped |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["samples"]:
            lines.append(
                f"| {row['format']} | {row['files']} | {row['first']} | {row['traces']:,} | {row['calls']:,} "
                f"| {_reasons(row['skipped'])} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
