"""The scale command: what it runs is `score`, as a user would."""

import json
import shutil

import numpy as np

from syscall_lm.models import store
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("read", "write", "open"), "names of a test")


def test_every_size_is_scored_once_and_what_fails_loses_no_row(tmp_path, commands, tiny_model):
    model, archive, output = tmp_path / "model", tmp_path / "traces", tmp_path / "results"
    tiny_model(model, VOCABULARY)
    shutil.copytree(model, f"{model}-b")
    (tmp_path / "model-b" / store.CALIBRATION).unlink()  # `score` asks for it
    rng = np.random.default_rng(0)
    with TraceArchiveWriter(archive, VOCABULARY) as writer:
        for number in range(5):
            writer.write(Trace(rng.integers(0, 4, 40).astype(np.uint16), f"t{number}"))
    what = [f"--archive={archive}", f"--model={model}", f"--output={output}", f"--scratch={tmp_path}"]
    done = commands(
        "scale",
        {
            "two": [*what, "--sizes=200,500"],
            "again": [*what, "--sizes=500,200"],
            "engine": [*what, "--sizes=300", "--engines=local,abacus"],
            "size": [*what, "--sizes=300,many"],
            "nowhere": [*what[:3], f"--scratch={tmp_path / 'nowhere'}"],
            "failing": [f"--archive={archive}", f"--model={model}-b", *what[2:], "--sizes=300"],
        },
    )
    told = {"engine": "'abacus' is neither", "size": "numbers", "nowhere": "no such folder", "failing": "exit code 2"}
    assert {name: code for name, (code, _, _) in done.items()} == {"two": 0, "again": 0} | dict.fromkeys(told, 2), done
    assert all(words in done[name].err for name, words in told.items()), done
    rows = json.loads((output / "scale.json").read_text())["rows"]
    assert [(row["engine"], row["calls"], row["traces"]) for row in rows] == [("local", 200, 5), ("local", 500, 13)]
    assert all(row["calls_per_second"] > 0 and row["peak_memory_mib"] > 50 for row in rows)
    table = (output / "table.md").read_text()
    assert table in done["two"].out and table in done["again"].out and table.count("| local |") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model-b", "traces", "results"}  # no archive is left
