"""Model directories that `train` made on one archive with several seeds: read, checked, described."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import data
from syscall_lm.experiments.comparison import spread
from syscall_lm.models import store
from syscall_lm.models.store import Model
from syscall_lm.traces.archive import TraceArchive


def load(paths: Sequence[str], archive: TraceArchive) -> dict[int, Model]:
    """Models by seed.

    Raises:
      SyscallLMError: none, one is damaged or of other traces, two have one seed, or their members differ.
    """
    if not paths:
        raise SyscallLMError("no model is named; give model directories that `train` made, one a seed")
    models: dict[int, Model] = {}
    for path in paths:
        model = store.load(pathlib.Path(path))
        data.require_trained_on(model, archive)
        seed = int(model.info["configuration"]["seed"])
        if seed in models:
            raise SyscallLMError(f"{path}: was trained with seed {seed}, as {models[seed].path} was; name one of them")
        models[seed] = model
    found = {model.path: [member.name for member in model.members] for model in models.values()}
    first = next(iter(found))
    for path, members in found.items():
        if members != found[first]:
            raise SyscallLMError(f"{path}: holds {', '.join(members)}, but {first} holds {', '.join(found[first])}")
    return models


def describe(models: dict[int, Model]) -> list[dict[str, Any]]:
    """For each model: seed, recipe, and each member's held-out loss and epochs (plain JSON values)."""
    described = []
    for model in models.values():
        told = {name: model.info.get(name) for name in ("configuration", "training", "held_out", "results")}
        identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        described.append({"model": model.path.name, "identity": identity, **told})
    return described


def table(described: Sequence[dict[str, Any]]) -> list[str]:
    """Held-out loss and epochs of each member as Markdown, over the seeds."""
    seeds = ", ".join(str(model["configuration"]["seed"]) for model in described)
    lines = [f"Seeds {seeds}. Held-out loss on a tenth of the normal training traces, which chose the epoch.", ""]
    lines += ["| member | held-out nats per call | best epoch | epochs |", "|---|---|---|---|"]
    for member in described[0]["results"]:
        results = [model["results"][member] for model in described]
        cells = (spread([result[name] for result in results], form) for name, form in COLUMNS)
        lines.append(f"| {member} | {' | '.join(cells)} |")
    return lines


COLUMNS = (("held_out_nll", ".3f"), ("best_epoch", ".0f"), ("epochs", ".0f"))
