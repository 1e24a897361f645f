"""What experiments that compare detectors share: detectors over seeds, their ROC curves, and tables."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from syscall_lm import evaluation
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments.data import Benchmark
from syscall_lm.models.store import Member

DETECTIONS = tuple(f"{rate:g}" for rate in evaluation.DETECTION_RATES)
FALSE_ALARMS = tuple(f"{rate:g}" for rate in evaluation.FALSE_ALARM_RATES)
# At which a run keeps its ROC curve: finer where alarms are few.
FALSE_ALARM_RATES = np.concatenate([np.arange(50) / 1000, np.arange(10, 201) / 200])

Results = dict[str, dict[str, Any]]  # detector -> {"runs": [what `timed_run` returns, with the seed, ...]}


def parse_seeds(values: Sequence[str]) -> list[int]:
    """Seeds from a flag.

    Raises:
      SyscallLMError: none, not whole numbers, or one twice.
    """
    if not values or not all(seed.isdecimal() and int(seed) < 2**32 for seed in values):
        raise SyscallLMError(f"--seeds={','.join(values)}: expected whole numbers below 2^32, like 0,1,2")
    seeds = [int(seed) for seed in values]
    if len(set(seeds)) < len(seeds):
        raise SyscallLMError(f"--seeds={','.join(values)}: a seed that stands twice would count twice")
    return seeds


def parse_detectors(values: Sequence[str], known: Sequence[str] = catalogue.NAMES) -> list[str]:
    """Names of detectors from a flag, all of them `known`.

    Raises:
      SyscallLMError: none, an unknown one, or one twice.
    """
    if not values:
        raise SyscallLMError(f"--detectors: name at least one of {', '.join(known)}")
    for name in values:
        catalogue.require_known(name, known)
        if values.count(name) > 1:
            raise SyscallLMError(f"--detectors={','.join(values)}: {name} stands twice")
    return list(values)


def compare(
    names: Iterable[str],
    benchmark: Benchmark,
    vocabulary_size: int,
    members: Mapping[int, Sequence[Member]],
    results: Results | None = None,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Fits detectors of the catalogue on the training traces and scores the others.

    Detectors that are random, or look into trained members, run once a seed; the others once.

    Args:
      names: of the catalogue.
      benchmark: the traces.
      vocabulary_size: V.
      members: for each seed the language models that were trained with it; empty where no detector needs them.
      results: of an interrupted comparison; what it holds is not run again.
      keep: is called with all results after each run.
    """
    results = {} if results is None else results
    for number, (seed, trained) in enumerate(members.items()):
        chosen = [n for n in names if not number or n not in catalogue.ALONE or n in catalogue.RANDOM]
        detectors = catalogue.build(chosen, vocabulary_size, trained, seed)
        while detectors:
            name = next(iter(detectors))
            detector = detectors.pop(name)  # what it holds is free when it is done
            runs = results.setdefault(name, {"runs": []})["runs"]
            if all(run["seed"] != seed for run in runs):
                runs.append({"seed": seed, **timed_run(detector, benchmark, seed)})
                keep(results)
                print(f"  {name}, seed {seed}: AUC {runs[-1]['all']['auc']:.3f}", file=sys.stderr, flush=True)
    return results


def timed_run(detector: Detector, benchmark: Benchmark, seed: int) -> dict[str, Any]:
    """Fits and scores one detector: seconds of both, the summaries, and detection at `FALSE_ALARM_RATES`."""
    started = time.monotonic()
    benchmark.fit(detector, seed)
    fitted = time.monotonic()
    scores = detector.decision_function(benchmark.traces)
    seconds = {"fit_seconds": round(fitted - started, 2), "score_seconds": round(time.monotonic() - fitted, 2)}
    return {**seconds, **summaries(scores, benchmark)}


def summaries(scores: np.ndarray, benchmark: Benchmark) -> dict[str, Any]:
    """What `Benchmark.summaries` gives, and detection at `FALSE_ALARM_RATES`."""
    curve = curve_of(scores, benchmark)
    return {
        **benchmark.summaries(scores),
        "roc": [round(curve.detection_at(rate), 4) for rate in FALSE_ALARM_RATES],
    }


