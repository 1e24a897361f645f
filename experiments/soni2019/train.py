"""Soni et al. (2019), section V: trains the encoder-decoder and the autoencoder for L = 3, 10 and 15.

  syscall-lm soni2019.train --archive=adfa.parquet --workdir=soni --output=results/soni2019

Writes training-ARCHIVE.json, from which soni2019.figures draws figures 4 and 5: for each epoch loss and accuracy,
training and held out, for each of three seeds, and the epoch's seconds (tables 1 and 2: soni2019.epoch_time). The paper
trained on some 140,000 windows; every second call of ADFA-LD's training traces begins one, which gives 138,726. It
found L = 10 best for both models: 97.2 % of the windows predicted exactly at a loss of 0.08 (encoder-decoder), 86 % at
0.21 (autoencoder), on Windows traces of its own that are private.

Neither a learning rate nor H is printed. The rates were chosen by the held-out loss on normal traces after 5 epochs
(L = 10, one seed): encoder-decoder 1.23, 1.14, 1.09 and 1.08 nats per call at 2e-3, 4e-3, 8e-3 and 1.6e-2; autoencoder
1.04, 0.98, 0.86, 0.70, 0.62 and 0.60 at 2e-3, 4e-3, 1e-2, 2e-2, 4e-2 and 8e-2 (one-hot input, linear layers). H = 64
was chosen for the time that it takes.

The autoencoder makes the paper's 100 epochs: L = 10 (one seed) then reconstructs 79.2 % of the held-out windows at a
loss of 0.218, which is near the paper's 86 % at 0.21, after 46 % in 15 epochs; L = 3 reconstructs more (94 % after
86 %), though its held-out loss was lower after 15. The encoder-decoder's held-out loss chose 15 at first. One seed,
nats per call, each schedule decaying over its own epochs: L = 3 reaches 1.208 in 15 epochs and 1.216 in 30 (of up
to 100 it made 21, since the loss had stopped falling at 1.237 in the 13th); L = 10 reaches 1.019 and 1.042, L = 15
0.998 and 1.021. With more epochs the training loss falls further (L = 10: 0.783 and 0.744), the held-out loss does not.

These were chosen with all windows in random order. On a CPU up to eight equal windows now come into a minibatch of the
encoder-decoder together and are computed once: a step takes a quarter less time, but its gradient is noisier, since
fewer windows differ. Held-out nats per call, means of three seeds, with 1, 4 and 8 together: ADFA-LD in 15 epochs L = 3
1.207, 1.203 and 1.211, L = 10 1.034, 1.040 and 1.042 (another order of the windows: 1.036 and 1.033 with 1 and 4), L =
15 1.005, 1.016 and 1.013; standard deviations over seeds are 0.001 to 0.020. On the embedded corpus, whose windows
repeat more, L = 10 0.416, 0.476 and 0.491 in 15 epochs; 0.388 in 30 epochs with 8 together, which still took less time
(111 s for three seeds) than 15 with 1 (129 s). So the encoder-decoder makes 24 epochs, which an archive that repeats
itself needs: there L = 10 reaches 0.409. On ADFA-LD L = 3, 10 and 15 then end at 1.205, 1.043 and 1.021, with 44.6,
29.0 and 23.3 % of the windows exact, as on an H200 in 15 epochs with 1 (44.7, 29.0 and 23.5 %), which by the times of
steps would take a fifth less time here.

--models and --lengths train a part; the same command after an interruption, or after its
parts, goes on where the last checkpoints stand.

On one core that other work shared, three seeds of the autoencoder took 8, 18 and 50 minutes for L = 3, 10 and 15 on
ADFA-LD; those of the encoder-decoder, on two, 2, 8 and 16. On an H200, which other work shared too, the autoencoder's
took 50, 42 and 40 seconds, the encoder-decoder's, of 15 epochs, 41, 32 and 99.
"""

import json
import pathlib
from typing import Any

import tqdm
from absl import flags

from syscall_lm import files, loop, optimisation
from syscall_lm.experiments import command, provenance
from syscall_lm.experiments.profiling import PROFILE_DIR as PROFILE_DIR
from syscall_lm.experiments.profiling import profiled
from syscall_lm.experiments.soni2019 import settings
from syscall_lm.traces.archive import TraceArchive

_DEFAULTS = settings.Settings()

