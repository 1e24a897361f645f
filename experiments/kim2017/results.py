"""What an experiment of this folder leaves: NAME.json, and NAME.md, which is made from it. Both name no folders."""

import json
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from absl import flags

from syscall_lm import files, training
from syscall_lm.detectors import catalogue
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import comparison, provenance
from syscall_lm.experiments.comparison import spread
from syscall_lm.models import store

Table = Callable[[dict[str, Any]], str]
_TABLES = {"study": "study_table"}  # STUDY.md and study.md would be one file where names ignore case


def write(folder: pathlib.Path, name: str, main: Callable[..., None], result: Mapping[str, Any], table: Table) -> None:
    """Writes NAME.json (with configuration and environment) and its table, and prints the latter."""
    configuration = provenance.configuration(main)
    settings = {key: _without_folders(value) for key, value in configuration.items() if key != "output"}
    value = {**result, "configuration": settings, "environment": provenance.environment()}
    files.write_text(folder / f"{name}.json", as_json(value))
    print(write_table(folder, name, value, table))
    print(f"results: {folder / name}.json")


def write_table(folder: pathlib.Path, name: str, value: Mapping[str, Any], table: Table) -> str:
    """Writes a result's table, with the commands that made it and a note that the result may hold, and returns it."""
    padded = padding_column(folder)
    lines = ["", "Made by", "", "```", *commands(name, value), "```", ""]
    if "note" in value:
        lines = ["", value["note"], *lines]
    page = table({**value, "padded": padded}) + "\n".join(lines)
    files.write_text(folder / f"{_TABLES.get(name, name)}.md", page)
    return page


def traces_line(result: Mapping[str, Any]) -> str:
    """The traces of a comparison in one sentence."""
    traces = result["traces"]
    return (
        f"{traces['normal']:,} normal traces, of which {traces['copies']:,} copy a training trace; "
        f"{traces['attack']:,} attacks; learned from {traces['train']:,} normal traces of {result['archive']}."
    )


def detector_tables(result: Mapping[str, Any]) -> list[str]:
    """The figures of all detectors; beside each AUC what the detector was chosen on, and what padding leaves of it."""
    columns = {
        "fit, score": {name: _seconds(found["runs"]) for name, found in result["detectors"].items()},
        "chosen on": {name: catalogue.chosen_on(name) for name in result["detectors"]},
    }
    if result["padded"]:
        columns["AUC, padded"] = result["padded"]
    return [comparison.LEGEND, "", LEGEND, "", *comparison.tables(result["detectors"], columns=columns)]


def _seconds(runs: Iterable[Mapping[str, Any]]) -> str:
    both = [np.median([run[name] for run in runs]) for name in ("fit_seconds", "score_seconds")]
    return ", ".join(f"{value:.1f} s" for value in both)


LEGEND = (
    "Chosen on: what shaped a detector besides training traces and publications. Known beforehand: that order 8 and "
    "stretches of 75 calls do well on these very attacks was known when they were chosen. Development half of the "
    "attacks: as [the study](STUDY.md) declares it. Padded: the AUC of a sample of the attacks, each hidden among as "
    "many normal calls as it has itself ([mimicry](mimicry.md), column 1; column 0 is the same sample without "
    "padding). Fit, score: seconds on cores that other work may have shared; of detectors that look into one model the "
    "first pays for its surprisals, or its states, and the others find them."
)


def padding_column(folder: pathlib.Path) -> dict[str, str]:
    """Detector -> AUC with one normal call for each call of the attack, as kim2017.mimicry left it in the folder."""
    path = folder / "mimicry.json"
    if not path.exists():
        return {}
    found = store.read_json(path, f"{path}: missing")["detectors"]
    return {
        name: spread([run["paddings"]["1"]["auc"] for run in value["runs"]], ".3f") for name, value in found.items()
    }


def commands(name: str, value: Mapping[str, Any]) -> list[str]:
    """The command lines that made a result: of its models, and its own (flags that differ from their defaults)."""
    settings = value["configuration"]
    given = [_flag(key, setting) for key, setting in settings.items() if setting != _default(key)]
    models = [_training(settings["archive"], model) for model in _models(value.get("models", []))]
    return [*models, shlex.join(["syscall-lm", f"kim2017.{name}", *(part for parts in given for part in parts)])]


def _models(described: Any) -> Iterable[Mapping[str, Any]]:
    """What `trained.describe` returned, in the order of the result."""
    lists = described.values() if isinstance(described, Mapping) else [described]
    return (model for models in lists for model in models if "configuration" in model)


def _training(archive: str, model: Mapping[str, Any]) -> str:
    """How `train` made a model."""
    configuration, recipe = model["configuration"], training.Recipe()
    calls, longest = (model.get("training", {}).get(name, 0) for name in ("calls", "longest"))
    minibatch_calls, steps = training.minibatches_for(calls, longest, configuration.get("batching", recipe.batching))
    usual = {**vars(recipe), "minibatch_calls": minibatch_calls, "steps": steps}
    changed = {key: value for key, value in configuration.items() if key in usual and value != usual[key]}
    flags_ = {"archive": archive, "model": model["model"], "members": configuration["members"], **changed}
    return shlex.join(["syscall-lm", "train", *(part for key, value in flags_.items() for part in _flag(key, value))])


def _default(name: str) -> Any:
    return flags.FLAGS[name].default if name in flags.FLAGS else None


def _flag(name: str, value: Any) -> list[str]:
    """A flag as it is typed; one that may be repeated, once a value."""
    if name in flags.FLAGS and isinstance(flags.FLAGS[name], flags.MultiFlag):
        return [f"--{name}={part}" for part in value]
    if isinstance(value, bool):
        return [f"--{name}={str(value).lower()}"]
    return [f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]


def as_json(value: Any) -> str:
    """Indented JSON, but a list of numbers in one line."""
    text = json.dumps(value, indent=1) + "\n"
    return re.sub(r"\[([-+\d.eE,\s]*)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def read(path: pathlib.Path) -> dict[str, Any]:
    """A result.

    Raises:
      SyscallLMError: it is missing, damaged or of something else.
    """
    value = store.read_json(path, f"{path}: missing")
    if not isinstance(value, dict) or "configuration" not in value:
        raise SyscallLMError(f"{path}: is no result of an experiment of kim2017")
    return value


def _without_folders(value: Any) -> Any:
    """Paths without their folders: results are to be the same wherever the data lies."""
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return re.sub(r"[^,=]*/", "", value) if isinstance(value, str) else value
