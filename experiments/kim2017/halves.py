"""The halves of ADFA-LD that the study declares (STUDY.md): who is in which, and a detector's figures on each."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from syscall_lm import evaluation
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import comparison, data
from syscall_lm.experiments.kim2017 import attack_files
from syscall_lm.traces.archive import TraceArchive, TraceBatch
from syscall_lm.traces.trace import ATTACK

BLOCK = 200  # file numbers of normal traces: the even blocks belong to the development half
GROUP = 50  # file numbers that stay in one fold of the development half
FOLDS = 5
NEW = "reported_new"
HEADS = {
    "development": "development",
    "reported": "reported",
    "all": "all",
    "all_without_copies": "all, no copies",
    "reported_without_copies": "reported, no copies",
    NEW: "reported, new processes",
}


def development(ids: np.ndarray, benchmark: data.Benchmark) -> np.ndarray:
    """Bool `[N]`: the development half of a benchmark.

    Args:
      ids: of the normal traces, in the benchmark's order; they end in a file number.
      benchmark: normal traces first.
    """
    even = blocks(ids, benchmark, BLOCK) % 2 == 0
    return np.concatenate([even, np.isin(benchmark.families, attack_files.DEVELOPMENT)])


def blocks(ids: np.ndarray, benchmark: data.Benchmark, size: int) -> np.ndarray:
    """In which block of `size` file numbers each normal trace lies, int `[normal]`; copies where the first one does.

    A file number is what an id's digits end with, at most nine of them; 0 if there are none.
    """
    found = [re.findall(r"[0-9]+", str(name))[-1:] for name in ids]
    numbers = np.array([int(digits[0][-9:]) if digits else 0 for digits in found], int)
    block: dict[bytes, int] = {}
    for i in np.argsort(numbers, kind="stable"):
        block.setdefault(benchmark.traces[int(i)].tobytes(), (int(numbers[i]) - 1) // size)
    return np.array([block[benchmark.traces[i].tobytes()] for i in range(len(ids))], int)


def scopes(benchmark: data.Benchmark, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Which traces each scope of the study holds, bool `[N]` each; `inside`: the development half."""
    return {
        "development": inside,
        "reported": ~inside,
        "all": np.ones(len(inside), bool),
        "all_without_copies": ~benchmark.copies,
        "reported_without_copies": ~inside & ~benchmark.copies,
    }


