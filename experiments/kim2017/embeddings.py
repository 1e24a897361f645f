"""Kim et al., section 3.4 and figure 5: the calls' embeddings, drawn by t-SNE and measured by nearest neighbours.

  syscall-lm kim2017.embeddings --archive=adfa.parquet --models=runs/seed0,runs/seed1,runs/seed2

The paper shows a picture and says that calls of like purpose lie together: read and write, open and close, the calls
that wait, those on symbolic links, the stat family, pipe and pipe2, and that read to write is about the same step as
open to close. Here each of these claims is a number, too: at which place among a call's neighbours its partners stand,
in the embedding itself, for every member of every model. By chance the mean place among n calls would be n / 2.
Distances are cosine, and Euclidean beside it: training moves the embedding of a rare call little from where it was
born, near zero, so that rare calls are the Euclidean neighbours of all others. As in the paper only calls that occur
in training take part. The picture (t-SNE by cosine) has one panel for all calls and one around each group.

Each claim gets a verdict: that calls lie together holds if, over all models, their mean place by cosine is within the
nearest tenth of the calls; that two steps are about the same holds if their mean cosine is at least a half. Half a
minute on one core.
"""

import itertools
import pathlib
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances
from threadpoolctl import threadpool_limits

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data
from syscall_lm.experiments.comparison import spread
from syscall_lm.experiments.kim2017 import results, trained
from syscall_lm.models.store import Member
from syscall_lm.reports import figures
from syscall_lm.traces.archive import TraceArchive

# The groups of section 3.4, by the names of the i386 table; `_newselect` is select as programs call it there.
GROUPS = {
    "read and write": ("read", "write"),
    "open and close": ("open", "close"),
    "waiting": ("select", "_newselect", "pselect6", "ppoll", "epoll_wait", "nanosleep"),
    "symbolic links": ("readlink", "lstat64"),
    "stat": ("fstatat64", "fstat64"),
    "pipe": ("pipe", "pipe2"),
}
STEP = (("read", "write"), ("open", "close"))  # the pairs whose difference "appears to be almost the same"
NEIGHBOURS = 5
METRICS = ("cosine", "euclidean")
TOGETHER = 0.1  # of all calls: mean places up to there are called together
SAME_STEP = 0.5  # cosine from which two steps are called the same
FONT = 8  # of labels, points

ARCHIVE = flags.DEFINE_string("archive", None, "the archive that the models learned from", required=True)
MODELS = flags.DEFINE_list("models", None, "model directories that `train` made on it, one a seed", required=True)
MEMBER = flags.DEFINE_string("member", "", "the member of the first model that is drawn; empty for the first")
SEED = flags.DEFINE_integer("seed", 0, "of t-SNE", lower_bound=0, upper_bound=2**32 - 1)
OUTPUT = flags.DEFINE_string(
    "output", "results/kim2017", "directory for embeddings.json, embeddings.md and embeddings.png"
)


def main() -> None:
    """Measures, draws, writes."""
    archive = TraceArchive(ARCHIVE.value)
    models = trained.load(MODELS.value or [], archive)
    drawn = {member.name: member for member in next(iter(models.values())).members}
    name = MEMBER.value or next(iter(drawn))
    if name not in drawn:
        raise SyscallLMError(f"--member={name}: the models have {', '.join(drawn)}")
    train = data.benchmark(archive).train
    counts = np.bincount(train.calls, minlength=archive.vocabulary.size)[: archive.vocabulary.unk]
    seen = np.flatnonzero(counts)
    if len(seen) < 4:
        raise SyscallLMError(f"{archive.path}: its split 'train' holds {len(seen)} different calls; 4 are needed")
    names = [archive.vocabulary.name(int(call)) for call in seen]
    result: dict[str, Any] = {
        "archive": archive.path.name,
        "calls": {call: int(count) for call, count in zip(names, counts[seen], strict=True)},
        "models": trained.describe(models),
        "members": [
            {"member": member.name, "seed": seed, **measures(names, embedding(member)[seen])}
            for seed, model in models.items()
            for member in model.members
        ],
        "drawn": {"member": name, "seed": next(iter(models))},
    }
    vectors = embedding(drawn[name])[seen]
    result["neighbours"] = {metric: neighbours(names, vectors, metric) for metric in METRICS}
    points = project(vectors, SEED.value)
    output = pathlib.Path(OUTPUT.value)
    with files.complete_file(output / "embeddings.png") as temporary:
        figures.save(figure(names, points), temporary)
    result["t_sne"] = {call: [round(float(x), 3) for x in point] for call, point in zip(names, points, strict=True)}
    results.write(output, "embeddings", main, result, table)


def embedding(member: Member) -> np.ndarray:
    """A member's embedding, float64 `[V + 1, E]`."""
    return np.asarray(member.params["embedding"], np.float64)


