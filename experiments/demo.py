"""The main job on the embedded corpus: train, score, evaluate, report. For a first look; about two minutes.

  syscall-lm demo --output=demo

Runs the commands that it prints, one after another; each can be typed by hand. The corpus was recorded by this project
(syscall_lm/corpus/README.md): ordinary programs, and harmless re-enactments of intrusions. It shows how the system
works. It is a demonstration, not a benchmark, and its figures say nothing about other hosts.
"""

import pathlib
import shlex
import subprocess
import sys

from absl import flags

from syscall_lm import corpus
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command

OUTPUT = flags.DEFINE_string("output", "demo", "directory for the model, the scores, the results and the report")
MEMBERS = flags.DEFINE_string("members", "1x96,1x128,1x160", "language models to train; small ones, to be quick")
EPOCHS = flags.DEFINE_integer("epochs", 10, "passes over the training traces")


def main() -> None:
    """Runs the steps."""
    output = pathlib.Path(OUTPUT.value)
    archive, model, scores = corpus.path(), output / "model", output / "scores.parquet"
    print(f"The embedded corpus ({archive}): a demonstration, not a benchmark.")
    _step("train", archive=archive, model=model, members=MEMBERS.value, epochs=EPOCHS.value, dropout=0.2)
    _step("score", model=model, archive=archive, output=scores, top=5)
    _step("evaluate", model=model, archive=archive, output=output / "results")
    _step("report", model=model, archive=archive, scores=scores, output=output / "report")
    print(f"\nopen {(output / 'report' / 'report.html').absolute()} in a browser")


def _step(name: str, **values: object) -> None:
    arguments = [f"--{flag}={value}" for flag, value in values.items()]
    print("\n$ " + shlex.join(["syscall-lm", name, *arguments]), flush=True)
    finished = subprocess.run([sys.executable, "-m", "syscall_lm.experiments", name, *arguments], check=False)
    if finished.returncode:
        raise SyscallLMError(f"the step {name!r} failed with exit code {finished.returncode}; see above")


if __name__ == "__main__":
    command.run(main)
