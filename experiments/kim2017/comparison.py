"""What the experiments of this folder share: detectors over seeds, tables, and results that name no folders."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from syscall_lm import files
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import Detector
from syscall_lm.experiments import provenance
from syscall_lm.experiments.data import Benchmark
from syscall_lm.models.store import Member

RATES = ("0.9", "0.95", "0.99")


def compare(
    names: Iterable[str],
    benchmark: Benchmark,
    vocabulary_size: int,
    seeds: Iterable[int],
    members: Iterable[Member] = (),
) -> dict[str, dict[str, Any]]:
    """Fits detectors of the catalogue on the training traces and scores the others; random ones once a seed.

    Returns:
      for each detector its runs (a run: seed, seconds, and the summaries of `Benchmark.summaries`).
    """
    seeds, members = tuple(seeds), tuple(members)
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        for seed in seeds if name in catalogue.RANDOM else seeds[:1]:
            for full_name, detector in catalogue.build([name], vocabulary_size, members, seed).items():
                run = {"seed": seed, **timed_run(detector, benchmark)}
                results.setdefault(full_name, {"runs": []})["runs"].append(run)
                print(f"  {full_name}, seed {seed}: AUC {run['all']['auc']:.3f}", file=sys.stderr, flush=True)
    return results


def timed_run(detector: Detector, benchmark: Benchmark) -> dict[str, Any]:
    """Fits and scores one detector: seconds of both, and the summaries."""
    started = time.monotonic()
    detector.fit(benchmark.train)
    fitted = time.monotonic()
    scores = detector.decision_function(benchmark.traces)
    seconds = {"fit_seconds": round(fitted - started, 2), "score_seconds": round(time.monotonic() - fitted, 2)}
    return {**seconds, **benchmark.summaries(scores)}


def rows(results: Mapping[str, Mapping[str, Any]], which: str) -> list[str]:
    """A Markdown table, a row a detector: AUC with interval, false alarms at detection rates.

    A detector with several runs shows mean and standard deviation over the seeds; the interval is the first seed's.

    Args:
      results: what `compare` returns.
      which: "all" or "without_copies".
    """
    lines = ["| detector | AUC | 95 % interval | FA@90 % | FA@95 % | FA@99 % |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        runs = [run[which] for run in result["runs"]]
        low, high = runs[0]["auc_interval"]
        rates = [
            _spread([100 * run["false_alarms_at_detection"][rate] for run in runs], ".1f") + " %" for rate in RATES
        ]
        auc = _spread([run["auc"] for run in runs], ".3f")
        lines.append(f"| {name} | {auc} | {low:.3f} to {high:.3f} | {' | '.join(rates)} |")
    return lines


def family_rows(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A Markdown table of the AUC by attack family, over all normal traces."""
    families = next(iter(results.values()))["runs"][0]["all"]["families"]
    lines = ["| detector | " + " | ".join(f"{name} ({value['attacks']})" for name, value in families.items()) + " |"]
    lines.append("|---" * (len(families) + 1) + "|")
    for name, result in results.items():
        cells = [_spread([run["all"]["families"][f]["auc"] for run in result["runs"]], ".3f") for f in families]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _spread(values: list[float], form: str) -> str:
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{form}}"


def write(output: pathlib.Path, name: str, main: Callable[..., None], result: Mapping[str, Any], text: str) -> None:
    """Writes NAME.json (with configuration and environment) and NAME.md, and prints the latter."""
    settings = {key: _last_part(value) for key, value in provenance.configuration(main).items() if key != "output"}
    value = {**result, "configuration": settings, "environment": provenance.environment()}
    files.write_text(output / f"{name}.json", json.dumps(value, indent=1) + "\n")
    files.write_text(output / f"{name}.md", text)
    print(text)
    print(f"results: {output / name}.json")


def _last_part(value: Any) -> Any:
    """A path without its folders: results are to be the same wherever the data lies."""
    if isinstance(value, list):
        return [_last_part(part) for part in value]
    return pathlib.PurePath(value).name if isinstance(value, str) and "/" in value else value
