"""The report command: complete reports for every kind of archive, one sentence for every mistake."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syscall_lm.traces.archive import METADATA_KEY, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

NAMES = ("read", "write", "open", "close", "execve", "<b>bold</b>")
HOSTILE = "<script>alert(1)</script>\x1b[31m"
SETUP = """
from syscall_lm.reports import figures
figures.DPI = 30  # for speed
module.CALLS_PER_BATCH = 8000  # so that archives of a test come in several batches
"""


def write(path, traces, names=NAMES, **metadata):
    with TraceArchiveWriter(path, Vocabulary(names, "names of a test")) as writer:
        writer.metadata.update(metadata)
        for trace in traces:
            writer.write(trace)
    return path


def trace(number, length, rng, **known: Any):
    return Trace(rng.integers(0, len(NAMES) + 1, length).astype(np.uint16), f"trace-{number}", **known)


def some_traces(count, **known):
    rng = np.random.default_rng(count)
    return [trace(i, int(rng.integers(2, 900)), rng, **known) for i in range(count)]


def labelled():
    rng = np.random.default_rng(1)
    kinds = [(NORMAL, "train"), (NORMAL, "test"), (NORMAL, "test"), (ATTACK, "test")]
    traces = [
        trace(i, 30, rng, label=kinds[i % 4][0], split=kinds[i % 4][1], family="ab"[i % 3 == 0]) for i in range(60)
    ]
    copy = Trace(traces[0].calls, "copy", label=NORMAL, split="test")  # of a training trace
    return [*traces, copy]


def scores_of(path, archive_name, ids, values, member="1x4.1"):
    header = {"archive": archive_name, "ensemble": "average", "far": 0.05, "threshold": 1.0}
    table = pa.table({"id": ids, f"nll_{member}": values})
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(header)}), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def done(folder, tiny_model, commands):
    """Case -> exit code, standard output, standard error."""
    vocabulary = Vocabulary(NAMES, "names of a test")
    info = {"archive": "unsplit.parquet", "results": {"1x4.1": {"held_out_nll": 1.5, "best_epoch": 2, "epochs": 3}}}
    info["configuration"] = {"epochs": 3, "learning_rate": 0.004}
    one = tiny_model(folder / "one", vocabulary, info=info)
    three = tiny_model(folder / "three", Vocabulary((*NAMES[:4], "mmap"), "x"), ("1x4", "1x4", "2x3"), held_out=50)
    own = {"encoder-decoder-3x4": {"epochs": 3, "learning_rate": 0.01}}
    windows = {"configuration": info["configuration"] | {"windows": own}}
    mixed = tiny_model(folder / "mixed", vocabulary, ("1x4", "encoder-decoder-3x4"), info=windows)
    shutil.copytree(one, folder / "uncalibrated")
    (folder / "uncalibrated" / "calibration.json").unlink()
    rng = np.random.default_rng(0)
    hostile: dict[str, Any] = {"command": HOSTILE, "host": HOSTILE, "family": HOSTILE}
    counters = {"skipped": {"not a call": 4, HOSTILE: 2}, "unknown": {HOSTILE: 3}}
    archives = {
        "labelled": write(folder / "labelled.parquet", labelled()),
        "unlabelled": write(folder / "unlabelled.parquet", some_traces(25), counters=counters),
        "hostile": write(
            folder / "hostile.parquet",
            [Trace(t.calls, HOSTILE + t.id, label=NORMAL, **hostile) for t in some_traces(12)],
            counters=counters,
        ),
        "odd": write(folder / "odd.parquet", some_traces(3), counters=["not", "counters"], skipped_files={"x": "many"}),
        "one_call": write(folder / "one_call.parquet", [trace(0, 1, rng)]),
        "unsplit": write(
            folder / "unsplit.parquet",
            [trace(i, 9, rng, label=(NORMAL, ATTACK)[i % 2], family=None) for i in range(20)],  # type: ignore[arg-type]
        ),
        "corpus": write(folder / "corpus.parquet", some_traces(4), notice="A demonstration <i>"),
        "foreign": write(folder / "foreign.parquet", [Trace(np.array([0], np.uint16), "x")], names=("NtClose",)),
    }
    (folder / "file").write_text("not a directory")
    ids = [t.id for t in some_traces(25)]
    near = scores_of(folder / "near.parquet", "unlabelled.parquet", ids, [np.log(7)] * 25)
    far = scores_of(folder / "far.parquet", "unlabelled.parquet", ids, [9.0] * 25)
    short = scores_of(folder / "short.parquet", "unlabelled.parquet", ids[:9], [9.0] * 9)
    shuffled = scores_of(folder / "shuffled.parquet", "unlabelled.parquet", ids[::-1], [9.0] * 25)
    members = scores_of(folder / "members.parquet", "unlabelled.parquet", ids, [9.0] * 25, "1x9")

    def case(name, model=one, archive=None, *more):
        path = archive or archives[name]
        return [f"--model={model}", f"--archive={path}", f"--output={folder}/out-{name}", *map(str, more)]

    plain = archives["unlabelled"]
    cases = {name: case(name, one, None, "--top=2") for name in archives}
    cases |= {
        "unlabelled": case("unlabelled"),
        "few": case("few", one, archives["odd"]),
        "ensemble": case("ensemble", three, archives["labelled"], "--top=2"),
        "mixed": case("mixed", mixed, archives["odd"], "--top=1"),
        "options": case("options", one, plain, "--ensemble=average", "--far=0.05", "--top=3", "--stretch=7"),
        "saved": case("saved", one, plain, f"--scores={near}", "--top=2"),
        "saved_far": case("saved_far", one, plain, f"--scores={near}", "--far=0.2", "--top=2"),
        "bad_scores": case("bad_scores", one, plain, f"--scores={far}"),
        "short_scores": case("short_scores", one, plain, f"--scores={short}"),
        "shuffled_scores": case("shuffled_scores", one, plain, f"--scores={shuffled}"),
        "member_scores": case("member_scores", one, plain, f"--scores={members}"),
        "scores_archive": case("scores_archive", one, plain, f"--scores={plain}"),
        "no_scores": case("no_scores", one, plain, f"--scores={folder}/missing"),
        "no_model": case("no_model", folder / "missing", plain),
        "no_archive": case("no_archive", one, folder / "missing"),
        "no_calibration": case("no_calibration", folder / "uncalibrated", plain),
        "text_archive": case("text_archive", one, folder / "file"),
        "bad_rate": case("bad_rate", one, plain, "--far=1.5"),
        "argument": case("argument", one, plain, "surplus"),
        "output_is_a_file": [*case("x", one, plain)[:2], f"--output={folder}/file"],
        "no_flags": [],
    }
    return commands("report", cases, SETUP)


def page_of(folder, done, name):
    assert done[name][0] == 0, done[name]
    return (folder / f"out-{name}" / "report.html").read_text(encoding="utf-8")


def numbers_of(folder, name):
    return json.loads((folder / f"out-{name}" / "report.json").read_text(encoding="utf-8"))


GOOD = ["labelled", "unlabelled", "hostile", "odd", "one_call", "unsplit", "corpus", "ensemble", "options", "saved"]


@pytest.mark.parametrize("name", GOOD)
def test_a_report_holds_its_page_its_numbers_and_its_figures_and_no_remains(folder, done, name):
    page = page_of(folder, done, name)
    files = {file.name for file in (folder / f"out-{name}").iterdir()}
    traces = numbers_of(folder, name)["suspects"]
    assert {"report.html", "report.json", "scores.png", "trace-01.png"} <= files
    assert len([file for file in files if file.startswith("trace-")]) == len(traces) == page.count('class="rank"')
    assert all(file.endswith((".html", ".json", ".png")) and not file.startswith(".") for file in files)
    assert ("roc.png" in files) == (name in ("labelled", "ensemble", "unsplit"))
    assert "http://" not in page and "https://" not in page


def test_the_ten_most_suspicious_traces_come_in_falling_order(folder, done):
    page = page_of(folder, done, "unlabelled")
    suspects = numbers_of(folder, "unlabelled")["suspects"]
    assert len(suspects) == 10
    scores = [suspect["score"] for suspect in suspects]
    assert scores == sorted(scores, reverse=True)
    places = [page.index(f">{suspect['id']}<") for suspect in suspects]
    assert places == sorted(places)


def test_fewer_than_ten_traces_are_all_shown(folder, done):
    page_of(folder, done, "few")
    assert len(numbers_of(folder, "few")["suspects"]) == 3


def test_a_trace_of_one_call_and_an_archive_of_one_trace(folder, done):
    page_of(folder, done, "one_call")
    (suspect,) = numbers_of(folder, "one_call")["suspects"]
    assert (suspect["length"], suspect["stretch_start"], len(suspect["stretch"])) == (1, 0, 1)
    assert suspect["least_expected"] == [0, *suspect["stretch"][0]]


def test_hostile_names_are_escaped_everywhere(folder, done):
    page = page_of(folder, done, "hostile")
    assert "<script" not in page and "\x1b" not in page and "<b>bold" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m") >= 10
    assert "&lt;b&gt;bold&lt;/b&gt;" in page


def test_labels_give_figures_of_detection(folder, done):
    page = page_of(folder, done, "labelled")
    result = numbers_of(folder, "labelled")
    judged = result["evaluation"]
    assert (judged["all"]["normal"], judged["all"]["attacks"], judged["copies"]) == (31, 15, 1)
    assert judged["without_copies"]["normal"] == 30
    assert sum(row["attacks"] for row in judged["all"]["families"].values()) == 15
    assert sum(judged["per_family"].values()) == judged["detections"]
    assert result["abnormal"] == sum(group[4] for group in result["groups"])
    assert "By kind of attack" in page and "without 1 copies" in page and "Each member alone" not in page


def test_an_ensemble_shows_its_members_and_what_they_do_not_know(folder, done):
    page = page_of(folder, done, "ensemble")
    result = numbers_of(folder, "ensemble")
    assert list(result["evaluation"]["members"]) == ["1x4.1", "1x4.2", "2x3.3"]
    assert {name for name, _ in result["unknown_names"]} == {"execve", "<b>bold</b>", "<unknown>"}
    assert sum(times for _, times in result["unknown_names"]) == result["unknown_calls"] > 0
    assert "50 held-out traces cannot promise" in page and "Each member alone" in page


def test_models_of_windows_are_called_so_and_show_the_recipe_that_is_their_own(folder, done):
    page = page_of(folder, done, "mixed")
    kinds = "1 LSTM language model (Kim et al., arXiv 1611.01726) and 1 model of windows of calls (Soni et al. 2019)"
    assert kinds in page
    assert ["encoder-decoder-3x4", "learning rate 0.01"] in numbers_of(folder, "mixed")["facts"]["Recipe"]


def test_without_labels_there_are_no_figures_of_detection(folder, done):
    assert "no labelled normal traces and attacks" in page_of(folder, done, "unlabelled")
    assert numbers_of(folder, "unlabelled")["evaluation"] is None


def test_normal_traces_that_the_model_may_have_learned_from_are_pointed_out(folder, done):
    for words in ("it may have learned from these normal traces", "score low by construction"):
        assert words in page_of(folder, done, "unsplit")
        assert words not in page_of(folder, done, "labelled")


def test_an_archives_notice_stands_on_its_page(folder, done):
    assert "A demonstration &lt;i&gt;" in page_of(folder, done, "corpus")
    assert "A demonstration" not in page_of(folder, done, "unlabelled")


def test_what_was_skipped_is_told_and_odd_metadata_does_no_harm(folder, done):
    assert "not a call</dt><dd>4</dd>" in page_of(folder, done, "unlabelled")
    page_of(folder, done, "odd")


def test_options_are_obeyed_and_recorded(folder, done):
    page_of(folder, done, "options")
    result = numbers_of(folder, "options")
    assert (result["method"], result["false_alarm_rate"], len(result["suspects"])) == ("average", 0.05, 3)
    assert {len(suspect["stretch"]) for suspect in result["suspects"]} == {7}
    assert result["configuration"]["top"] == 3


def test_saved_scores_bring_their_ensemble_and_rate_unless_a_flag_says_otherwise(folder, done):
    page_of(folder, done, "saved")
    page_of(folder, done, "saved_far")
    saved, changed = numbers_of(folder, "saved"), numbers_of(folder, "saved_far")
    assert (saved["method"], saved["false_alarm_rate"]) == ("average", 0.05)
    assert (changed["method"], changed["false_alarm_rate"]) == ("average", 0.2)
    assert saved["suspects"][0]["score"] == pytest.approx(np.log(7))
    assert "judged by 1.0000, the threshold before the model was calibrated again" in done["saved"].out
    assert "judged by" not in done["saved_far"].out + done["options"].out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_model", "not a model directory"),
        ("no_archive", "no such file; expected a trace archive"),
        ("text_archive", "not a trace archive"),
        ("no_calibration", "run `calibrate --medians`"),
        ("foreign", "no call name in common"),
        ("no_scores", "expected scores"),
        ("scores_archive", "no scores; make them with `score`"),
        ("short_scores", "scores of 9 traces"),
        ("shuffled_scores", "its rows are not the archive's traces"),
        ("member_scores", "scores of the members 1x9; the model has 1x4.1"),
        ("bad_scores", "score the archive again"),
        ("bad_rate", "--far=1.5"),
        ("argument", "surplus"),
        ("output_is_a_file", "is a file; name a directory"),
        ("no_flags", "--archive"),
    ],
)
def test_a_mistake_is_one_sentence_exit_code_2_and_no_output(folder, done, name, words):
    code, output, errors = done[name]
    assert code == 2
    assert output == ""
    # The progress bar stands before the sentence, on the same stream, where scoring had begun.
    assert words in errors and errors.count("error: ") == 1 and "Traceback" not in errors
    assert not (folder / f"out-{name}").exists()


def test_the_command_line_ends_with_code_2_too(tmp_path: pathlib.Path):
    finished = subprocess.run(
        [sys.executable, "-m", "syscall_lm.experiments", "report", f"--model={tmp_path}", "--archive=a", "--output=o"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr == f"error: {tmp_path}: not a model directory (no model.json); make one with `train`\n"
