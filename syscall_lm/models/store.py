"""The model directory: everything that scoring needs, in plain files without pickle.

  model.json         configuration: format version, members and their shapes, vocabulary, how they were trained
  parameters/        an Orbax checkpoint: {member name: parameters}
  calibration.json   what turns surprisals into verdicts (detectors/ensemble.py)
  MODEL_CARD.md      the same for people
  metrics.jsonl      a row an epoch
  checkpoints/       training's own, to resume from

`model.json` is written last: a directory without it is no model.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from syscall_lm import files
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import shapes
from syscall_lm.traces import translation
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.vocabulary import Vocabulary
from syscall_lm.types import Params

VERSION = 1
CALIBRATION = "calibration.json"
CARD = "MODEL_CARD.md"


@dataclasses.dataclass(frozen=True)
class Member:
    """One trained model."""

    name: str
    shape: shapes.Shape
    params: Params


@dataclasses.dataclass(frozen=True)
class Model:
    """What a model directory holds.

    Attributes:
      path: the directory.
      vocabulary: the call names that it predicts.
      members: M models, most often language models.
      info: how it was made: recipe, data, seeds, versions, held-out losses (plain JSON values).
    """

    path: pathlib.Path
    vocabulary: Vocabulary
    members: tuple[Member, ...]
    info: dict[str, Any]

    def translation(self, archive: TraceArchive) -> np.ndarray:
        """The table that turns the archive's call ids into the model's; raises as `translation.to` does."""
        learned = f"what {self.path} was trained on"
        filtered = self.info.get("filters")  # an old model does not know
        return translation.to(archive, learned, self.vocabulary, self.info.get("numbering"), filtered)


def save(path: pathlib.Path, vocabulary: Vocabulary, members: tuple[Member, ...], info: Mapping[str, Any]) -> None:
    """Writes configuration and parameters; `path` becomes a model only at the very end."""
    path.mkdir(parents=True, exist_ok=True)
    with files.storage(f"{_parameters(path)}: cannot be written"), _checkpointer() as checkpointer:
        checkpointer.save(_parameters(path), {member.name: member.params for member in members}, force=True)
    configuration = {
        "version": VERSION,
        "members": {member.name: str(member.shape) for member in members},
        "vocabulary": {"names": vocabulary.names, "origin": vocabulary.origin, "hash": vocabulary.hash},
        "info": info,
    }
    files.write_text(path / "model.json", json.dumps(configuration, indent=1) + "\n")


def load(path: str | os.PathLike[str]) -> Model:
    """Reads a model directory.

    Raises:
      SyscallLMError: it is not one, it is damaged, or another version wrote it.
    """
    path = pathlib.Path(path)
    begun = os.path.isdir(path / "checkpoints")
    advice = "its training has not ended: run the same `train` again" if begun else "make one with `train`"
    configuration = read_json(path / "model.json", f"{path}: not a model directory (no model.json); {advice}")
    if configuration.get("version", VERSION) != VERSION:
        raise SyscallLMError(f"{path}: model version {configuration['version']!r}; this program reads {VERSION}")
    try:
        vocabulary = Vocabulary(tuple(configuration["vocabulary"]["names"]), configuration["vocabulary"]["origin"])
        intact = vocabulary.hash == configuration["vocabulary"]["hash"]
        sizes = {name: shapes.parse(text, vocabulary.size) for name, text in configuration["members"].items()}
        info = dict(configuration["info"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SyscallLMError(f"{path / 'model.json'}: damaged ({type(error).__name__}: {error})") from error
    if not intact:
        raise SyscallLMError(f"{path}: its call names do not match their hash; model.json is damaged")
    with files.storage(f"{path / 'parameters'}: missing or damaged"), _checkpointer() as checkpointer:
        expected = {name: _abstract(shape) for name, shape in sizes.items()}
        parameters = checkpointer.restore(_parameters(path), expected)
    members = tuple(Member(name, shape, parameters[name]) for name, shape in sizes.items())
    for member in members:
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(member.params)):
            raise SyscallLMError(f"{path / 'parameters'}: member {member.name} holds numbers that are not finite")
    return Model(path, vocabulary, members, info)


def files_that_score(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of a model directory that decide its scores and verdicts, in an order of their own."""
    parameters = sorted(file for file in _parameters(path).rglob("*") if file.is_file())
    return [path / "model.json", path / CALIBRATION, *parameters]


def read_json(path: pathlib.Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file; `missing` is the error's sentence if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SyscallLMError(missing) from error
    except OSError as error:
        raise SyscallLMError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SyscallLMError(f"{path}: damaged, not JSON") from error
    if not isinstance(value, dict):
        raise SyscallLMError(f"{path}: damaged, not a JSON object")
    return value


def _checkpointer() -> ocp.StandardCheckpointer:
    """One that does not wait for the others of several processes that train together."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix="model")
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _parameters(path: pathlib.Path) -> pathlib.Path:
    return path.absolute() / "parameters"


def _abstract(shape: shapes.Shape) -> Params:
    """Shapes and types of a member's parameters, placed on this process's first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = jax.eval_shape(lambda key: shapes.initialise(key, shape), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), params)
