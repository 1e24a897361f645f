"""Everything that only a GPU can tell, in one command: are the kernels right, and how fast are they beside their peers.

  syscall-lm gpu_check --output=results/gpu/h100 --archive=adfa.parquet --model=runs/adfa

On an NVIDIA Hopper GPU (the Mosaic kernels need one; on another GPU their rows say so). First every kernel is compared
with the float32 reference, gradients included, and a trained model's scores and AUC with those in float32. Then come
speeds: an epoch of 140,000 windows of 10 as in Soni et al., a whole archive through three members, and for how much of
that time the GPU works (by a profile), training and scoring
of the named shapes (kernels/shapes.py) beside XLA's scan, cuDNN through PyTorch (if `torch` is installed), cuDNN
through JAX and Flax, and a sweep of the kernel's configurations. What does the same work is prepared side by side,
since a core of the host compiles a kernel for 5 to 30 seconds and PyTorch's first call takes as long; then it is timed
in turn, and its row tells the best peer's time over its own. What fails is a row with its error, and the others go on;
the command then ends with exit code 2, as it does where a kernel differs by more than its bound. Rows are written after
each kind of work, so that a run that is cut short leaves what it measured. Speeds are real calls per second, medians of
several rounds after a warm-up; "of peak" is the model's floating-point operations per call over the rate of a large
bfloat16 product measured in the same run.

Measured on an H200 and an H100 in 2026 (results/gpu), by cases in several processes; all in one takes the better part
of an hour.
--only chooses, and can stand several times: --only=check leaves out all that is timed.
"""

import json
import os
import pathlib
from typing import Any

import jax
from absl import flags

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.benchmarking import gpu_cases, gpu_rows
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled

OUTPUT = flags.DEFINE_string("output", "results/gpu", "directory for gpu.json and table.md")
ARCHIVE = flags.DEFINE_string("archive", "", "trace archive for the three-member ensemble; empty leaves it out")
MODEL = flags.DEFINE_string("model", "", "model directory that `train` made on --archive; empty for none")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed", lower_bound=1)
ONLY = flags.DEFINE_multi_string("only", [], "run only cases whose name holds this, like check, train or 'score 1x200'")


def main() -> None:
    """Runs case after case; writes the rows after each."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the memory
    if jax.default_backend() != "gpu":
        raise SyscallLMError(f"gpu_check needs an NVIDIA GPU; this is {jax.devices()[0].device_kind}")
    if jax.device_count() > 1:
        raise SyscallLMError(f"gpu_check measures one GPU, and here are {jax.device_count()}: CUDA_VISIBLE_DEVICES=0")
    if MODEL.value and not ARCHIVE.value:
        raise SyscallLMError(f"--model={MODEL.value} needs the --archive whose traces it is to score")
    output = pathlib.Path(OUTPUT.value)
    rows: list[dict[str, Any]] = []
    peak = gpu_rows.matrix_rate()
    every = gpu_cases.every(ARCHIVE.value, MODEL.value)
    wanted = [case for case in every if any(part in case.name for part in ONLY.value or [""])]
    with profiled():
        for group in gpu_rows.grouped(wanted):
            found = gpu_rows.attempt(group, ROUNDS.value, peak)
            rows += found
            result = {"environment": provenance.environment(), "bfloat16_rate": peak, "rows": rows}
            files.write_text(output / "gpu.json", json.dumps(result, indent=1) + "\n")
            files.write_text(output / "table.md", gpu_rows.table_of(result))
            print("\n".join(map(gpu_rows.line_of, found)), flush=True)
    print(f"results: {output / 'gpu.json'}")
    if failed := [row["case"] for row in rows if gpu_rows.failed(row)]:
        raise SyscallLMError(f"{len(failed)} of {len(rows)} cases failed or differ too much: {'; '.join(failed)}")


if __name__ == "__main__":
    command.run(main)
