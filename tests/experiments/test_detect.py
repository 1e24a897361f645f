"""The command `detect`: detectors of the catalogue learn one archive and judge another."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from syscall_lm.detectors import catalogue
from syscall_lm.detectors.base import conformal_threshold
from syscall_lm.experiments import data
from syscall_lm.traces.archive import METADATA_KEY, TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

OURS = Vocabulary(("read", "write", "open", "close", "mmap"), "ours")
THEIRS = Vocabulary(("close", "ptrace", "open", "write", "read"), "theirs")  # other ids, and a call that is not ours
ASKED = ("ngram", "call-sets", "stide")


def write(path, vocabulary, traces, **metadata):
    with TraceArchiveWriter(path, vocabulary) as writer:
        writer.metadata.update(metadata)
        for trace in traces:
            writer.write(trace)
    return path


def loops(rng, count, label=""):
    """Traces of open, reads and writes, close."""
    return [
        Trace(np.array([2, *rng.integers(0, 2, rng.integers(1, 30)), 3], np.uint16), f"n\x1b{i}", label=label)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def detected(tmp_path_factory, commands):
    folder = tmp_path_factory.mktemp("detect")
    rng = np.random.default_rng(0)
    attack = Trace(np.full(30, 4, np.uint16), "attack", label=ATTACK)  # is not to be learned
    normal = write(folder / "normal", OURS, [*loops(rng, 60), attack])
    archive = write(
        folder / "traces",
        THEIRS,
        [
            Trace(np.array([2, 4, 3, 4, 0], np.uint16), "usual"),
            Trace(np.array([1, 1, 1], np.uint16), "unknown", command="id\x1b"),
            Trace(np.array([0, 0, 0, 2, 2, 2], np.uint16), "odd"),
        ],
        notice="a\x1bnotice",
    )
    write(folder / "foreign", Vocabulary(("a", "b"), "foreign"), [Trace(np.array([0], np.uint16), "t")])
    write(folder / "cut", THEIRS, [Trace(np.array([0], np.uint16), "t")], filters=[{"drop": ["read"]}])
    write(folder / "attacks", OURS, [attack])
    write(folder / "empty", THEIRS, [])
    odd = [Trace(np.array([2, *rng.permutation([0, 1, 2, 3] * 3)], np.uint16), f"o{i}", label=NORMAL) for i in range(9)]
    unlabelled = Trace(np.array([0, 0, 0], np.uint16), "unlabelled")
    train, held_out = data.training_traces(TraceArchive(normal), data.HELD_OUT, 0)
    write(folder / "alarms", OURS, [*odd, unlabelled, Trace(held_out[0], "held out", label=NORMAL)])
    new = [Trace(rng.choice([1, 3], 12).astype(np.uint16), f"a{i}", label=ATTACK) for i in range(7)]
    new.append(Trace(np.array([0, 0, 0, 2, 2, 2], np.uint16), "odd", label=ATTACK))  # is judged, too
    new.append(Trace(THEIRS.map_from(OURS)[train[0]].astype(np.uint16), "usual", label=ATTACK))
    write(folder / "incidents", THEIRS, new)
    common = [f"--normal={normal}", f"--archive={archive}", "--far=0.2"]
    bad = [f"--output={folder}/bad"]
    (folder / "folder").mkdir()
    cases = {
        "ok": [*common, f"--output={folder}/ok", f"--detectors={','.join(ASKED)}", "--top=2"],
        "default": [*common, f"--output={folder}/default"],
        "taught": [
            *common,
            f"--output={folder}/taught",
            "--detectors=taught,stide",
            f"--examples={folder}/alarms,{folder}/incidents",
        ],
        "an archive without traces": [f"--normal={normal}", f"--archive={folder}/empty", *bad],
        "between 0 and 1": [*common, *bad, "--far=0"],
        "looks into a trained model": [*common, *bad, "--detectors=lstm"],
        "no detector is called": [*common, *bad, "--detectors=magic"],
        "no call name in common": [f"--normal={normal}", f"--archive={folder}/foreign", *bad],
        "without read, but": [f"--normal={normal}", f"--archive={folder}/cut", *bad],
        "no normal traces to learn from": [f"--normal={folder}/attacks", f"--archive={archive}", *bad],
        "would replace": [*common, f"--output={archive}"],
        "is a folder": [*common, f"--output={folder}/folder"],
        "--examples names their archives": [*common, *bad, "--detectors=taught"],
        "none of --detectors=stide learns from them, as taught does": [
            *common,
            *bad,
            "--detectors=stide",
            f"--examples={folder}/alarms",
        ],
        "examples must hold attacks and normal traces; there are 0 attacks and 9 normal": [
            *common,
            *bad,
            "--detectors=taught",
            f"--examples={folder}/alarms",
        ],
        "stands twice": [*common, *bad, "--detectors=taught", f"--examples={folder}/alarms,{folder}/alarms"],
        "incidents: is an input, which the output would replace": [
            *common,
            f"--output={folder}/incidents",
            "--detectors=taught",
            f"--examples={folder}/alarms,{folder}/incidents",
        ],
        "nothing: no such file": [*common, *bad, "--detectors=taught", f"--examples={folder}/alarms,{folder}/nothing"],
        "--seed": [*common, *bad, "--seed=-1"],
        "--normal: missing": [f"--archive={archive}", *bad],
    }
    return folder, cases, commands("detect", cases)


def test_rows_are_what_the_detectors_say(detected):
    folder, _, done = detected
    assert done["ok"].code == 0, done["ok"].err
    train, held_out = data.training_traces(TraceArchive(folder / "normal"), data.HELD_OUT, 0)
    assert len(train) + len(held_out) == 60 and train.calls.max() < 4
    archive = TraceArchive(folder / "traces")
    judged = archive.read().calls.translate(OURS.map_from(THEIRS))
    found = pq.read_table(folder / "ok")
    header = json.loads(found.schema.metadata[METADATA_KEY])
    assert found["id"].to_pylist() == ["usual", "unknown", "odd"]
    assert found["unknown_calls"].to_pylist() == [0, 3, 0] and found["length"].to_pylist() == [5, 3, 6]
    for name, detector in catalogue.build(ASKED, OURS.size).items():
        detector.fit(train)
        expected = detector.decision_function(judged)
        threshold = conformal_threshold(detector.decision_function(held_out), 0.2)
        np.testing.assert_allclose(found[f"score_{name}"], expected, rtol=1e-12)
        np.testing.assert_allclose(header["thresholds"][name], threshold, rtol=1e-12)
        verdicts = np.where(expected > threshold, "abnormal", "normal")
        assert found[f"verdict_{name}"].to_pylist() == verdicts.tolist()
        assert f"{name}: {(expected > threshold).sum()} of 3 traces abnormal" in done["ok"].out
    assert found["verdict_ngram"].to_pylist() == ["normal", "abnormal", "abnormal"]


def test_the_terminal_shows_the_most_suspicious_and_no_control_characters(detected):
    _, _, done = detected
    lines = done["ok"].out.splitlines()
    shown = [line for line in lines if line.startswith("  ")]
    assert len(shown) == 2 and shown[0].startswith(r"  unknown (id\x1b), 3 calls: ngram ")
    assert "3 calls are unknown to " in done["ok"].out and "\x1b" not in done["ok"].out
    assert lines[-2] == r"a\x1bnotice"


def test_the_default_pairs_an_ngram_with_the_best_detector(detected):
    folder, _, done = detected
    assert done["default"].code == 0, done["default"].err
    assert pq.read_schema(folder / "default").names[-4:] == [
        "score_ngram", "verdict_ngram", "score_sets-and-mixture", "verdict_sets-and-mixture",
    ]  # fmt: skip


def test_a_taught_detector_learns_from_archives_of_examples(detected):
    folder, _, done = detected
    assert done["taught"].code == 0, done["taught"].err
    assert (
        "alarms: 0 attacks, 10 normal traces, 1 without a label left out, 1 left out that set the" in done["taught"].out
    )
    assert "incidents: 9 attacks, 0 normal traces\n" in done["taught"].out
    assert "note: 9 attacks are few to be taught by" in done["taught"].out
    assert "note: 1 of the traces are examples themselves, known to taught by their labels" in done["taught"].out
    assert "note: 1 of these attacks equal a normal trace, call by call" in done["taught"].out
    normal, archive = TraceArchive(folder / "normal"), TraceArchive(folder / "traces")
    train, held_out = data.training_traces(normal, data.HELD_OUT, 0)
    examples = data.examples([TraceArchive(folder / name) for name in ("alarms", "incidents")], normal, train, held_out)
    assert examples.is_attack.tolist() == [False] * 9 + [True] * 9
    # "ptrace" of the incidents is not among our calls, and "write" has another number there.
    assert set(examples.traces.take(examples.is_attack).calls[: 7 * 12].tolist()) == {normal.vocabulary.unk, 1}
    detector = catalogue.build(["taught"], OURS.size, examples=examples)["taught"].fit(train, held_out)
    found = pq.read_table(folder / "taught")
    expected = detector.decision_function(archive.read().calls.translate(OURS.map_from(THEIRS)))
    np.testing.assert_allclose(found["score_taught"], expected, rtol=1e-9)
    header = json.loads(found.schema.metadata[METADATA_KEY])
    assert header["examples"] == ["alarms", "incidents"] and set(header["thresholds"]) == {"taught", "stide"}


def test_mistakes_are_one_sentence(detected):
    folder, cases, done = detected
    before = TraceArchive(folder / "traces").read()
    for sentence in list(cases)[3:]:
        assert done[sentence].code == 2 and sentence in done[sentence].err, (sentence, done[sentence])
        assert done[sentence].err.count("\n") == 1 and "learned" not in done[sentence].out
    assert not (folder / "bad").exists() and len(before) == 3