def measures(names: list[str], vectors: np.ndarray) -> dict[str, Any]:
    """The claims of section 3.4 as numbers: places of partners by each metric, and the cosine of the two steps."""
    groups = {
        metric: {title: places(names, vectors, group, metric) for title, group in GROUPS.items()} for metric in METRICS
    }
    return {"groups": groups, "step_cosine": step_cosine(names, vectors)}


def by_distance(vectors: np.ndarray, metric: str) -> np.ndarray:
    """For each of n vectors `[n, E]` the others, nearest first, `[n, n - 1]`."""
    distances = pairwise_distances(vectors, metric=metric)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :-1]


def neighbours(names: list[str], vectors: np.ndarray, metric: str, count: int = NEIGHBOURS) -> dict[str, list[str]]:
    """For each call the nearest others, nearest first."""
    order = by_distance(vectors, metric)[:, :count]
    return {name: [names[i] for i in row] for name, row in zip(names, order, strict=True)}


def places(names: list[str], vectors: np.ndarray, group: tuple[str, ...], metric: str) -> dict[str, Any]:
    """Where the members of a group stand among each other's neighbours; 1 is the nearest.

    Returns:
      the group's calls that occur, the place of each ordered pair, and their mean (None for fewer than two calls).
    """
    present = [name for name in group if name in names]
    order = by_distance(vectors, metric)
    found = {}
    for one, other in itertools.permutations(present, 2):
        found[f"{one} -> {other}"] = int(np.flatnonzero(order[names.index(one)] == names.index(other))[0]) + 1
    mean = float(np.mean(list(found.values()))) if found else None
    return {"calls": present, "absent": [name for name in group if name not in names], "places": found, "mean": mean}


