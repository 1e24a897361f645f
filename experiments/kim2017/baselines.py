"""Kim et al., section 3.2: what the language model is compared with, every detector that needs no neural network.

  syscall-lm kim2017.baselines --archive=adfa.parquet --output=results/kim2017

ADFA-LD's official split (make the archive by `ingest ADFA-LD.zip`): learns from 833 normal traces, judges 4,372 normal
ones and 746 attacks. The paper quotes false alarms at 90 % detection from Creech & Hu (2014): extreme learning machine
13 %, STIDE 23 %, HMM 42 %, and 16 % for its own ensemble, and prints no figure for kNN on hand-made features. Known
independently of this code: STIDE with windows of 6, AUC 0.827 and 26.7 %; n-grams of order 8, AUC 0.844 and 23.3 %;
their calmest 75 calls 0.869.

The column "chosen on" says which detectors were shaped by attacks (syscall_lm/detectors/catalogue.py); the others by
none. What padding leaves of each AUC stands beside it where kim2017.mimicry left its results in the same folder.
Detectors that are random run once a seed. One to two minutes on one core.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from syscall_lm.detectors import catalogue
from syscall_lm.experiments import command, comparison, data
from syscall_lm.experiments.kim2017 import results
from syscall_lm.traces.archive import TraceArchive

ARCHIVE = flags.DEFINE_string("archive", None, "labelled traces with the splits train and test", required=True)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for baselines.json and baselines.md")
DETECTORS = flags.DEFINE_list(
    "detectors",
    [name for name in catalogue.QUICK if name in catalogue.ALONE],
    "names from syscall_lm/detectors/catalogue.py",
)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "for the detectors that are random")


def main() -> None:
    """Fits, scores, writes the figures."""
    seeds, names = comparison.parse_seeds(SEEDS.value), comparison.parse_detectors(DETECTORS.value)
    archive = TraceArchive(ARCHIVE.value)
    benchmark = data.benchmark(archive)
    result = {
        "archive": archive.path.name,
        "traces": {"train": len(benchmark.train), **benchmark.counts},
        "data": data.fingerprint(benchmark.traces),
        "detectors": comparison.compare(names, benchmark, archive.vocabulary.size, dict.fromkeys(seeds, ())),
    }
    results.write(pathlib.Path(OUTPUT.value), "baselines", main, result, table)


def table(result: Mapping[str, Any]) -> str:
    """The figures of all detectors, as Markdown."""
    return "\n".join([results.traces_line(result), "", *results.detector_tables(result)]) + "\n"


if __name__ == "__main__":
    command.run(main)
