"""Kim et al., section 3.3 and figure 4: a model of one host scores another, its calls mapped by name.

  syscall-lm kim2017.portability --mit=mit_normal.parquet,mit_attack.parquet --unm=unm_normal.parquet,unm_attack.parquet

The paper trains one layer of 200 cells on KDD98's normal traces: AUC 0.994 there (2.3 % false alarms at 100 %
detection) and 0.969 on UNM's lpr (5.5 % at 99.8 %), close to a model trained on UNM. Here MIT's lpr and UNM's lpr stand
for the two hosts, each way, beside the model trained at the place (archives: see kim2017.table1). KDD98 itself is not
available; with --kdd98_dir its rows are run, too.

"lstm" is trained here (--member, --epochs), by the default recipe of `train`; any other detector is of the catalogue.
Half a minute on two cores for the others; the LSTM needs about half an hour with its defaults.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from absl import flags

from syscall_lm import evaluation, files, training
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.kim2017 import comparison
from syscall_lm.experiments.kim2017.hosts import Host
from syscall_lm.reports import figures

LSTM = "lstm"
NOT_RUN = "not run: no data"

MIT = flags.DEFINE_list("mit", [], "archives of MIT's lpr: normal traces, attacks")
UNM = flags.DEFINE_list("unm", [], "archives of UNM's lpr: normal traces, attacks")
KDD98_DIR = flags.DEFINE_string("kdd98_dir", "", "folder of KDD98's audit files and bsm.list, if you have them")
DETECTORS = flags.DEFINE_list("detectors", [LSTM, "ngram", "stide"], f"{LSTM}, or names of the catalogue")
MEMBER = flags.DEFINE_string("member", "1x200", "the language model to train, LAYERSxCELLS")
EPOCHS = flags.DEFINE_integer("epochs", training.Recipe.epochs, "passes over the training traces, at most")
SEED = flags.DEFINE_integer("seed", 0, "of the split and of everything random", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", "results/kim2017", "directory for portability.json, .md and .png")


def main(argv: list[str]) -> None:
    """Trains on each host, scores each host, writes."""
    if argv:
        raise SyscallLMError(f"kim2017.portability takes flags only; what is {argv[0]!r}?")
    hosts = [
        Host.read(name, paths, SEED.value) for name, paths in (("MIT lpr", MIT.value), ("UNM lpr", UNM.value)) if paths
    ]
    if KDD98_DIR.value:
        hosts.append(Host.kdd98(KDD98_DIR.value, SEED.value))
    if not hosts:
        raise SyscallLMError("kim2017.portability needs a host: --mit, --unm or --kdd98_dir")
    rows: list[dict[str, Any]] = []
    curves: dict[str, evaluation.Curve] = {}
    for source in hosts:
        for name in DETECTORS.value:
            detector = make(name, source.vocabulary.size).fit(source.train)
            for target in hosts:
                row, curve = transfer(detector, source, target)
                rows.append({"detector": name, **row})
                if name == DETECTORS.value[0]:
                    curves[f"{source.name} -> {target.name}"] = curve
                print(f"  {name}, {source.name} -> {target.name}: AUC {curve.auc:.3f}", file=sys.stderr, flush=True)
    if not KDD98_DIR.value:
        rows += [{"source": "KDD98", "target": target, "status": NOT_RUN} for target in ("KDD98", "UNM lpr")]
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "portability.png") as temporary:
        figures.save(figures.roc(curves), temporary)
    comparison.write(output, "portability", main, {"rows": rows}, table(rows))


def make(name: str, vocabulary_size: int) -> Detector:
    """A detector of the catalogue, or the language model that this experiment trains."""
    if name == LSTM:
        recipe = dataclasses.replace(training.Recipe(), epochs=EPOCHS.value, seed=SEED.value)
        return LanguageModelDetector(vocabulary_size, (MEMBER.value,), recipe, "average")
    (detector,) = catalogue.build([name], vocabulary_size, seed=SEED.value).values()
    return detector


def transfer(detector: Detector, source: Host, target: Host) -> tuple[dict[str, Any], evaluation.Curve]:
    """Scores the target's validation traces and attacks by a detector of the source; ids are mapped by name."""
    table = source.vocabulary.map_from(target.vocabulary)
    benchmark = data.Benchmark.of(
        source.train, target.validation.translate(table), target.attack.translate(table), target.families
    )
    scores = detector.decision_function(benchmark.traces)
    curve = evaluation.curve(scores[~benchmark.is_attack], scores[benchmark.is_attack])
    row = {
        "source": source.name,
        "target": target.name,
        "status": "run",
        "unmapped_calls": float((benchmark.traces.calls == source.vocabulary.unk).mean()),
        "false_alarms_at_detection_0.998": curve.false_alarms_at(0.998),
        "false_alarms_at_detection_1": curve.false_alarms_at(1.0),
        **benchmark.summaries(scores),
    }
    return row, curve


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each detector, source and target, as Markdown."""
    lines = [
        "FA@d: false alarm rate at detection rate d. Without copies: without validation traces that equal one that the "
        "detector learned from.",
        "",
        "| detector | learned on | scores | AUC (95 % interval) | FA@90 % | FA@99.8 % | FA@100 % | AUC without copies "
        "| calls without a name there |",
        "|---" * 9 + "|",
    ]
    for row in sorted(rows, key=lambda row: row["target"]):
        if row["status"] != "run":
            lines.append(f"| | {row['source']} | {row['target']} | {row['status']} | | | | | |")
            continue
        everything = row["all"]
        low, high = everything["auc_interval"]
        rates = (
            everything["false_alarms_at_detection"]["0.9"],
            row["false_alarms_at_detection_0.998"],
            row["false_alarms_at_detection_1"],
        )
        lines.append(
            f"| {row['detector']} | {row['source']} | {row['target']} | "
            f"{everything['auc']:.3f} ({low:.3f} to {high:.3f}) | "
            + " | ".join(f"{100 * rate:.1f} %" for rate in rates)
            + f" | {row['without_copies']['auc']:.3f} | {100 * row['unmapped_calls']:.2f} % |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
