"""The command `sections`: the longest surprising and the longest familiar section of every trace."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from syscall_lm.detectors.language_model import LanguageModelDetector
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("read", "close", "mmap"), "ours")


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, tiny_model, commands):
    folder = tmp_path_factory.mktemp("sections")
    model = tiny_model(folder / "model", VOCABULARY, ("1x4", "2x3"))
    rng = np.random.default_rng(0)
    with TraceArchiveWriter(folder / "traces", VOCABULARY) as writer:
        for i, length in enumerate((1, 2, 40, 300)):
            writer.write(Trace(rng.integers(0, 4, length).astype(np.uint16), f"t\x1b{i}"))
    means = LanguageModelDetector.load(store.load(model)).member_scores(TraceArchive(folder / "traces").read().calls)
    level = float(means.mean(0)[2:].mean())  # one of the two long traces lies above it, the other below
    common = [f"--model={model}", f"--archive={folder}/traces"]
    cases = {
        "ok": [*common, f"--output={folder}/ok", f"--level={level}", "--top=2"],
        "all": [*common, f"--output={folder}/all", "--level=0"],
        "threshold": [*common, f"--output={folder}/threshold"],
        "between 0 and 1": [*common, f"--output={folder}/bad", "--far=2"],
        "level": [*common, f"--output={folder}/bad", "--level=-1"],
        "would replace": [*common, f"--output={folder}/traces"],
    }
    return folder, model, level, commands("sections", cases)


def by_trying_all(values, level, sign):
    """Start and length of the first of the longest sections whose mean lies on that side of the level."""
    total = np.concatenate([[0.0], np.cumsum(values.astype(np.float64) - level)])
    for length in range(len(values), 0, -1):
        for start in range(len(values) - length + 1):
            if sign * (total[start + length] - total[start]) >= 0:
                return start, length
    return 0, 0


def test_every_row_holds_the_longest_section_of_either_side(looked_at):
    folder, path, level, done = looked_at
    assert done["ok"].code == 0, done["ok"].err
    model, archive = store.load(path), TraceArchive(folder / "traces")
    traces = archive.read().calls
    surprisal = LanguageModelDetector.load(model).scorer.surprisal(traces).mean(0)
    lengths = set()
    for i, row in enumerate(pq.read_table(folder / "ok").to_pylist()):
        own = surprisal[traces.offsets[i] : traces.offsets[i + 1]]
        assert row["trace"] == f"t\x1b{i}" and row["length"] == len(own)
        for side, sign in (("above", 1), ("below", -1)):
            start, length = by_trying_all(own, level, sign)
            assert (row[f"{side}_start"], row[f"{side}_length"]) == (start, length)
            if length:
                part = own[start : start + length]
                np.testing.assert_allclose(row[f"{side}_nll"], part.mean(dtype=np.float64), rtol=1e-5)
                np.testing.assert_allclose(row[f"{side}_log_likelihood"], -part.sum(dtype=np.float64), rtol=1e-5)
            else:
                assert row[f"{side}_nll"] is None and row[f"{side}_log_likelihood"] == 0
            lengths.add((side, 0 < length < len(own)))
    assert lengths == {(side, partly) for side in ("above", "below") for partly in (True, False)}


def test_a_level_that_all_reach_takes_whole_traces_and_the_default_is_the_threshold(looked_at):
    folder, path, _, done = looked_at
    rows = pq.read_table(folder / "all").to_pylist()
    assert all(row["above_length"] == row["length"] and row["below_length"] == 0 for row in rows)
    threshold = LanguageModelDetector.load(store.load(path), "average").threshold_
    assert f"longest sections of {threshold:.4f} nats per call or more" in done["threshold"].out
    lines = [line for line in done["ok"].out.splitlines() if line.startswith("  ")]
    assert len(lines) == 2 and "\x1b" not in done["ok"].out and r"t\x1b3, calls " in " ".join(lines)


def test_mistakes_are_one_sentence_and_leave_nothing(looked_at):
    folder, *_, done = looked_at
    for expected, result in done.items():
        if expected not in ("ok", "all", "threshold"):
            assert result.code == 2 and expected in result.err, (expected, result)
            assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert {path.name for path in folder.iterdir()} == {"model", "traces", "ok", "all", "threshold"}
