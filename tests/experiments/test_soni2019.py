"""The experiments of Soni et al., from an archive to the page of results, on made-up traces."""

import json
import re
import shutil

import numpy as np
import pytest

from syscall_lm.experiments import comparison, data
from syscall_lm.experiments.soni2019 import settings
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("read", "write", "open", "close"), "names of a test")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Normal traces that repeat read, write, open; attacks that also close."""
    path = tmp_path_factory.mktemp("soni") / "made-up.parquet"
    rng = np.random.default_rng(0)
    with TraceArchiveWriter(path, VOCABULARY) as writer:
        for i in range(40):
            calls = ((np.arange(20 + i) + i) % 3).astype(np.uint16)
            writer.write(Trace(calls, f"n{i}", label=NORMAL, split="test" if i % 4 == 3 else "train"))
        for i in range(5):
            calls = rng.integers(0, 4, 30).astype(np.uint16)
            writer.write(Trace(calls, f"a{i}", label=ATTACK, family="close", split="test"))
    return path


@pytest.fixture(scope="module")
def models(archive, tiny_model, tmp_path_factory):
    """Model directories of two seeds that claim to have been trained on the archive."""
    opened, paths = TraceArchive(archive), []
    for seed in (0, 1):
        train, held_out = data.training_traces(opened, data.HELD_OUT, seed)
        configuration = {
            "seed": seed,
            "training_data": data.fingerprint(train),
            "held_out_data": data.fingerprint(held_out),
            "vocabulary": VOCABULARY.hash,
        }
        path = tmp_path_factory.mktemp("models") / f"seed{seed}"
        paths.append(tiny_model(path, VOCABULARY, ("1x3", "1x4"), info={"configuration": configuration}))
    return paths


@pytest.fixture(scope="module")
def results(archive, models, tmp_path_factory, commands):
    folder = tmp_path_factory.mktemp("results")
    work, output, judged = folder / "work", folder / "output", folder / "judged"
    where = [f"--archive={archive}", f"--workdir={work}", f"--output={output}"]
    small = ["--lengths=3", "--cells=4", "--epochs=2", "--autoencoder_epochs=2", "--seeds=2"]
    quick = ["--lengths=3", "--rounds=2", "--steps=2", "--pushes=8"]
    shown = {"figures": [f"--training={output}/training-made-up.json", f"--output={output}"]}
    early = [f"--archive={archive}", f"--workdir={work}", f"--output={folder}"]
    done = {
        **commands(
            "soni2019.train",
            {
                "a part": [*where, *small, "--models=autoencoder"],
                "train": [*where, *small, "--models=encoder-decoder"],
                "no length": [*where, "--lengths=0"],
                "no such model": [*where, "--models=encoder-decoder,markov"],
                "no model": [*where, "--models="],
            },
        ),
        **commands(
            "soni2019.detection",
            {
                "one seed": [*where, f"--models={models[1]}"],
                "detection": [*where, f"--models={models[0]},{models[1]}"],
                "again": where,
                "too early": early,
                "twice": [*where, f"--models={models[0]},{models[0]}"],
                "no checkpoints": [where[0], f"--workdir={folder}/typo", f"--output={judged}"],
            },
            f"import shutil; shutil.copytree('{output}', '{judged}')",
        ),
        **commands("soni2019.figures", {**shown, "not one": [f"--training={output}/detection-made-up.json"]}),
        **commands(
            "soni2019.epoch_time", {"epoch_time": [where[0], where[2], *quick], "no L": [*where[::2], "--lengths="]}
        ),
        **commands("soni2019.summary", {"summary": [f"--results={output}"], "nothing": [f"--results={folder}"]}),
    }
    return output, done


def test_every_step_writes_its_results(results):
    output, done = results
    for name in ("train", "one seed", "detection", "again", "figures", "epoch_time", "summary"):
        assert done[name].code == 0, done[name].err
    assert {path.name for path in output.iterdir()} == {
        "training-made-up.json", "detection-made-up.json", "figure4-made-up.png", "figure5-made-up.png",
        "epoch_time.json", "table.md",
    }  # fmt: skip
    assert "epoch 2" in done["train"].out and "epoch" not in done["detection"].out  # a finished run is found again


def test_results_hold_a_run_for_every_model_and_seed(results):
    output, _ = results
    training = json.loads((output / "training-made-up.json").read_text())
    assert [(run["model"], run["length"], len(run["best"])) for run in training["runs"]] == [
        ("encoder-decoder", 3, 2),
        ("autoencoder", 3, 2),
    ]
    for run in training["runs"]:
        assert run["environment"]["device"] == "cpu"
        assert [row["epoch"] for row in run["history"]] == [1, 2]
        for best in run["best"]:
            assert 0 <= best["held_out_window_accuracy"] <= best["held_out_call_accuracy"] <= 1
    detectors = json.loads((output / "detection-made-up.json").read_text())["detectors"]
    names = [f"{m}, L = 3, {a}" for m in ("encoder-decoder", "autoencoder") for a in ("mean", "highest")]
    language_models = [f"language model{name}" for name in (" 1x3.1", " 1x4.2", ", ensemble")]
    assert list(detectors) == [*names, "stide", *language_models]
    for name in language_models:  # those of one seed alone have gone, and --models may be left out later
        assert [run["seed"] for run in detectors[name]["runs"]] == [0, 1]
    for name in names:
        assert [run["seed"] for run in detectors[name]["runs"]] == [0, 1]
        assert all(run["all"]["auc"] > 0.5 for run in detectors[name]["runs"])


@pytest.mark.parametrize(
    ("one", "other", "exceeds"),
    [
        ([0.5, 0.6], [0.3, 0.3], True),
        ([0.3, 0.3], [0.5, 0.6], False),
        ([0.5, 0.6], [0.5, 0.5], None),
        ([0.5], [0.4], True),
        ([0.5], [0.5], None),
    ],
)
def test_means_are_compared_with_the_spread_over_seeds(one, other, exceeds):
    assert comparison.exceeds(one, other) is exceeds


def test_runs_of_another_recipe_are_not_kept_beside_new_ones(results, archive, commands, tmp_path):
    output, _ = results
    training = json.loads((output / "training-made-up.json").read_text())
    (ours, theirs) = training["runs"]
    assert ours["together"] == 8 and theirs["together"] == 1  # encoder-decoder, autoencoder
    extra = [{**run, "length": 2, "together": together} for run in (ours, theirs) for together in (1, 8)]
    del extra[2]["together"]  # of a version that did not know of it
    (tmp_path / "training-made-up.json").write_text(json.dumps({**training, "runs": [*training["runs"], *extra]}))
    flags = [f"--archive={archive}", f"--workdir={output.parent}/work", f"--output={tmp_path}", "--lengths=3"]
    small = ["--cells=4", "--epochs=2", "--autoencoder_epochs=2", "--seeds=2", "--models=autoencoder"]
    done = commands("soni2019.train", {"": [*flags, *small]})[""]
    assert done.code == 0, done.err
    runs = json.loads((tmp_path / "training-made-up.json").read_text())["runs"]
    kept = sorted((run["model"], run["length"], run.get("together", 1)) for run in runs)
    assert kept == [("autoencoder", 2, 1), ("autoencoder", 3, 1), ("encoder-decoder", 2, 8), ("encoder-decoder", 3, 8)]


def test_results_of_another_training_than_the_workdir_s_are_refused(results, archive, commands, tmp_path):
    output, _ = results
    training = json.loads((output / "training-made-up.json").read_text())
    training["runs"][1]["best"][0]["held_out_nll"] += 0.1
    (tmp_path / "training-made-up.json").write_text(json.dumps(training))
    flags = [f"--archive={archive}", f"--workdir={output.parent}/work", f"--output={tmp_path}"]
    done = commands("soni2019.detection", {"": flags})[""]
    assert done.code == 2 and "another training than the results tell of" in done.err
    (tmp_path / "training-made-up.json").write_text(json.dumps(training | {"settings": {"depth": 3}}))
    done = commands("soni2019.detection", {"": flags})[""]
    assert done.code == 2 and "results of another version" in done.err


def test_what_another_training_left_is_judged_again(results, archive, commands, tmp_path):
    output, _ = results
    right = json.loads((output / "detection-made-up.json").read_text())
    stale = json.loads(json.dumps(right))
    changed, kept = (f"{model}, L = 3, mean" for model in settings.MODELS)
    for name in (changed, kept):
        stale["detectors"][name]["runs"][0]["score_seconds"] = -1
    del stale["detectors"][changed]["held_out_nll"]  # as of a version that did not tell
    shutil.copy(output / "training-made-up.json", tmp_path)
    (tmp_path / "detection-made-up.json").write_text(json.dumps(stale))
    flags = [f"--archive={archive}", f"--workdir={output.parent}/work", f"--output={tmp_path}"]
    done = commands("soni2019.detection", {"again": flags})["again"]
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "detection-made-up.json").read_text())["detectors"]
    assert list(found) == list(right["detectors"])
    assert [len(found[name]["runs"]) for name in found] == [len(right["detectors"][name]["runs"]) for name in found]
    assert found[kept]["runs"][0]["score_seconds"] == -1 < found[changed]["runs"][0]["score_seconds"]
    assert [run["all"] for run in found[changed]["runs"]] == [run["all"] for run in right["detectors"][changed]["runs"]]


def test_results_name_no_folders(results, archive):
    output, _ = results
    for path in output.glob("*.[jm]*"):
        assert not re.search(r"/(tmp|home|root|work)", path.read_text()), path.name
        assert str(archive.parent) not in path.read_text()


def test_the_page_shows_accuracy_beside_detection(results):
    page = (results[0] / "table.md").read_text()
    assert re.search(r"\| encoder-decoder \| 3 \| 2 \| .* % \| [01]\.\d{3} ± ", page)
    assert re.search(r"\| language model 1x3.1 \| [01]\.\d{3} ± ", page)
    assert "Windows traces: private, not obtainable" in page and "not run" in page and "| stide |" in page


def test_the_page_shows_times_beside_the_papers_and_speed_beside_the_language_model(results):
    page = (results[0] / "table.md").read_text()
    assert "| the paper's | 0.18 |" in page and "| the paper's | 0.23 |" in page and "| GPU | not measured |" in page
    row = json.loads((results[0] / "epoch_time.json").read_text())["rows"][0]
    assert row["seconds_per_epoch"] == row["seconds_per_step"] * row["steps_an_epoch"]
    ratio, low, high = row["language_model_ratio"]
    assert low <= ratio <= high and len(row["rounds"]) == 2
    told = rf"{ratio:.2f} \({low:.2f} to {high:.2f}\)"
    assert re.search(rf"\| encoder-decoder \| 3 \| {row['parameters']:,} .* \| {told} \|", page)
    for name in ("latency", "watch", "whole_window"):
        found = row[f"{name}_microseconds"]
        assert min(found["rounds"]) <= found["median"] <= found["99 %"] and len(found["rounds"]) == 2
    verdict = "met" if low >= 1 else "missed" if high < 1 else "neither met nor missed for certain"
    assert f"is {verdict} for L = 3 ({ratio:.2f})" in page
    assert "At H = 64, V = 5 a call costs 66 kFLOP to score, the language model's 33." in page


def test_more_lengths_than_a_figure_tells_apart_are_refused(results, tmp_path, commands):
    training = json.loads((results[0] / "training-made-up.json").read_text())
    training["runs"] = [{**training["runs"][0], "length": length} for length in range(1, 7)]
    (tmp_path / "training.json").write_text(json.dumps(training))
    done = commands("soni2019.figures", {"six": [f"--training={tmp_path}/training.json", f"--output={tmp_path}"]})[
        "six"
    ]
    assert done.code == 2 and "L = 1, 2, 3, 4, 5, 6; a figure tells 5 of them apart" in done.err


def test_the_time_of_a_training_is_that_of_its_epochs_if_all_are_known(results):
    page = (results[0] / "table.md").read_text()
    for run in json.loads((results[0] / "training-made-up.json").read_text())["runs"]:
        assert run["seconds"] == pytest.approx(sum(row["seconds"] for row in run["history"]), abs=0.1)
        assert settings.training_seconds(run["history"]) == run["seconds"]
        assert settings.training_seconds([*run["history"], {}]) is None
        assert re.search(rf"\| {run['model']} \| 3 \| 2 \| {run['seconds']:,.0f} \|", page)


def test_mistakes_are_told_in_one_sentence(results):
    _, done = results
    for name, words in {
        "too early": "run soni2019.train",
        "twice": "was trained with seed 0",
        "nothing": "no training",
        "no length": "lengths=0",
        "no L": "lengths=",
        "no such model": "no model is called 'markov'",
        "no model": "name at least one",
        "no checkpoints": "soni2019.train makes them",
        "not one": "no results of soni2019.train",
    }.items():
        assert done[name].code == 2 and words in done[name].err and "Traceback" not in done[name].err


def test_filter_makes_an_archive_of_an_archive(archive, tmp_path, commands):
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    done = commands(
        "filter",
        {
            "drop": [f"--archive={archive}", f"--output={once}", "--drop=write,close", "--order"],
            "collapse": [f"--archive={once}", f"--output={twice}", "--max_repeats=1"],
            "none": [f"--archive={archive}", f"--output={twice}"],
            "unknown": [f"--archive={archive}", f"--output={twice}", "--drop=fork"],
            "all": [f"--archive={archive}", f"--output={twice}", "--drop=read,write,open,close"],
        },
    )
    assert {name: one.code for name, one in done.items()} == {
        "drop": 0,
        "collapse": 0,
        "none": 2,
        "unknown": 2,
        "all": 2,
    }
    before, after = TraceArchive(archive), TraceArchive(twice)
    steps = after.metadata["filters"]
    assert [step["max_repeats"] for step in steps] == [0, 1] and steps[0]["drop"] == ["write", "close"]
    dropped = sum(steps[0]["counts"].values()) + sum(steps[1]["counts"].values())
    assert dropped == before.num_calls - after.num_calls > 0
    assert after.read().column("label").tolist() == before.read().column("label").tolist()
    assert not np.isin(after.read().calls.calls, [1, 3]).any()
    for name, words in {"none": "no filter", "unknown": "no such call", "all": "nothing is left"}.items():
        assert words in done[name].err


def test_the_times_of_a_gpu_stand_beside_the_cpu_s(results, tmp_path, commands):
    shutil.copytree(results[0], tmp_path / "results")
    measured = json.loads((results[0] / "epoch_time.json").read_text())
    measured["environment"]["device"] = "NVIDIA H100"
    measured["rows"][0]["seconds_per_epoch"] = 0.123
    (tmp_path / "results" / "gpu").mkdir()
    (tmp_path / "results" / "gpu" / "epoch_time.json").write_text(json.dumps(measured))
    done = commands("soni2019.summary", {"": [f"--results={tmp_path}/results"]})[""]
    assert done.code == 0 and "| | NVIDIA H100 | 0.12 |" in done.out and "| GPU |" not in done.out
