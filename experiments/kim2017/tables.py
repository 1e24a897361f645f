"""Writes the tables of this folder's experiments again from their results, without running anything. Seconds.

  syscall-lm kim2017.tables --output=results/kim2017

For each NAME.json that one of them left in the folder: NAME.md (of study.json: study_table.md). So a table that shows
what another experiment found (baselines and figure 3: what padding does, by kim2017.mimicry) comes up to date.
"""

import importlib
import pathlib

from absl import flags

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.experiments.kim2017 import results

NAMES = (
    "table1",
    "baselines",
    "figure3",
    "states",
    "recipes",
    "portability",
    "embeddings",
    "mimicry",
    "study",
    "taught",
)

OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory with the results")


def main() -> None:
    """Reads results, writes tables."""
    folder = pathlib.Path(OUTPUT.value)
    found = [name for name in NAMES if (folder / f"{name}.json").exists()]
    if not found:
        raise SyscallLMError(f"{folder}: holds no results; expected {', '.join(f'{name}.json' for name in NAMES)}")
    flags.FLAGS.remove_flag_values([OUTPUT.name])
    for name in found:
        module = importlib.import_module(f"{__package__}.{name}")
        results.write_table(folder, name, results.read(folder / f"{name}.json"), module.table)
        # Each experiment has an --archive of its own, which would clash with the next one's.
        flags.FLAGS.remove_flag_values([flag.name for flag in command.own_flags(module)])
        print(f"{name}: written")


if __name__ == "__main__":
    command.run(main)