ARCHIVE = flags.DEFINE_string("archive", None, "trace archive to learn from (made by `ingest`)", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints", required=True)
OUTPUT = flags.DEFINE_string("output", "results/soni2019", "directory for training-ARCHIVE.json")
MODELS = flags.DEFINE_list("models", list(settings.MODELS), "which models")
LENGTHS = flags.DEFINE_list("lengths", [str(length) for length in settings.LENGTHS], "L, calls in a window")
SEEDS = flags.DEFINE_integer("seeds", _DEFAULTS.seeds, "members, trained side by side", lower_bound=1)
CELLS = flags.DEFINE_integer("cells", _DEFAULTS.cells, "H", lower_bound=1)
EPOCHS = flags.DEFINE_integer(
    "epochs", _DEFAULTS.epochs, "the encoder-decoder's passes over the windows, at most", lower_bound=1
)
AUTOENCODER_EPOCHS = flags.DEFINE_integer(
    "autoencoder_epochs", _DEFAULTS.autoencoder_epochs, "the autoencoder's passes", lower_bound=1
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's, of the encoder-decoder")
AUTOENCODER_LEARNING_RATE = flags.DEFINE_float(
    "autoencoder_learning_rate", _DEFAULTS.autoencoder_learning_rate, "Adam's, of the autoencoder"
)
SCHEDULE = flags.DEFINE_enum("schedule", _DEFAULTS.schedule, optimisation.SCHEDULES, "how the learning rate develops")
PATIENCE = flags.DEFINE_integer(
    "patience",
    _DEFAULTS.patience,
    "epochs without a better held-out loss before the encoder-decoder stops",
    lower_bound=1,
)
STRIDE = flags.DEFINE_integer(
    "stride", _DEFAULTS.stride, "calls from one window's beginning to the next one's", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "of everything random", lower_bound=0)


@profiled()
def main() -> None:
    """Trains one model after another; results are written after each epoch."""
    lengths = settings.lengths(LENGTHS.value)
    chosen = settings.Settings(
        seeds=SEEDS.value,
        cells=CELLS.value,
        epochs=EPOCHS.value,
        autoencoder_epochs=AUTOENCODER_EPOCHS.value,
        learning_rate=LEARNING_RATE.value,
        autoencoder_learning_rate=AUTOENCODER_LEARNING_RATE.value,
        schedule=SCHEDULE.value,
        patience=PATIENCE.value,
        stride=STRIDE.value,
        seed=SEED.value,
    )
    archive = TraceArchive(ARCHIVE.value)
    workdir = pathlib.Path(WORKDIR.value)
    with files.exclusive(workdir):
        run = settings.Experiment(archive, chosen, workdir)
        run.check(MODELS.value, lengths)
        result = {
            **run.description(),
            "windows": settings.windows(run.train, chosen.stride),
            "held_out_windows": settings.windows(run.held_out, chosen.stride),
            "runs": [],
        }
        print(
            f"{archive.path.name}: {result['windows']:,} windows to learn from, {result['held_out_windows']:,} held out"
        )
        path = pathlib.Path(OUTPUT.value) / f"training-{archive.path.stem}.json"
        for length in lengths:
            for model in MODELS.value:
                trained = run.trained(model, length, log=lambda rows: tqdm.tqdm.write(_progress(rows[-1])))
                made = _summary(model, length, trained) | {"together": chosen.recipe(model, length).together}
                made["environment"] = provenance.environment()
                result["runs"] = _with_earlier(path, result, made, chosen)
                files.write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"results: {path}")


def _with_earlier(
    path: pathlib.Path, result: dict[str, Any], run: dict[str, Any], chosen: settings.Settings
) -> list[dict[str, Any]]:
    """A run, and those of other models and lengths that an earlier command made with these recipes and data."""
    runs = [*result["runs"], run]
    if path.exists():
        earlier = settings.read_results(path, "train")
        before = settings.of_results(earlier, path)
        head = [earlier.get(name) == result[name] for name in ("archive", "training", "held_out")]
        if all(head) and (before.seeds, before.cells) == (chosen.seeds, chosen.cells):
            made = {(one["model"], one["length"]) for one in runs}
            on = {"environment": earlier["environment"]} if "environment" in earlier else {}  # once it stood there
            for one in earlier["runs"]:
                recipe = chosen.recipe(one["model"], one["length"])
                same = (
                    before.recipe(one["model"], one["length"]) == recipe and one.get("together", 1) == recipe.together
                )
                if same and (one["model"], one["length"]) not in made:
                    runs.append(on | one)
    return sorted(runs, key=lambda one: (one["length"], settings.MODELS.index(one["model"])))


def _progress(row: dict[str, Any]) -> str:
    def show(name: str) -> str:
        return "/".join(f"{value:.3f}" for value in row[name])

    return (
        f"  {row['shape']} epoch {row['epoch']}: held-out {show('held_out_nll')} nats per call (training "
        f"{show('train_nll')}), windows predicted exactly {show('held_out_window_accuracy')}, "
        f"{row['calls_per_second']:,} calls/s"
    )


def _summary(model: str, length: int, trained: loop.Trained) -> dict[str, Any]:
    """The history, the seconds of all seeds, and what each seed's best epoch (by held-out loss) reached."""
    best = []
    for member, nll in enumerate(trained.held_out_nll):
        losses = [row["held_out_nll"][member] for row in trained.history]
        row = trained.history[losses.index(min(losses))]
        metrics = {name: row[name][member] for name in row if name.startswith(("train_", "held_out_"))}
        best.append({"epoch": row["epoch"], **metrics, "held_out_nll": float(nll)})
    rows = [{name: _rounded(value) for name, value in row.items()} for row in trained.history]
    seconds = settings.training_seconds(trained.history)
    return {"model": model, "length": length, "seconds": seconds, "best": best, "history": rows}


def _rounded(value: Any) -> Any:
    return [round(number, 5) for number in value] if isinstance(value, list) else value


if __name__ == "__main__":
    command.run(main)
