"""The score, calibrate and evaluate commands."""

import json
import os
import pathlib
import re
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest

from syscall_lm import scoring
from syscall_lm.detectors.autoencoder import AutoencoderDetector
from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.engines import shards
from syscall_lm.experiments import data
from syscall_lm.models import store
from syscall_lm.traces.archive import METADATA_KEY, TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Sequences, Trace
from syscall_lm.traces.vocabulary import Vocabulary

ROOT = pathlib.Path(__file__).parents[2]

NAMES = ("read", "write", "open", "close")
VOCABULARY = Vocabulary(NAMES, "names of a test")


def write(path, traces, vocabulary=VOCABULARY, **metadata):
    with TraceArchiveWriter(path, vocabulary) as writer:
        writer.metadata.update(metadata)
        for trace in traces:
            writer.write(trace)
    return path


def random_traces(count=90):
    rng = np.random.default_rng(0)
    kinds = [(NORMAL, "train"), (NORMAL, "test"), (ATTACK, "test")]
    lengths = [1, 1, 1, *rng.integers(1, 300, count - 3)]
    return [
        Trace(
            rng.integers(0, 5, lengths[i]).astype(np.uint16), f"t{i}", command="cmd\x1b[31m", label=kinds[i % 3][0],
            split=kinds[i % 3][1], family=("x", "y")[i // 3 % 2],
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """A model of three members and archives of several kinds."""
    folder = tmp_path_factory.mktemp("score")
    tiny_model(folder / "model", VOCABULARY, ("1x4", "1x4", "2x3"), info={"numbering": "A"})
    tiny_model(folder / "windows", VOCABULARY, ("encoder-decoder-3x4", "1x4", "autoencoder-3x4"))
    tiny_model(folder / "uncalibrated", VOCABULARY)
    (folder / "uncalibrated" / store.CALIBRATION).unlink()
    tiny_model(folder / "damaged", VOCABULARY)
    for file in (folder / "damaged" / "parameters").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    write(folder / "traces", random_traces())
    # Another host: other order, other names; what both know must mean the same.
    other = Vocabulary(("mmap", "close", "read"), "another host")
    write(folder / "other", [Trace(np.array([2, 1, 0, 3, 2], np.uint16), "o")], other)
    same = VOCABULARY.encode(["read", "close", "mmap", "mmap", "read"])
    write(folder / "same", [Trace(same, "o")])
    write(folder / "foreign", [Trace(np.zeros(2, np.uint16), "f")], Vocabulary(("NtClose",)))
    write(folder / "numbered", [Trace(np.zeros(2, np.uint16), "f")], numbering="B")
    (folder / "empty").touch()
    return folder


@pytest.fixture(scope="module")
def scored(folder, commands):
    def case(output, archive="traces", model="model", *more):
        return [f"--model={folder}/{model}", f"--archive={folder}/{archive}", f"--output={folder}/{output}", *more]

    (folder / "directory").mkdir()
    cases = {
        "ok": case("ok.parquet"),
        "average": case("average.parquet", "traces", "model", "--ensemble=average", "--far=0.2", "--stretch=7"),
        "windows": case("windows.parquet", "traces", "windows", f"--profile_dir={folder}/profile"),
        "bfloat16": case("bfloat16.parquet", "traces", "model", "--operands=bfloat16"),
        "other": case("other.parquet", "other"),
        "same": case("same.parquet", "same"),
        "no call name in common": case("bad", "foreign"),
        "numbering B": case("bad", "numbered"),
        "not a model directory": case("bad", "traces", "nothing"),
        "no calibration": case("bad", "traces", "uncalibrated"),
        "parameters: missing or damaged": case("bad", "traces", "damaged"),
        "or truncated": case("bad", "empty"),
        "no such file": case("bad", "nothing"),
        "between 0 and 1": case("bad", "traces", "model", "--far=0"),
        "stretch": case("bad", "traces", "model", "--stretch=0"),
        "is a folder": case("directory"),
        "cannot be written": case("ok.parquet/x"),
        "--output: missing": case("bad")[:2],
        "concern --engine=ray": case("bad", "traces", "model", "--workers=2"),
        "would replace": case("directory/../traces"),
        "model.json: is an input": case("model/model.json"),
        "names no file": [*case("bad")[:2], "--output="],
    }
    # Small shards, so that an archive comes in several.
    return commands("score", {name: [*flags, "--shard_calls=2000"] for name, flags in cases.items()})


@pytest.mark.parametrize(
    ("case", "name", "operands", "tolerance"),
    [
        ("ok", "model", "float32", 1e-5),
        ("windows", "windows", "float32", 1e-5),
        ("bfloat16", "model", "bfloat16", 1e-3),  # a sum's last bit may decide how the next operand is rounded
    ],
)
def test_every_row_equals_what_the_library_says(folder, scored, case, name, operands, tolerance):
    assert scored[case].code == 0, scored[case].err
    table = pq.read_table(folder / f"{case}.parquet")
    model = store.load(folder / name)
    detector = LanguageModelDetector.load(model, operands=operands)
    batch = TraceArchive(folder / "traces").read()
    members = detector.member_scores(batch.calls)
    assert table["id"].to_pylist() == list(batch.column("id"))
    for i, name in enumerate(detector.scorer.names):
        np.testing.assert_allclose(table[f"nll_{name}"], members[i], rtol=tolerance)
    np.testing.assert_allclose(table["score"], detector.decision_function(batch.calls), rtol=tolerance, atol=1e-6)
    footer = pq.read_metadata(folder / f"{case}.parquet").metadata
    assert json.loads(footer[shards.MANIFEST_KEY.encode()])["operands"] == operands
    assert table["length"].to_pylist() == batch.calls.lengths.tolist()
    abnormal = np.array(table["verdict"].to_pylist()) == "abnormal"
    np.testing.assert_array_equal(abnormal, np.asarray(table["score"]) > detector.threshold_)
    assert 0 < abnormal.sum() < len(abnormal) or case == "windows"
    header = json.loads(table.schema.metadata[METADATA_KEY])
    assert header["threshold"] == detector.threshold_ and header["far"] == 0.01
    assert f"90 traces: {abnormal.sum()} abnormal" in scored[case].out


def readme(start: str) -> str:
    """A snippet of README, by what it begins with."""
    found = re.search(rf"```\n( *{start}.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


def test_the_readme_lists_the_abnormal_traces_worst_first(folder, scored, monkeypatch):
    assert scored["average"].code == 0
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(readme("import pyarrow").replace("scores.parquet", "average.parquet"), found)
    scores = pq.read_table(folder / "average.parquet").to_pylist()
    expected = sorted((row["score"] for row in scores if row["verdict"] == "abnormal"), reverse=True)
    assert [row["score"] for row in found["worst_first"]] == expected and len(expected) > 1


def test_the_readme_scores_live_calls(folder, scored, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(readme("from syscall_lm.detectors"), found)
    calls = found["model"].vocabulary.encode(["execve", "brk", "mmap"])
    whole = found["detector"].scorer.surprisal(Sequences.from_list([calls]))
    printed = np.array(re.findall(r"\d+\.\d+", capsys.readouterr().out), float).reshape(3, -1)
    np.testing.assert_allclose(printed, whole.T, rtol=1e-5)


def test_the_stretch_is_found_and_named(folder, scored):
    assert scored["average"].code == 0
    table = pq.read_table(folder / "average.parquet")
    detector = LanguageModelDetector.load(store.load(folder / "model"))
    batch = TraceArchive(folder / "traces").read()
    surprisal = detector.scorer.surprisal(batch.calls).mean(axis=0)
    starts, lengths, means = scoring.most_surprising_stretches(surprisal, batch.calls, 7)
    np.testing.assert_allclose(table["stretch_nll"], means, rtol=1e-5)
    assert table["stretch_length"].to_pylist() == lengths.tolist()
    for i, calls in enumerate(batch.calls):
        first = table["stretch_start"][i].as_py()
        names = [VOCABULARY.name(int(call)) for call in calls[first : first + lengths[i]]]
        assert table["stretch_calls"][i].as_py() == names
        assert table["unknown_calls"][i].as_py() == (calls == VOCABULARY.unk).sum()
        nats = surprisal[batch.calls.offsets[i] : batch.calls.offsets[i + 1]]
        least = table["least_expected"][i].as_py()
        assert least == nats.argmax() and table["least_expected_call"][i].as_py() == VOCABULARY.name(int(calls[least]))
        np.testing.assert_allclose(table["least_expected_nll"][i].as_py(), nats.max(), rtol=1e-5)


def test_another_hosts_archive_is_mapped_by_name(folder, scored):
    assert scored["other"].code == scored["same"].code == 0
    other, same = (pq.read_table(folder / f"{name}.parquet") for name in ("other", "same"))
    assert other["score"][0].as_py() == same["score"][0].as_py()
    assert other["unknown_calls"].to_pylist() == [2] == same["unknown_calls"].to_pylist()
    assert "2 calls are unknown to the model" in scored["other"].out


def test_mistakes_are_one_sentence_and_leave_nothing(folder, scored):
    for expected, result in scored.items():
        if expected in ("ok", "average", "windows", "bfloat16", "other", "same"):
            continue
        assert result.code == 2 and expected in result.err, (expected, result)
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert not (folder / "bad").exists()
    assert not [name for name in os.listdir(folder) if name.endswith((".part", ".parts"))]


def test_the_terminal_counts_calls_from_one(folder, scored):
    rows = pq.read_table(folder / "ok.parquet").sort_by([("score", "descending")]).slice(0, 1).to_pylist()
    line = next(line for line in scored["ok"].out.splitlines() if rows[0]["id"] + " (" in line)
    assert f"at call {rows[0]['stretch_start'] + 1}: " in line
    assert f"{rows[0]['least_expected_call']} at {rows[0]['least_expected'] + 1}, " in line


def test_a_profile_tells_the_phases_of_host_and_device(folder, scored):
    assert scored["windows"].code == 0 and f"profile: {folder}/profile" in scored["windows"].out
    profile = next((folder / "profile").rglob("*.xplane.pb")).read_bytes()
    phases = (b"gather a tile", b"collect a tile", b"score_tile/", b"layer_0", b"head", b"encoder", b"decoder")
    assert [phase for phase in phases if phase not in profile] == []


def test_nothing_of_a_trace_reaches_the_terminal_unescaped(scored):
    assert r"cmd\x1b[31m" in scored["ok"].out and "\x1b" not in scored["ok"].out


def test_calibrating_on_what_was_learned_is_told(folder, tiny_model, commands):
    batch = TraceArchive(folder / "traces").read()
    of = {split: batch.calls.take(data.normal_split(batch, split)) for split in ("train", "test")}
    sizes = {split: {"traces": len(traces), "calls": len(traces.calls)} for split, traces in of.items()}
    cases = {}
    for name, training in (("alone", sizes["train"]), ("other", {**sizes["train"], "calls": 1})):
        info = {"training": training, "held_out": {"traces": 0, "calls": 0}}
        tiny_model(folder / f"learned-{name}", VOCABULARY, info=info)
        cases[name] = [f"--model={folder}/learned-{name}", f"--archive={folder}/traces", "--split=train"]
    cases["new"] = [*cases["alone"][:2], "--split=test"]
    part = {key: sizes["train"][key] - 1 for key in ("traces", "calls")}
    tiny_model(folder / "learned-most", VOCABULARY, info={"training": part, "held_out": {"traces": 1, "calls": 1}})
    cases["most"] = [f"--model={folder}/learned-most", *cases["alone"][1:]]
    done = commands("calibrate", cases)
    assert {one.code for one in done.values()} == {0}
    assert {name for name, one in done.items() if "the model learned from these traces" in one.out} == {"alone", "most"}
    source = json.loads((folder / "learned-most" / store.CALIBRATION).read_text())["source"]
    assert source.endswith("traces, split 'train', from which the model learned")


def test_calibrate_sets_the_asked_false_alarm_rate(folder, tiny_model, commands):
    model = tiny_model(folder / "recalibrated", VOCABULARY, ("1x4", "autoencoder-3x2"))
    before = json.loads((model / store.CALIBRATION).read_text())
    base = [f"--model={model}", f"--archive={folder}/traces"]
    cases = {"test": [*base, "--split=test"], "no normal traces": [*base, "--split=validation"]}
    cases["medians"] = [*base, "--split=train", "--medians"]
    done = commands("calibrate", cases)
    assert (
        done["no normal traces"].code == 2 and "no normal traces in split 'validation'" in done["no normal traces"].err
    )
    assert done["test"].code == 0, done["test"].err
    assert "calibrated on 30 normal traces of traces, split 'test'" in done["test"].out
    assert "cannot promise a false alarm rate of 0.01 (99 could)" in done["test"].out
    detector = LanguageModelDetector.load(store.load(model), false_alarm_rate=0.1)
    batch = TraceArchive(folder / "traces").read()
    normal = batch.calls.take((batch.column("split") == "train") & (batch.column("label") == NORMAL))
    np.testing.assert_allclose(detector.calibration.held_out, detector.member_scores(normal), rtol=1e-5)
    np.testing.assert_allclose(
        detector.calibration.medians, np.median(detector.member_scores(normal), axis=1), rtol=1e-5
    )
    assert detector.predict(normal).sum() == 2  # the 28th of 30 scores: ceil(31 * 0.9)
    by_windows = AutoencoderDetector.load(store.load(model), false_alarm_rate=0.1)
    np.testing.assert_allclose(detector.calibration.windows[1], np.sort(by_windows.verdicts(normal).score), rtol=1e-5)
    assert len(detector.calibration.windows[0]) == 0 and 0 < by_windows.verdicts(normal).abnormal.mean() <= 0.1
    calibrated = (model / store.CALIBRATION).read_text()
    lost = [f"--model={folder}/uncalibrated", base[1], "--split=train"]
    cases = {"far": [*base, "--split=test", "--far=5"], "lost": lost, "mended": [*lost, "--medians"]}
    done = commands("calibrate", cases)
    assert done["lost"].code == 2 and "run `calibrate --medians`" in done["lost"].err
    assert done["mended"].code == 0, done["mended"].err
    LanguageModelDetector.load(store.load(folder / "uncalibrated"))
    wrong = done["far"]
    assert wrong.code == 2 and wrong.out == "" and (model / store.CALIBRATION).read_text() == calibrated
    assert before["members"]["1x4.1"]["median"] != detector.calibration.medians[0]


def test_evaluate_writes_figures_with_and_without_copies(folder, tiny_model, commands):
    traces = random_traces()
    traces += [Trace(traces[i].calls, f"copy{i}", label=NORMAL, split="test") for i in (0, 3, 6)]
    write(folder / "labelled", traces)
    write(folder / "normal_only", [t for t in traces if t.label == NORMAL])
    tiny_model(folder / "one", VOCABULARY, ("1x4",))
    base = [f"--model={folder}/model", f"--output={folder}/results"]
    detectors = "--detectors=stide,vote,lstm-longest"
    cases = {
        "ok": [*base, detectors, f"--archive={folder}/labelled"],
        "attacks (0)": [*base, f"--archive={folder}/normal_only"],
        "one": [f"--model={folder}/one", f"--output={folder}/one_results", "--far=0.1", f"--archive={folder}/labelled"],
    }
    done = commands("evaluate", cases)
    assert done["attacks (0)"].code == 2 and "attacks (0)" in done["attacks (0)"].err
    assert done["ok"].code == 0, done["ok"].err
    result = json.loads((folder / "results" / "results.json").read_text())
    points = json.loads((folder / "one_results" / "results.json").read_text())["operating_points"]
    assert [point["far_asked"] for point in points.values()] == [0.1]  # a member alone has a threshold, too
    # One-call traces of the test split may equal one of the training split by chance; three copies are certain.
    assert result["traces"]["normal"] == 33 and result["traces"]["attack"] == 30
    assert 3 <= result["traces"]["copies"] <= 4
    members = ["1x4.1", "1x4.2", "2x3.3"]
    expected = [*members, "leaky_relu", "average", "vote", "stide", *(f"lstm-longest {name}" for name in members)]
    assert list(result["detectors"]) == expected
    for both in result["detectors"].values():
        assert both["all"]["normal"] - both["without_copies"]["normal"] == result["traces"]["copies"]
        assert both["all"]["families"].keys() == {"x", "y"}
    assert (folder / "results" / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "results" / "table.md").read_text() in done["ok"].out + "\n"
