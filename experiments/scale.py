"""Measures how scoring grows with the archive, and what the Ray engine costs.

  syscall-lm scale --archive=adfa.parquet --model=model --output=results/scale
  syscall-lm scale --archive=adfa.parquet --model=model --output=results/scale --sizes=4000000 --engines=local,ray:1

For each size an archive is made from the given one: traces drawn at random, one call in fifty replaced by another, so
that hardly two are alike. The `score` command then runs on it in a process of its own; a row holds the whole command's
seconds, the calls per second that it tells (without its start), and the peak memory of all its processes together (what
they share is counted once), those that Ray starts included. Rows that are there already are kept: give another --output
to measure again. With a 1x32 model 10^8 calls take a minute or two on two cores; their archive 200 MB in --scratch.
"""

import json
import os
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
import tqdm
from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance, watching
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Trace

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to make larger ones from", required=True)
MODEL = flags.DEFINE_string("model", None, "model directory to score with (made by `train`)", required=True)
OUTPUT = flags.DEFINE_string("output", None, "directory for scale.json and table.md", required=True)
SIZES = flags.DEFINE_list("sizes", [str(10**power) for power in range(5, 9)], "calls to score")
ENGINES = flags.DEFINE_list("engines", ["local"], "engines to score with: local, ray:WORKERS")
SCRATCH = flags.DEFINE_string("scratch", tempfile.gettempdir(), "folder for the archives that are made")

_REPLACED = 0.02  # share of the calls


def main() -> None:
    """Measures what is missing, and writes the table anew after each row."""
    if not all(size.isdecimal() and int(size) for size in SIZES.value):
        raise SyscallLMError("--sizes are numbers of calls")
    if not os.path.isdir(SCRATCH.value):
        raise SyscallLMError(f"--scratch={SCRATCH.value}: no such folder")
    if wrong := [engine for engine in ENGINES.value if not re.fullmatch("local|ray(:[1-9][0-9]*)?", engine)]:
        raise SyscallLMError(f"--engines={','.join(ENGINES.value)}: {wrong[0]!r} is neither local nor ray:WORKERS")
    output = pathlib.Path(OUTPUT.value)
    path = output / "scale.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    environment = provenance.environment()
    members = {member.name: str(member.shape) for member in store.load(pathlib.Path(MODEL.value)).members}
    with tempfile.TemporaryDirectory(prefix="syscall_lm.", dir=SCRATCH.value) as folder:
        for size in map(int, SIZES.value):
            archive = pathlib.Path(folder) / f"{size}.parquet"
            for engine in ENGINES.value:
                case = {"engine": engine, "calls": size, "members": ",".join(members.values())}
                if any(case.items() <= row.items() for row in result["rows"]):
                    continue
                if not archive.exists():
                    traces = make(TraceArchive(ARCHIVE.value), archive, size)
                    case["traces"] = traces
                result["rows"].append(case | measure(engine, archive) | {"environment": environment})
                files.write_text(path, json.dumps(result, indent=1) + "\n")
                files.write_text(output / "table.md", table(result))
            archive.unlink(missing_ok=True)
    print(table(result))


def make(source: TraceArchive, path: pathlib.Path, size: int) -> int:
    """Writes an archive of about `size` calls, a trace at a time, and returns the number of its traces."""
    rng = np.random.default_rng(0)
    traces = source.read().calls
    with (
        TraceArchiveWriter(path, source.vocabulary) as writer,
        tqdm.tqdm(total=size, unit="call", unit_scale=True, disable=None) as bar,
    ):
        while writer.num_calls < size:
            calls = traces[int(rng.integers(len(traces)))][: size - writer.num_calls].copy()
            changed = rng.random(len(calls)) < _REPLACED
            calls[changed] = rng.integers(0, source.vocabulary.unk, changed.sum())
            writer.write(Trace(calls, f"t{writer.num_traces}"))
            bar.update(len(calls))
        return writer.num_traces


def measure(engine: str, archive: pathlib.Path) -> dict[str, float]:
    """Runs `score` in a process of its own."""
    scores = archive.with_suffix(".scores")
    arguments = [f"--model={MODEL.value}", f"--archive={archive}", f"--output={scores}", "--top=0"]
    name, _, workers = engine.partition(":")
    run = watching.run(["score", *arguments, f"--engine={name}", *([f"--workers={workers}"] if workers else [])])
    speed = re.search(r"([\d,]+) calls/s", run.output)
    scores.unlink(missing_ok=True)
    if run.exit_code or speed is None:
        raise SyscallLMError(
            f"{archive}: `score` with {engine} failed with exit code {run.exit_code} ({run.output.strip()[-200:]})"
        )
    return {
        "seconds": round(run.seconds, 1),
        "calls_per_second": int(speed[1].replace(",", "")),
        "peak_memory_mib": round(run.peak_memory_mib),
    }


def table(result: dict) -> str:
    """The rows as Markdown."""
    lines = [
        f"Made by experiments/scale.py on {os.cpu_count()} CPU cores of a shared machine. Memory: of all processes of "
        "the command together, at most.",
        "",
        "| engine | members | calls | calls/s while scoring | seconds, whole command | memory, MiB | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["engine"], row["calls"])):
        lines.append(
            f"| {row['engine']} | {row['members']} | {row['calls']:,} | {row['calls_per_second']:,} "
            f"| {row['seconds']:,} | {row['peak_memory_mib']:,} | {row['environment']['commit']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
