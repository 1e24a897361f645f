"""Kim et al., table 1: the data sets as read here, beside the paper's numbers, and why they differ.

  syscall-lm kim2017.table1 --adfa=adfa.parquet --mit=mit_normal.parquet,mit_attack.parquet \
      --unm=unm_normal.parquet,unm_attack.parquet --output=results/kim2017

The archives come from `ingest`: ADFA-LD.zip; MIT's traces.tar.gz and exploit-ai.int.gz; UNM's lpr-normal-10.txt,
lpr-normal-11.txt with synthetic-lpr-syn.int, and exploit-unm.int.gz; --format=unm --mapping=syscallMap.txt
--numbering=A, with --label=normal or --label=attack --family=lprcp. The paper: ADFA-LD 833 + 4,372 normal traces, 746
attacks of 6 types; KDD98 1,364 + 5,459 and 41 of 10; UNM-lpr 627 + 3,136 and 2,002 of 1. Seconds.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.kim2017 import results
from syscall_lm.experiments.kim2017.attack_files import recurring_processes
from syscall_lm.experiments.kim2017.hosts import Host
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import ATTACK, Sequences

PAPER = {"ADFA-LD": (833, 4372, 6, 746), "KDD98": (1364, 5459, 10, 41), "UNM-lpr": (627, 3136, 1, 2002)}
WHY = {
    "ADFA-LD": "the same traces. An attack trace is one process of an attack, of which 60 were made.",
    "KDD98": "the Solaris audit files are not available here; --kdd98_dir and --kdd98_events read them.",
    "UNM-lpr": "of UNM's live normal traces (1,234 files) only 571 runs in two files are available here. MIT's live "
    "traces, the synthetic ones and both attacks are complete; a file without calls is no trace. With all of UNM's "
    "files there would be 3,940 normal traces, 177 more than the paper's 3,763: what it left out, it does not say.",
}

ADFA = flags.DEFINE_string("adfa", None, "archive of ADFA-LD", required=True)
MIT = flags.DEFINE_list("mit", [], "archives of MIT's lpr: normal traces, attacks")
UNM = flags.DEFINE_list("unm", [], "archives of UNM's lpr: normal traces, attacks")
KDD98_DIR = flags.DEFINE_string("kdd98_dir", "", "folder of KDD98's audit files and bsm.list, if you have them")
KDD98_EVENTS = flags.DEFINE_string("kdd98_events", "", "the audit_event file that names their events")
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for table1.json and table1.md")
SEED = flags.DEFINE_integer("seed", 0, "draws the sixth of the normal traces to learn from", lower_bound=0)


def main() -> None:
    """Counts and writes."""
    archive = TraceArchive(ADFA.value)
    benchmark = data.benchmark(archive)
    if not len(benchmark.train) or benchmark.is_attack.all() or not benchmark.is_attack.any():
        raise SyscallLMError(
            f"{archive.path}: not ADFA-LD's archive: it has no split train, no normal tests, or no attack"
        )
    if KDD98_EVENTS.value and not KDD98_DIR.value:
        raise SyscallLMError("--kdd98_events names the events of audit files; say where these are with --kdd98_dir")
    normal, attack = (benchmark.traces.take(part) for part in (~benchmark.is_attack, benchmark.is_attack))
    rows: dict[str, Any] = {"ADFA-LD": counts(benchmark.train, normal, attack, benchmark.families)}
    rows["KDD98"] = (
        of_host(Host.kdd98(KDD98_DIR.value, KDD98_EVENTS.value, SEED.value)) if KDD98_DIR.value else "not run: no data"
    )
    lpr = [*MIT.value, *UNM.value]
    rows["UNM-lpr"] = of_host(Host.read("UNM-lpr", lpr, SEED.value)) if lpr else "not run: no data"
    batch = archive.read()
    attacks = batch.column("label") == ATTACK
    recurring = recurring_processes(
        batch.column("source")[attacks].astype(str), batch.column("family")[attacks].astype(str)
    )
    paper = {name: list(values) for name, values in PAPER.items()}
    result = {"data_sets": rows, "paper": paper, "why": WHY, "recurring_processes": recurring}
    results.write(pathlib.Path(OUTPUT.value), "table1", main, result, table)


def of_host(host: Host) -> dict[str, int]:
    """`counts` of a host's traces."""
    return counts(host.train, host.validation, host.attack, host.families)


def counts(train: Sequences, validation: Sequences, attack: Sequences, families: np.ndarray) -> dict[str, int]:
    """Traces, calls and distinct traces of each part, and validation traces that copy a training trace."""
    parts = {"train": train, "validation": validation, "attack": attack}
    found = {"types": len(set(families)), "copies": int(data.copies_of(train, validation).sum())}
    for name, part in parts.items():
        found |= {name: len(part), f"{name}_calls": len(part.calls), f"{name}_distinct": len(part.distinct()[0])}
    return found


def table(result: dict[str, Any]) -> str:
    """The data sets as Markdown; in brackets the paper's numbers."""
    lines = ["In brackets the numbers of Kim et al., table 1.", ""]
    lines += ["| data set | training | validation | copies of training | attack types | attacks | calls | distinct |"]
    lines += ["|---" * 8 + "|"]
    for name, row in result["data_sets"].items():
        train, validation, types, attacks = PAPER[name]
        if isinstance(row, str):
            lines.append(f"| {name} | {row} ({train:,}) | ({validation:,}) | | ({types}) | ({attacks:,}) | | |")
            continue
        calls, distinct = (
            " / ".join(f"{row[f'{part}_{what}']:,}" for part in ("train", "validation", "attack"))
            for what in ("calls", "distinct")
        )
        lines.append(
            f"| {name} | {row['train']:,} ({train:,}) | {row['validation']:,} ({validation:,}) | {row['copies']:,} | "
            f"{row['types']} ({types}) | {row['attack']:,} ({attacks:,}) | {calls} | {distinct} |"
        )
    lines += ["", *(f"{name}: {why}" for name, why in WHY.items())]
    if found := result.get("recurring_processes"):
        frequent = ", ".join(f"{process} ({count})" for process, count in found["frequent"].items())
        lines += [
            "",
            f"Of ADFA-LD's {found['attacks']} attack traces {found['recurring']} end in a number, presumably a process "
            f"id, that occurs in several recordings; most often {frequent}. Of the families outside the study's "
            f"development half {100 * found['shared_with_development']:.0f} % have one that occurs within it.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
