"""Trains models on the normal traces of an archive and calibrates them.

  syscall-lm train --archive=traces.parquet --model=model --members=1x200,1x400,2x400
  syscall-lm train --archive=traces.parquet --model=model --members=encoder-decoder-10x64,autoencoder-10x64

Learns from the archive's split "train" (from all its normal traces, if it has no splits). Held-out normal traces decide
when to stop and set the thresholds. The same command after an interruption goes on where the last checkpoint stands.

It trains on all devices: on every GPU or TPU core, or, without one, on a device for each CPU core. On many hosts start
it once a host with the same flags: SLURM, Open MPI, TPU and, with the extra `kubernetes`, Kubernetes are recognised
(deploy/ has jobs for them); anywhere else say --coordinator=HOST:PORT --num_processes=N --process_id=K. All processes
must see the model directory. The number of devices and processes may change from one start to the next. Exit code 75
means: start again to go on.

Kim et al. (arXiv 1611.01726), section 3.2. The printed recipe is --learning_rate=1e-4 --schedule=constant
--batching=traces with enough --epochs; the default is a faster one.

Models of windows (Soni et al. 2019, section IV) are members like any other, called by the window's length and H. They
share schedule, clipping and seed with the language models; learning rate, epochs and patience are those that were
measured for each kind (an encoder-decoder makes 24 epochs at most, an autoencoder 100), unless --epochs or --patience
is given. Flags that concern language models alone are refused where there is none.
"""

import contextlib
import dataclasses
import json
import os
import pathlib

import tqdm
from absl import flags

from syscall_lm import files, processes, training
from syscall_lm.detectors import language_model
from syscall_lm.detectors.base import traces_needed
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command, data, provenance
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.models import lstm, shapes, store
from syscall_lm.traces import filters
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_training import WindowRecipe

_DEFAULTS = training.Recipe()

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to learn from (made by `ingest`)", required=True)
MODEL = flags.DEFINE_string("model", None, "directory for the model, made if missing", required=True)
MEMBERS = flags.DEFINE_list(
    "members", ["1x200"], "what to train, each LAYERSxCELLS, encoder-decoder-LENGTHxCELLS or autoencoder-LENGTHxCELLS"
)
EPOCHS = flags.DEFINE_integer(
    "epochs", None, f"passes over the training traces, at most; without it {_DEFAULTS.epochs} of a language model"
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's, at its peak, of language models")
SCHEDULE = flags.DEFINE_enum("schedule", _DEFAULTS.schedule, training.SCHEDULES, "how the learning rate develops")
DROPOUT = flags.DEFINE_float("dropout", _DEFAULTS.dropout, "on the connections from layer to layer and to the softmax")
CLIP = flags.DEFINE_float("clip", _DEFAULTS.clip, "largest norm of a gradient")
BATCHING = flags.DEFINE_enum(
    "batching",
    _DEFAULTS.batching,
    training.BATCHINGS,
    "lanes: truncated back-propagation over packed lanes, fast; traces: whole traces of similar length, as the paper",
)
MINIBATCH_CALLS = flags.DEFINE_integer("minibatch_calls", 0, "calls in a minibatch; 0 chooses 512 to 4096 by the data")
STEPS = flags.DEFINE_integer(
    "steps", 0, "calls that gradients flow through; 0: for lanes 32 or more, by the longest trace; 4096 for traces"
)
PATIENCE = flags.DEFINE_integer(
    "patience",
    None,
    f"epochs without a better held-out loss before stopping; without it {_DEFAULTS.patience} of a language model",
)
HELD_OUT = flags.DEFINE_float(
    "held_out", data.HELD_OUT, "share of the distinct normal traces to hold out, if there is no split for it"
)
OF_LANGUAGE_MODELS = (LEARNING_RATE, DROPOUT, BATCHING, MINIBATCH_CALLS, STEPS)
SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "of everything random", lower_bound=0, upper_bound=2**32 - 1)
FAR = flags.DEFINE_float("far", 0.01, "false alarm rate that the model card states thresholds for")
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    0,
    "devices to make of this process's cores, and to use, if there is no accelerator; "
    "0: at most one a core, fewer where each would have too little to do",
    lower_bound=0,
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, which must be free there")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes train together", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0)
CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60, "time between checkpoints", lower_bound=0)