def curve_of(scores: np.ndarray, benchmark: Benchmark) -> evaluation.Curve:
    """The ROC curve of scores `[N]` of all traces."""
    return evaluation.curve(scores[~benchmark.is_attack], scores[benchmark.is_attack])


def draw_roc(axes: Axes, runs: Sequence[Mapping[str, Any]], **style: Any) -> None:
    """Draws the mean curve of a detector's runs, and in its shade what they span."""
    curves = np.array([run["roc"] for run in runs])
    axes.plot(FALSE_ALARM_RATES, curves.mean(axis=0), lw=1.4, **style)
    if len(curves) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(FALSE_ALARM_RATES, low, high, color=style["color"], alpha=0.15, lw=0)


def tables(
    results: Mapping[str, Mapping[str, Any]],
    detections: bool = False,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """The figures of all detectors as Markdown: with and without copies of training traces, and by attack family.

    Args:
      results: what `compare` returns.
      detections: see `rows`.
      columns: see `rows`; they stand in the first table only.
    """
    return [
        *("### All normal traces", "", *rows(results, "all", detections, columns)),
        *("", "### Without copies of training traces", "", *rows(results, "without_copies", detections)),
        *("", "### AUC by attack family, all normal traces", "", *family_rows(results)),
    ]


LEGEND = (
    "FA@d: false alarm rate at detection rate d. ±: standard deviation over the seeds. The interval is a bootstrap "
    "over traces, its bounds averaged over the seeds."
)


def rows(
    results: Mapping[str, Mapping[str, Any]],
    which: str,
    detections: bool = False,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """A Markdown table, a row a detector: AUC with interval, false alarms at detection rates.

    Args:
      results: what `compare` returns.
      which: "all" or "without_copies".
      detections: whether to add detection rates at false alarm rates.
      columns: more of them: title -> detector -> cell.
    """
    columns = columns or {}
    titles = ["detector", "AUC", "95 % interval", *(f"FA@{100 * float(rate):g} %" for rate in DETECTIONS)]
    titles += [f"D@{100 * float(rate):g} %" for rate in FALSE_ALARMS] * detections
    titles += columns
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, result in results.items():
        runs = [run[which] for run in result["runs"]]
        low, high = np.mean([run["auc_interval"] for run in runs], axis=0)
        cells = [name, spread([run["auc"] for run in runs], ".3f"), f"{low:.3f} to {high:.3f}"]
        cells += [percent(run["false_alarms_at_detection"][rate] for run in runs) for rate in DETECTIONS]
        if detections:
            cells += [percent(run["detection_at_false_alarms"][rate] for run in runs) for rate in FALSE_ALARMS]
        cells += [column.get(name, "") for column in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def family_rows(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A Markdown table of the AUC by attack family, over all normal traces."""
    families = next(iter(results.values()))["runs"][0]["all"]["families"]
    titles = [f"{name or 'unnamed'} ({value['attacks']})" for name, value in families.items()]
    lines = [f"| detector | {' | '.join(titles)} |", "|---" * (len(families) + 1) + "|"]
    for name, result in results.items():
        cells = [spread([run["all"]["families"][f]["auc"] for run in result["runs"]], ".3f") for f in families]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    """Mean and, of several values, the standard deviation."""
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{form}}"


def exceeds(one: Sequence[float], other: Sequence[float]) -> bool | None:
    """Whether the mean over seeds is higher; None if means differ by no more than either standard deviation."""
    difference = np.mean(one) - np.mean(other)
    deviations = [np.std(values, ddof=1) for values in (one, other) if len(values) > 1]
    return None if abs(difference) <= max(deviations, default=0.0) else bool(difference > 0)


def percent(rates: Iterable[float]) -> str:
    """`spread` of rates, in per cent."""
    return spread([100 * rate for rate in rates], ".1f") + " %"
