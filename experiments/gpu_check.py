"""Everything that only a GPU can tell, in one command: are the kernels right, and how fast are they beside their peers.

  syscall-lm gpu_check --output=results/gpu --archive=adfa.parquet

On an NVIDIA Hopper GPU (the Mosaic kernels need one; on another GPU their rows say so). First every kernel is compared
with the float32 reference, gradients included. Then come speeds: scoring and training of the named shapes
(kernels/shapes.py) beside XLA's scan, cuDNN through PyTorch (if `torch` is installed) and cuDNN through JAX, sweeps of
lanes and configurations, an epoch of 140,000 windows of 10 as in Soni et al., and a whole archive through three
members. Cases are tried one by one: what fails is a row with its error, and the others go on. Rows are written after
each case, so that a run that is cut short leaves what it measured. Speeds are real calls per second, medians of several
rounds after a warm-up; "of peak" is the model's floating-point operations per call over the rate of a large bfloat16
product measured in the same run.

**Nothing here has been measured yet**: no GPU was at hand. It should take some ten minutes.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from syscall_lm import files, scoring
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.benchmarking import gpu_cases, gpu_rows
from syscall_lm.models import language_model, lstm
from syscall_lm.models.store import Member
from syscall_lm.traces.archive import TraceArchive

OUTPUT = flags.DEFINE_string("output", "results/gpu", "directory for gpu.json and table.md")
ARCHIVE = flags.DEFINE_string("archive", "", "trace archive for the three-member ensemble; empty leaves it out")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed", lower_bound=1)
ONLY = flags.DEFINE_string("only", "", "run only the cases whose name holds this")


def main(argv: list[str]) -> None:
    """Runs case after case; writes the rows after each."""
    if argv:
        raise SyscallLMError(f"gpu_check takes flags only; what is {argv[0]!r}?")
    if jax.default_backend() != "gpu":
        raise SyscallLMError(f"gpu_check needs an NVIDIA GPU; this is {jax.devices()[0].device_kind}")
    output = pathlib.Path(OUTPUT.value)
    rows: list[dict[str, Any]] = []
    peak = gpu_rows.matrix_rate()
    every = [*gpu_cases.every(), *([whole_archive(ARCHIVE.value)] if ARCHIVE.value else [])]
    for case in every:
        if ONLY.value in case.name:
            rows.append(gpu_rows.attempt(case, ROUNDS.value, peak))
            result = {"environment": provenance.environment(), "bfloat16_rate": peak, "rows": rows}
            files.write_text(output / "gpu.json", json.dumps(result, indent=1) + "\n")
            files.write_text(output / "table.md", gpu_rows.table_of(result))
            print(gpu_rows.line_of(rows[-1]), flush=True)
    if failed := [row["case"] for row in rows if "error" in row]:
        print(f"{len(failed)} of {len(rows)} cases failed: {'; '.join(failed)}")
    print(f"results: {output / 'gpu.json'}")


def whole_archive(path: str) -> gpu_rows.Case:
    """Every trace of an archive through 1x200, 1x400 and 2x400, from the traces in memory to surprisals in memory."""

    def make() -> Callable[[], Any]:
        archive = TraceArchive(path)
        traces = archive.read().calls
        shapes = [lstm.Shape.parse(text, archive.vocabulary.size) for text in ("1x200", "1x400", "2x400")]
        members = [Member(str(shape), shape, language_model.initialise(jax.random.key(0), shape)) for shape in shapes]
        scorer = scoring.Scorer(members, lanes=2048)
        case.calls = len(traces.calls)
        return lambda: scorer.surprisal(traces)

    case = gpu_rows.Case(f"all of {pathlib.Path(path).name}, three members, end to end", make, target="1 s, aim 0.1 s")
    return case


if __name__ == "__main__":
    command.run(main)