def main() -> None:
    """Trains, saves, calibrates."""
    traces_needed(FAR.value)  # no rate is refused before anything is trained
    archive = TraceArchive(ARCHIVE.value)
    wanted = [shapes.parse(member, archive.vocabulary.size) for member in MEMBERS.value]
    if not wanted:
        raise SyscallLMError("--members: name at least one, like 1x200")
    if not any(isinstance(shape, lstm.Shape) for shape in wanted):
        for flag in OF_LANGUAGE_MODELS:
            if flag.present:
                raise SyscallLMError(f"--{flag.name}: concerns language models, and --members names none")
    train, held_out = data.training_traces(archive, HELD_OUT.value, SEED.value)
    recipe = _recipe(train)
    # The loop leaves some of them alone where a step is small; processes that train together use all that they have.
    devices = min(len(os.sched_getaffinity(0)), max(1, recipe.minibatch_calls // 256))
    processes.start(CPU_DEVICES.value or devices, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with processes.together(), profiled():
        _train(archive, wanted, recipe, train, held_out)


def _train(
    archive: TraceArchive, wanted: list[shapes.Shape], recipe: training.Recipe, train: Sequences, held_out: Sequences
) -> None:
    vocabulary = archive.vocabulary
    configuration = {
        "members": [str(shape) for shape in wanted],
        **dataclasses.asdict(recipe),
        "training_data": data.fingerprint(train),
        "held_out_data": data.fingerprint(held_out),
        "vocabulary": vocabulary.hash,
    }
    by_windows: dict[shapes.Shape, WindowRecipe] = {
        shape: WindowRecipe.beside(recipe, shape, **_asked()) for shape in wanted if not isinstance(shape, lstm.Shape)
    }
    if by_windows:
        configuration["windows"] = {str(shape): dataclasses.asdict(own) for shape, own in by_windows.items()}
    processes.require_same([configuration, [flag.value for flag in (MODEL, CHECKPOINT_SECONDS)]])
    path = pathlib.Path(MODEL.value)
    with contextlib.ExitStack() as held:

        def begin() -> bool:
            """Whether there is something to train; the directory is ours from now on."""
            held.enter_context(files.exclusive(path))
            _require_same(path, configuration)
            done = (path / "model.json").exists() and (path / store.CALIBRATION).exists()
            if done:  # a damaged one is told
                language_model.load_calibration(path, store.load(path).members)
            return not done

        if not processes.only_first(begin):
            processes.say(f"{path}: already trained with this configuration")
            return
        processes.say(
            f"training {', '.join(configuration['members'])} on {len(train):,} normal traces "
            f"({len(train.calls):,} calls), holding out {data.told(held_out)}, {len(held_out.calls):,} calls; "
            f"vocabulary {command.printable(vocabulary.origin)}, V = {vocabulary.size}"
        )

        def log(rows: list[dict]) -> None:
            if processes.is_first():
                files.write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            with tqdm.tqdm.external_write_mode():
                processes.say(_progress(rows[-1], epochs[rows[-1]["shape"]]))

        epochs = {str(shape): by_windows.get(shape, recipe).epochs for shape in wanted}
        members, history = training.train_members(
            wanted, recipe, train, held_out, path / "checkpoints", log, by_windows,
            checkpoint_seconds=CHECKPOINT_SECONDS.value, say=processes.say, progress=processes.is_first(),
            all_devices=CPU_DEVICES.value > 0,
        )  # fmt: skip
        if not processes.is_first():
            return
        source = f"{data.told(held_out)} normal traces of {archive.path.name} that training held out"
        calibration = language_model.calibrate(members, train, held_out, source)
        names = [member.name for member in members]
        files.write_text(path / store.CALIBRATION, json.dumps(calibration.to_json(names)) + "\n")
        info = {
            "archive": archive.path.name,
            "numbering": archive.metadata.get("numbering"),
            "filters": filters.of_calls(archive.metadata),
            "configuration": configuration,
            "environment": provenance.environment(),
            "training": {"traces": len(train), "calls": len(train.calls), "longest": train.longest},
            "held_out": {"traces": len(held_out), "calls": len(held_out.calls)},
            "results": _results(history, names),
        }
        files.write_text(path / store.CARD, _card(info, names, calibration))
        store.save(path, vocabulary, members, info)
    _report(path, info, calibration)


def _report(path: pathlib.Path, info: dict, calibration: language_model.ensemble.Calibration) -> None:
    for name, result in info["results"].items():
        print(f"  {name}: held-out {result['held_out_nll']:.4f} nats per call, best of {result['epochs']} epochs")
    data.note_of_calibration(calibration, FAR.value)
    print(f"model: {path}")


def _progress(row: dict, epochs: int) -> str:
    train, held_out = ("/".join(f"{value:.3f}" for value in row[name]) for name in ("train_nll", "held_out_nll"))
    return (
        f"  {row['shape']} epoch {row['epoch']}/{epochs}: training {train}, held-out {held_out} nats per call, "
        f"{row['calls_per_second']:,} calls/s"
    )


def _asked() -> dict[str, int]:
    """Epochs and patience, if they were given."""
    given = {"epochs": EPOCHS.value, "patience": PATIENCE.value}
    return {name: value for name, value in given.items() if value is not None}


def _recipe(train: Sequences) -> training.Recipe:
    minibatch_calls, steps = training.minibatches_for(
        len(train.calls), train.longest, BATCHING.value, MINIBATCH_CALLS.value, STEPS.value
    )
    return training.Recipe(
        learning_rate=LEARNING_RATE.value,
        schedule=SCHEDULE.value,
        dropout=DROPOUT.value,
        clip=CLIP.value,
        batching=BATCHING.value,
        minibatch_calls=minibatch_calls,
        steps=steps,
        seed=SEED.value,
        **_asked(),
    )


def _require_same(path: pathlib.Path, configuration: dict) -> None:
    """A directory belongs to one configuration, so that resuming cannot mix two."""
    file = path / "config.json"
    if not file.exists():
        foreign = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise SyscallLMError(f"{path}: not empty ({sorted(foreign)[0]}, ...) and no model directory; name another")
        files.write_text(file, json.dumps(configuration, indent=1) + "\n")
        return
    found = store.read_json(file, f"{file}: missing")
    if found.get("training_data") != configuration["training_data"]:  # other things may follow from it
        raise SyscallLMError(f"{path}: was begun with other traces; name another directory, or remove this one")
    for name in [*configuration, *found]:
        if found.get(name) != configuration.get(name):
            raise SyscallLMError(
                f"{path}: was begun with {name} = {found.get(name)!r}, not {configuration.get(name)!r}; "
                "name another directory, or remove this one"
            )


def _results(history: list[dict], names: list[str]) -> dict[str, dict]:
    """For each member its best held-out loss, the epochs of its group, and the speed."""
    results = {}
    for name in names:
        shape, _, place = name.partition(".")
        rows = [row for row in history if row["shape"] == shape]
        losses = [row["held_out_nll"][int(place or 1) - 1] for row in rows]
        speeds = sorted(row["calls_per_second"] for row in rows)
        results[name] = {
            "held_out_nll": min(losses),
            "best_epoch": losses.index(min(losses)) + 1,
            "epochs": len(rows),
            "calls_per_second": speeds[len(speeds) // 2],
        }
    return results


def _card(info: dict, names: list[str], calibration: language_model.ensemble.Calibration) -> str:
    lines = [
        "# Model card",
        "",
        "LSTM language models (Kim et al., arXiv 1611.01726) and models of windows (Soni et al. 2019) of system calls.",
        "A trace's score is its average negative log-likelihood in nats per call; higher is more abnormal.",
        "",
        f"- learned from: {info['archive']}, {info['training']['traces']:,} normal traces, "
        f"{info['training']['calls']:,} calls",
        f"- thresholds from: {calibration.source}",
        "- not for: traces of hosts or programs unlike these, until it is calibrated there (`syscall-lm calibrate`)",
        "",
        "| member | held-out nats per call | epochs | median score (b) |",
        "|---|---|---|---|",
    ]
    for i, name in enumerate(names):
        result = info["results"][name]
        lines.append(f"| {name} | {result['held_out_nll']:.4f} | {result['epochs']} | {calibration.medians[i]:.4f} |")
    lines += [
        "",
        f"Thresholds for a false alarm rate of {FAR.value:g}, as training set them (`calibrate` renews them):",
        "",
    ]
    lines += [
        f"- {method}: {calibration.threshold(method, FAR.value):.4f}" for method in language_model.ensemble.METHODS
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
