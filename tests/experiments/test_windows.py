"""The command `windows`: a verdict on every window of an archive."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from syscall_lm.detectors.encoder_decoder import EncoderDecoderDetector
from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

OURS, THEIRS = Vocabulary(("read", "close", "mmap"), "ours"), Vocabulary(("mmap", "bpf\x1b", "read"), "theirs")


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_model, commands):
    folder = tmp_path_factory.mktemp("windows")
    model = tiny_model(folder / "model", OURS, ("encoder-decoder-3x4", "1x4"), info={"filters": []})
    tiny_model(folder / "two", OURS, ("encoder-decoder-3x4", "autoencoder-3x4"))
    rng = np.random.default_rng(0)
    for name, metadata in (("traces", {}), ("filtered", {"filters": [{"drop": [], "max_repeats": 2}]})):
        with TraceArchiveWriter(folder / name, THEIRS) as writer:
            writer.metadata.update(metadata)
            for i, length in enumerate((1, 3, 7, 200, 12)):
                writer.write(Trace(rng.integers(0, 3, length).astype(np.uint16), f"t{i}"))

    def case(output, archive="traces", model="model", *more):
        return [f"--model={folder}/{model}", f"--archive={folder}/{archive}", f"--output={folder}/{output}", *more]

    cases = {
        "ok": case("ok.parquet", "traces", "model", "--top=3"),
        "strict": case("strict.parquet", "traces", "model", "--far=0.0001"),
        "named": case("named.parquet", "traces", "two", "--member=encoder-decoder-3x4.1"),
        "2 members read windows": case("bad", "traces", "two"),
        "no members called '1x4.2' read windows": case("bad", "traces", "model", "--member=1x4.2"),
        "between 0 and 1": case("bad", "traces", "model", "--far=2"),
        "would replace": case("traces"),
        "filtered: cut to 2 of equal calls in a row, but what ": case("bad", "filtered"),
    }
    return folder, model, commands("windows", cases)


def test_every_row_is_a_verdict_of_the_library(judged):
    folder, path, done = judged
    assert done["ok"].code == 0, done["ok"].err
    table = pq.read_table(folder / "ok.parquet")
    model, archive = store.load(path), TraceArchive(folder / "traces")
    detector = EncoderDecoderDetector.load(model)
    batch = archive.read()
    expected = detector.verdicts(batch.calls.translate(model.translation(archive)))
    assert table["trace"].to_pylist() == [f"t{i}" for i in expected.trace]
    for name in ("start", "size", "least_expected"):
        np.testing.assert_array_equal(table[name], getattr(expected, name))
    np.testing.assert_allclose(table["score"], expected.score, rtol=1e-6)
    np.testing.assert_allclose(table["least_expected_nll"], expected.surprisal, rtol=1e-6)
    assert table["verdict"].to_pylist() == ["abnormal" if one else "normal" for one in expected.abnormal]
    for row in table.to_pylist():  # calls have the archive's names, those that the model does not know as well
        calls = batch.calls[int(row["trace"][1:])]
        assert row["least_expected_call"] == THEIRS.name(int(calls[row["least_expected"]]))
    assert "bpf\x1b" in table["least_expected_call"].to_pylist()


def test_the_worst_windows_are_told(judged):
    folder, _, done = judged
    rows = sorted(pq.read_table(folder / "ok.parquet").to_pylist(), key=lambda row: -row["score"])
    lines = [line for line in done["ok"].out.splitlines() if line.startswith("  ")]
    assert len(lines) == 3 and "\x1b" not in done["ok"].out
    for row, line in zip(rows, lines, strict=False):
        assert f"{row['score']:8.4f}  " in line and f" at {row['least_expected'] + 1}, " in line
    abnormal = sum(row["verdict"] == "abnormal" for row in rows)
    assert f"{len(rows)} windows: {abnormal} abnormal" in done["ok"].out


def test_a_rate_that_the_held_out_windows_cannot_promise_is_told(judged):
    _, path, done = judged
    windows = EncoderDecoderDetector.load(store.load(path)).held_out_windows_
    note = f"note: {windows} held-out windows cannot promise a false alarm rate of 0.0001 (9999 could)"
    assert note in done["strict"].out and "note" not in done["ok"].out


def test_a_member_is_named_where_several_read_windows(judged):
    folder, _, done = judged
    assert done["named"].code == 0, done["named"].err
    assert pq.read_table(folder / "named.parquet").num_rows == pq.read_table(folder / "ok.parquet").num_rows


def test_mistakes_are_one_sentence_and_leave_nothing(judged):
    folder, _, done = judged
    for expected, result in done.items():
        if expected not in ("ok", "strict", "named"):
            assert result.code == 2 and expected in result.err, (expected, result)
            assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert {path.name for path in folder.iterdir()} == {
        "model", "two", "traces", "filtered", "ok.parquet", "strict.parquet", "named.parquet",
    }  # fmt: skip