class Half:
    """A benchmark, the study's halves of it, and who may teach whom.

    Attributes:
      benchmark: the traces, N to judge.
      ids: of the normal traces, `[normal]`.
      processes: the process id of each attack, `[attacks]`.
      development: bool `[N]`.
      groups: int `[N]`, traces that stay in one fold: attacks of a process, normal traces of a block, and copies.
      scopes: those of the study, and `NEW`; bool `[N]` each.
    """

    def __init__(self, benchmark: data.Benchmark, ids: np.ndarray, sources: np.ndarray):
        self.benchmark, attack = benchmark, benchmark.is_attack
        self.ids, self.processes = ids[~attack], attack_files.processes(sources[attack])
        self.development = development(self.ids, benchmark)
        near = [*map(str, blocks(self.ids, benchmark, GROUP)), *(f"process {process}" for process in self.processes)]
        self.groups = _joined(np.unique(near, return_inverse=True)[1], benchmark.traces.distinct()[1])
        self.scopes = scopes(benchmark, self.development)
        strange = ~np.isin(self.groups, self.groups[self.development])
        self.scopes[NEW] = ~self.development & np.where(attack, strange, True)

    def of_attacks(self, values: np.ndarray) -> np.ndarray:
        """Strings of the attacks as a column of all traces, `[attacks]` to `[N]`; empty for normal ones."""
        return np.concatenate([np.full(len(self.ids), "", values.dtype), values])

    @classmethod
    def of(cls, archive: TraceArchive) -> "Half":
        """From an archive with split and file names.

        Raises:
          SyscallLMError: it has no normal traces to learn from, or a half holds too few attacks or normal traces.
        """
        benchmark, batch = data.benchmark(archive), archive.read()
        if not len(benchmark.train):
            raise SyscallLMError(f"{archive.path}: needs normal traces in split 'train'")
        half = cls(benchmark, judged_column(batch, "id"), judged_column(batch, "source"))
        for name, mask in {"development": half.development, "reported": ~half.development}.items():
            attacks, normal = (len(set(half.groups[mask & (benchmark.is_attack == kind)])) for kind in (True, False))
            if min(attacks, normal) < FOLDS:
                raise SyscallLMError(
                    f"{archive.path}: the {name} half holds {attacks} attacked processes and {normal} blocks of normal "
                    f"traces, fewer than {FOLDS}; it is told by ADFA-LD's families and file names"
                )
        return half

    @property
    def reported(self) -> data.Benchmark:
        """The reported half alone."""
        benchmark, mask = self.benchmark, ~self.development
        families = benchmark.families[mask[benchmark.is_attack]]
        normal, attack = (benchmark.traces.take(mask & kind) for kind in (~benchmark.is_attack, benchmark.is_attack))
        return data.Benchmark.of(benchmark.train, normal, attack, families)

    def apart(self, scores: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of normal traces, and of attacks, where `mask` is."""
        return scores[mask & ~self.benchmark.is_attack], scores[mask & self.benchmark.is_attack]

    def folds(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Five times: which traces of the development half teach, which are judged, int each."""
        from sklearn.model_selection import StratifiedGroupKFold  # slow to load

        inside = np.flatnonzero(self.development)
        split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for teach, judge in split.split(inside, self.benchmark.is_attack[inside], self.groups[inside]):
            yield inside[teach], inside[judge]


def _joined(*labels: np.ndarray) -> np.ndarray:
    """Numbers of the finest groups that keep together what any of the labels joins, int `[N]`."""
    from scipy.sparse import coo_array  # slow to load
    from scipy.sparse.csgraph import connected_components

    count = len(labels[0])
    starts = count + np.cumsum([0, *(each.max(initial=-1) + 1 for each in labels)])
    ends = np.concatenate([each + start for each, start in zip(labels, starts, strict=False)])
    edges = (np.tile(np.arange(count), len(labels)), ends)
    graph = coo_array((np.ones(len(ends), bool), edges), shape=(starts[-1], starts[-1]))
    return connected_components(graph, directed=False)[1][:count]


def judged_column(batch: TraceBatch, name: str) -> np.ndarray:
    """A column of the traces that `data.benchmark` judges, in its order, str `[N]`."""
    attack = (batch.column("split") != "train") & (batch.column("label") == ATTACK)
    values = batch.column(name).astype(str)
    return np.concatenate([values[data.normal_split(batch, "test")], values[attack]])


def by_scope(
    scores: np.ndarray, benchmark: data.Benchmark, masks: Mapping[str, np.ndarray], full: bool
) -> dict[str, Any]:
    """For each scope: `evaluation.summary` if `full`, otherwise AUC and false alarms at detection rates only."""
    found = {}
    for scope, mask in masks.items():
        normal, attack = scores[mask & ~benchmark.is_attack], scores[mask & benchmark.is_attack]
        if full:
            found[scope] = evaluation.summary(normal, attack, benchmark.families[mask[benchmark.is_attack]])
        else:
            roc = evaluation.curve(normal, attack)
            alarms = {f"{rate:g}": roc.false_alarms_at(rate) for rate in evaluation.DETECTION_RATES}
            found[scope] = {"auc": roc.auc, "false_alarms_at_detection": alarms}
    return found


def report(name: str, runs: list[dict[str, Any]]) -> None:
    """Progress; the development half only."""
    print(f"  {name}: AUC {runs[-1]['development']['auc']:.3f} on the development half", file=sys.stderr, flush=True)


def rows(found: Mapping[str, Any]) -> list[str]:
    """A row a detector, a column a scope: AUC, and in brackets the false alarm rate at 90 % detection."""
    first = next(iter(found.values()))["runs"][0]
    shown = [scope for scope in HEADS if scope in first]
    lines = ["| | " + " | ".join(HEADS[scope] for scope in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, value in found.items():
        cells = []
        for scope in shown:
            runs = [run[scope] for run in value["runs"]]
            auc = comparison.spread([run["auc"] for run in runs], ".3f")
            alarms = comparison.spread([100 * run["false_alarms_at_detection"]["0.9"] for run in runs], ".1f")
            cells.append(f"{auc} ({alarms} %)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def interval_rows(found: Mapping[str, Any]) -> list[str]:
    """A row a detector: AUC with its bootstrap interval, false alarms at 95 % detection, on two scopes."""
    lines = ["| | reported | FA@95 % | all | FA@95 % |", "|---|---|---|---|---|"]
    for name, value in found.items():
        cells = []
        for scope in ("reported", "all"):
            runs = [run[scope] for run in value["runs"]]
            low, high = np.mean([run["auc_interval"] for run in runs], axis=0)
            auc = comparison.spread([run["auc"] for run in runs], ".3f")
            alarms = comparison.percent(run["false_alarms_at_detection"]["0.95"] for run in runs)
            cells += [f"{auc} ({low:.3f} to {high:.3f})", alarms]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
