"""Feeds hostile and broken captures to `ingest` and tells how each ends: exit code, time, memory.

  syscall-lm hostile --output=results/ingest [--cases=bomb,parquet]

Bombs, archives in archives, a million members, links, a line of a gigabyte, ten million processes, torn, mixed and
truncated files, Parquet with hostile metadata: see hostile_captures.py. Each is written to --scratch (1.2 GB at most)
and read by the command `ingest` in a process of its own. What must hold is checked: the exit code, one line of error
where it is 2, no traceback, nothing left where a run failed, at most 3 GiB and a quarter of an hour. Memory is that of
all its processes together, at most. With --cases the rows of other cases that are there are kept. About a quarter of an
hour on one core.
"""

import json
import pathlib
import tempfile
from typing import Any

from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance, watching
from syscall_lm.experiments.hostile_captures import CASES, Case

OUTPUT = flags.DEFINE_string("output", None, "directory for hostile.json and hostile.md", required=True)
CHOSEN = flags.DEFINE_list("cases", [], "only cases whose name holds one of these")
SCRATCH = flags.DEFINE_string("scratch", tempfile.gettempdir(), "folder for the captures")

_SHOWN = 150  # characters of what a run says
_MAX_SECONDS, _MAX_MIB = 900, 3 * 2**10


def main() -> None:
    """Runs the cases, and writes the table anew after each."""
    chosen = [case for case in CASES if not CHOSEN.value or any(part in case.name for part in CHOSEN.value)]
    if not chosen:
        raise SyscallLMError(f"--cases are parts of {', '.join(case.name for case in CASES)}")
    output = pathlib.Path(OUTPUT.value)
    path, environment = output / "hostile.json", provenance.environment()
    rows: dict[str, Any] = {}
    if CHOSEN.value and path.exists():
        rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    wrong = []
    with tempfile.TemporaryDirectory(prefix="syscall_lm.", dir=SCRATCH.value) as folder:
        for case in chosen:
            row = rows[case.name] = measure(case, pathlib.Path(folder)) | {"commit": environment["commit"]}
            print(_line(row), flush=True)
            wrong += [f"{case.name} ({row['wrong']})"] if row["wrong"] else []
            told = [rows[case.name] for case in CASES if case.name in rows]
            files.write_text(path, json.dumps({"environment": environment, "rows": told}, indent=1) + "\n")
            files.write_text(output / "hostile.md", table(told))
    if wrong:
        raise SyscallLMError(f"{len(wrong)} of {len(chosen)} cases went wrong: {', '.join(wrong)}")


def measure(case: Case, folder: pathlib.Path) -> dict[str, Any]:
    """Reads one case, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path, archive = pathlib.Path(own) / case.name, pathlib.Path(own) / "out.parquet"
        case.write(path)
        size = path.stat().st_size
        run = watching.run(["ingest", str(path), f"--output={archive}", *case.arguments], _MAX_SECONDS)
        path.unlink()
        left = sorted(entry.name for entry in pathlib.Path(own).iterdir())
    said = run.output.strip().replace(f"{own}/", "")
    wrong = ""
    if "Traceback" in said:
        wrong = "a traceback"
    elif run.exit_code not in case.exit_codes:
        wrong = f"exit code {run.exit_code}"
    elif run.exit_code and not (said.startswith("error: ") and "\n" not in said):
        wrong = "not one line of error"
    elif left != ([] if run.exit_code else ["out.parquet"]):
        wrong = f"left {', '.join(left) or 'nothing'}"
    elif run.seconds > _MAX_SECONDS or run.peak_memory_mib > _MAX_MIB:
        wrong = "too long or too large"
    told = said if run.exit_code else next((line for line in said.splitlines() if line.startswith("read:")), "")
    return {
        "case": case.name,
        "arguments": list(case.arguments),
        "bytes": size,
        "exit_code": run.exit_code,
        "seconds": round(run.seconds, 1),
        "peak_memory_mib": round(run.peak_memory_mib),
        "said": told,
        "wrong": wrong,
    }


def _line(row: dict[str, Any]) -> str:
    said = row["said"] if len(row["said"]) <= _SHOWN else row["said"][:_SHOWN] + "..."
    said = said.replace("|", "\\|")
    return (
        f"| {row['case']} | {row['bytes']:,} | {row['exit_code']} | {row['seconds']:,} | {row['peak_memory_mib']:,} "
        f"| {said}{' **wrong: ' + row['wrong'] + '**' if row['wrong'] else ''} |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    lines = [
        f"Made by experiments/hostile.py, commit {commits}, on a shared machine. Memory: of all processes of the "
        "command together, at most.",
        "",
        "| capture | bytes | exit | seconds | memory, MiB | what `ingest` says |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