def step_cosine(names: list[str], vectors: np.ndarray) -> float | None:
    """The cosine of the steps read to write and open to close; None if one of them does not occur."""
    if any(name not in names for pair in STEP for name in pair):
        return None
    one, other = (vectors[names.index(end)] - vectors[names.index(start)] for start, end in STEP)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def project(vectors: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE to `[n, 2]` (van der Maaten & Hinton 2008), deterministic by the seed."""
    perplexity = min(15.0, (len(vectors) - 1) / 3)
    with threadpool_limits(1):  # few points: threads would only wait for each other, and sum in another order
        return TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)


def figure(names: list[str], points: np.ndarray) -> Figure:
    """All calls with their names, and a panel around each group."""
    drawing = Figure(figsize=(15, 17))
    grid = drawing.add_gridspec(4, 3, left=0.01, right=0.99, bottom=0.01, top=0.975, wspace=0.03, hspace=0.13)
    groups = {title: [names.index(name) for name in group if name in names] for title, group in GROUPS.items()}
    panels: list[tuple[Any, str, np.ndarray]] = [(grid[:2, :], "all calls that occur in training", points)]
    margin = 0.05 * np.ptp(points, axis=0).max()
    for place, (title, members) in enumerate(groups.items()):
        if members:
            corners = np.stack([points[members].min(axis=0) - margin, points[members].max(axis=0) + margin])
            panels.append((grid[2 + place // 3, place % 3], title, corners))
    marked = {i for members in groups.values() for i in members}
    for cell, title, extent in panels:
        axes = drawing.add_subplot(cell)
        low, high = extent.min(axis=0) - margin / 2, extent.max(axis=0) + margin / 2
        axes.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        shown = [i for i in range(len(names)) if (low <= points[i]).all() and (points[i] <= high).all()]
        shown.sort(key=lambda i: i not in marked)  # these choose their places first
        places = axes.transData.transform(points[shown]) * 72 / drawing.dpi
        frame = np.array(axes.bbox.extents) * 72 / drawing.dpi
        for i, offset in zip(shown, label_offsets(places, [names[i] for i in shown], frame), strict=True):
            colour = "tab:red" if i in marked else "0.35"
            axes.plot(*points[i], ".", ms=5, color=colour)
            axes.annotate(
                names[i], points[i], offset, textcoords="offset points", size=FONT, color=colour, clip_on=True
            )
    return drawing


def label_offsets(places: np.ndarray, names: list[str], frame: np.ndarray) -> list[tuple[float, float]]:
    """Where labels overlap least: of eight positions around each point the best, one label after another.

    Args:
      places: `[n, 2]`, points of text (1/72 inch).
      names: the labels.
      frame: left, bottom, right and top of what labels should not leave.

    Returns:
      for each label the offset of its lower left corner from its point.
    """
    taken = np.concatenate([places - 2, places + 2], axis=1)  # boxes: left, bottom, right, top
    chosen = []
    for place, name in zip(places, names, strict=True):
        width, height, gap = 0.58 * FONT * len(name), 1.1 * FONT, 3
        across, up = (gap, -width - gap, -width / 2), (-height / 2 + 1, gap, -height - gap)
        candidates = [(x, y) for y in up for x in across if (x, y) != (across[2], up[0])]
        overlaps = []
        for offset in candidates:
            corner = place + offset
            sides = np.minimum(taken[:, 2:], corner + (width, height)) - np.maximum(taken[:, :2], corner)
            inside = np.minimum(frame[2:], corner + (width, height)) - np.maximum(frame[:2], corner)
            cut = width * height - np.prod(np.maximum(inside, 0))
            overlaps.append(np.prod(np.maximum(sides, 0), axis=1).sum() + cut)
        best = candidates[int(np.argmin(overlaps))]
        chosen.append(best)
        taken = np.concatenate([taken, [[*(place + best), *(place + best + (width, height))]]])
    return chosen


def table(result: dict[str, Any]) -> str:
    """Groups over members and seeds, and neighbours in the drawn one, as Markdown."""
    total = len(result["calls"])
    by_member: dict[str, list[dict[str, Any]]] = {}
    for measured in result["members"]:
        by_member.setdefault(measured["member"], []).append(measured)
    seeds = len(next(iter(by_member.values())))
    lines = [
        f"Embeddings of {total} calls that occur in training; models of {seeds} seed{'s' * (seeds > 1)}.",
        f"Mean place of a group's calls among each other's neighbours: 1 is best, {total / 2:.0f} is chance. "
        "Cosine / Euclidean; ±: standard deviation over the seeds.",
        "",
        *verdicts(result),
        "",
        "| group | times in training | do not occur | " + " | ".join(by_member) + " |",
        "|---" * (3 + len(by_member)) + "|",
    ]
    for title, group in result["members"][0]["groups"]["cosine"].items():
        cells = []
        for measured in by_member.values():
            means = [[one["groups"][metric][title]["mean"] for one in measured] for metric in METRICS]
            cells.append("" if None in means[0] else " / ".join(spread(values, ".1f") for values in means))
        shown = f"{title}: {', '.join(group['calls'])}"
        times = ", ".join(f"{result['calls'][call]:,}" for call in group["calls"])
        lines.append(f"| {shown} | {times} | {', '.join(group['absent'])} | {' | '.join(cells)} |")
    cells = []
    for measured in by_member.values():
        values = [one["step_cosine"] for one in measured]
        cells.append("" if None in values else spread(values, ".2f"))
    lines.append(f"| cosine of the steps read to write and open to close | | | {' | '.join(cells)} |")
    drawn = result["drawn"]
    lines += ["", f"Member {drawn['member']}, seed {drawn['seed']}:", ""]
    lines += ["| call | times in training | nearest by cosine |", "|---|---|---|"]
    for call, count in sorted(result["calls"].items(), key=lambda item: -item[1]):
        lines.append(f"| {call} | {count:,} | {', '.join(result['neighbours']['cosine'][call])} |")
    return "\n".join(lines) + "\n"


def verdicts(result: dict[str, Any]) -> list[str]:
    """For each claim of section 3.4 whether it holds in these models, and by which numbers."""
    measured, total = result["members"], len(result["calls"])
    lines = [
        f"What the paper says, by all {len(measured)} models. Together means: a mean place of at most "
        f"{TOGETHER * total:g} by cosine; the same step: a mean cosine of at least {SAME_STEP:g}.",
        "",
    ]
    for title, group in measured[0]["groups"]["cosine"].items():
        means = {metric: [one["groups"][metric][title]["mean"] for one in measured] for metric in METRICS}
        if None in means["cosine"]:
            lines.append(f"- {title}: cannot be told, since fewer than two of these calls occur.")
            continue
        place, euclidean = (float(np.mean(means[metric])) for metric in METRICS)
        nearer = sum(mean < total / 2 for mean in means["cosine"])
        lines.append(
            f"- {', '.join(group['calls'])} lie together: **{_verdict(place <= TOGETHER * total)}**. Mean place "
            f"{place:.1f} of {total - 1} (chance {total / 2:g}), nearer than chance in {nearer} of {len(measured)} "
            f"models; Euclidean {euclidean:.1f}."
        )
    steps = [one["step_cosine"] for one in measured if one["step_cosine"] is not None]
    if steps:
        cosine = float(np.mean(steps))
        lines.append(
            f"- read to write is about the same step as open to close: **{_verdict(cosine >= SAME_STEP)}**. "
            f"Mean cosine {cosine:.2f} (1: the same direction, 0: unrelated), {min(steps):.2f} to {max(steps):.2f}."
        )
    return lines


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


if __name__ == "__main__":
    command.run(main)
