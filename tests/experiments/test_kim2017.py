"""The experiments on Kim et al.: what they write, on small archives, and the functions behind it."""

import json

import numpy as np
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import data
from syscall_lm.experiments.kim2017.hosts import Host
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

NAMES = ("read", "write", "open", "close", "poll", "pipe", "pipe2", "stat64")


def normal_calls(rng, length):
    return np.cumsum(rng.choice([1, 2], length)) % 6


def write(path, traces, names=NAMES, **metadata):
    with TraceArchiveWriter(path, Vocabulary(names, "names of a test")) as writer:
        writer.metadata.update(metadata)
        for number, (calls, known) in enumerate(traces):
            writer.write(Trace(np.asarray(calls, np.uint16), f"trace-{number}", source="/home/someone/secret", **known))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    rng = np.random.default_rng(0)
    traces = [(normal_calls(rng, n), {"label": NORMAL, "split": "train"}) for n in rng.integers(5, 90, 25)]
    traces += [(normal_calls(rng, n), {"label": NORMAL, "split": "test"}) for n in rng.integers(5, 90, 40)]
    traces += [(traces[3][0], {"label": NORMAL, "split": "test"})]  # a copy of a training trace
    for family, count in (("one", 9), ("two", 3)):
        known = {"label": ATTACK, "split": "test", "family": family}
        traces += [(rng.choice(8, int(n)), known) for n in rng.integers(20, 90, count)]
    return write(tmp_path_factory.mktemp("kim2017") / "small.parquet", traces)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts whose ids differ, but whose names are those of the same calls; the second knows a call more."""
    folder = tmp_path_factory.mktemp("hosts")
    paths = {}
    for name, names in (("mit", NAMES), ("unm", (*NAMES[::-1], "fork"))):
        rng = np.random.default_rng(len(names))
        ids = np.array([names.index(call) for call in NAMES])
        normal = [(ids[normal_calls(rng, n)], {"label": NORMAL}) for n in rng.integers(20, 60, 60)]
        foreign = len(NAMES) if name == "unm" else 0
        attack = [([foreign, *ids[rng.choice(8, 50)]], {"label": ATTACK, "family": "lprcp"}) for _ in range(10)]
        paths[name] = [
            write(folder / f"{name}_normal.parquet", normal, names),
            write(folder / f"{name}_attack.parquet", attack, names),
        ]
    return paths


def joined(paths):
    return ",".join(map(str, paths))


def result(folder, name):
    """The JSON result; neither it nor the table names a folder of this machine."""
    text = (folder / f"{name}.json").read_text()
    for written in (text, (folder / f"{name}.md").read_text()):
        assert str(folder) not in written and "/home" not in written and "/tmp" not in written
    value = json.loads(text)
    assert value["environment"]["jax"] and "output" not in value["configuration"]
    return value


def test_benchmark_parts(archive):
    benchmark = data.benchmark(TraceArchive(archive))
    assert len(benchmark.train) == 25
    assert benchmark.counts == {"normal": 41, "attack": 12, "copies": 1}
    assert benchmark.families.tolist() == ["one"] * 9 + ["two"] * 3
    assert not benchmark.is_attack[:41].any() and benchmark.is_attack[41:].all()
    summaries = benchmark.summaries(benchmark.is_attack.astype(float))
    assert (summaries["all"]["normal"], summaries["without_copies"]["normal"]) == (41, 40)
    assert summaries["all"]["auc"] == 1


def test_hosts_are_split_one_to_five(hosts):
    host = Host.read("mit", hosts["mit"], seed=0)
    assert (len(host.train), len(host.validation), len(host.attack)) == (10, 50, 10)
    everything = sorted(calls.tobytes() for part in (host.train, host.validation) for calls in part)
    (batch,) = (TraceArchive(hosts["mit"][0]).read(),)
    assert everything == sorted(calls.tobytes() for calls in batch.calls)
    other = Host.read("mit", hosts["mit"], seed=1)
    assert sorted(c.tobytes() for c in other.train) != sorted(c.tobytes() for c in host.train)


def test_hosts_of_mixed_archives_are_refused(hosts):
    with pytest.raises(SyscallLMError, match="one vocabulary"):
        Host.read("both", [*hosts["mit"], *hosts["unm"]], 0)
    with pytest.raises(SyscallLMError, match="6 normal traces and an attack"):
        Host.read("mit", hosts["mit"][:1], 0)


def test_baselines(commands, archive, tmp_path):
    cases = {
        "run": [f"--archive={archive}", f"--output={tmp_path}", "--detectors=stide,ngram-calmest,elm", "--seeds=0,1"],
        "seeds": [f"--archive={archive}", "--seeds=0,x"],
        "detector": [f"--archive={archive}", f"--output={tmp_path}", "--detectors=nothing"],
    }
    done = commands("kim2017.baselines", cases)
    assert done["run"].code == 0, done["run"].err
    detectors = result(tmp_path, "baselines")["detectors"]
    assert {name: [run["seed"] for run in value["runs"]] for name, value in detectors.items()} == {
        "stide": [0],
        "ngram-calmest": [0],
        "elm": [0, 1],
    }
    table = (tmp_path / "baselines.md").read_text()
    assert f"| stide | {detectors['stide']['runs'][0]['all']['auc']:.3f} |" in table and "one (9)" in table
    assert done["seeds"].code == done["detector"].code == 2
    assert "whole numbers" in done["seeds"].err and "no detector is called 'nothing'" in done["detector"].err


MIMICRY = """
import numpy as np
from syscall_lm.traces.trace import Sequences
families = np.array(["a"] * 10 + ["b"] * 2)
chosen = module.choose_attacks(families, 6, np.random.default_rng(0))
assert len(set(chosen)) == 6 and (families[chosen] == "b").sum() == 2
assert len(module.choose_attacks(families, 99, np.random.default_rng(0))) == 12
attacks = Sequences.from_list([[7, 8, 9], [9] * 40])
normal = Sequences.from_list([[1, 2], [3, 4, 5]])
for ratio in (0, 0.5, 4):
    for attack, padded in zip(attacks, module.pad(attacks, normal, ratio, np.random.default_rng(0)), strict=True):
        extra = round(ratio * len(attack))
        assert len(padded) == len(attack) + extra
        assert np.array_equal(padded[extra // 2 : extra // 2 + len(attack)], attack)
        assert set(padded[: extra // 2]) <= {1, 2, 3, 4, 5}
"""


def test_mimicry(commands, archive, tmp_path):
    arguments = [f"--archive={archive}", f"--output={tmp_path}", "--detectors=ngram,ngram-calmest,ngram-highest"]
    done = commands("kim2017.mimicry", {"run": arguments}, MIMICRY)["run"]
    assert done.code == 0, done.err
    found = result(tmp_path, "mimicry")["detectors"]
    scores = {name: {padding: value["median_score"] for padding, value in by.items()} for name, by in found.items()}
    assert scores["ngram"]["8"] < scores["ngram"]["0"]  # the mean is diluted
    assert scores["ngram-calmest"]["75 calls"] < scores["ngram-calmest"]["0"] / 2
    assert scores["ngram-highest"]["8"] > 0.8 * scores["ngram-highest"]["0"]
    assert (tmp_path / "mimicry.png").stat().st_size > 0


def test_table_1(commands, archive, hosts, tmp_path):
    arguments = [f"--adfa={archive}", f"--mit={joined(hosts['mit'])}", f"--output={tmp_path}"]
    done = commands("kim2017.table1", {"run": arguments})["run"]
    assert done.code == 0, done.err
    rows = result(tmp_path, "table1")["data_sets"]
    assert [rows["ADFA-LD"][part] for part in ("train", "validation", "attack", "types", "copies")] == [
        25,
        41,
        12,
        2,
        1,
    ]
    assert [rows["UNM-lpr"][part] for part in ("train", "validation", "attack", "types")] == [10, 50, 10, 1]
    assert rows["KDD98"] == "not run: no data"
    assert "| 25 (833) | 41 (4,372) | 1 | 2 (6) | 12 (746) |" in (tmp_path / "table1.md").read_text()


PORTABILITY = """
module.flags.FLAGS(["portability", "--member=2x5", "--epochs=3", "--seed=7"])
lstm = module.make("lstm", 9)  # training it takes too long for a test
assert [str(shape) for shape in lstm._shapes] == ["2x5"] and lstm._shapes[0].vocabulary_size == 9
assert (lstm._recipe.epochs, lstm._recipe.seed) == (3, 7)
"""


def test_portability(commands, hosts, tmp_path):
    both = [f"--mit={joined(hosts['mit'])}", f"--unm={joined(hosts['unm'])}", "--detectors=ngram"]
    done = commands("kim2017.portability", {"run": [*both, f"--output={tmp_path}"], "no host": []}, PORTABILITY)
    assert done["run"].code == 0, done["run"].err
    rows = result(tmp_path, "portability")["rows"]
    run = {(row["source"], row["target"]): row for row in rows if row["status"] == "run"}
    assert len(run) == 4
    assert [row["status"] for row in rows if row["source"] == "KDD98"] == ["not run: no data"] * 2
    # The ids differ: only by name does the other host's traffic look normal.
    assert all(row["all"]["auc"] > 0.99 for row in run.values())
    assert run["UNM lpr", "MIT lpr"]["unmapped_calls"] == 0
    assert 0 < run["MIT lpr", "UNM lpr"]["unmapped_calls"] < 0.01  # fork, which the first host does not know
    assert done["no host"].code == 2 and "needs a host" in done["no host"].err


EMBEDDINGS = """
import numpy as np
from syscall_lm.reports import figures
figures.DPI = 30  # for speed
names = ["read", "write", "open", "close", "x"]
vectors = np.array([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1], [0, -5.0]])
for metric in ("cosine", "euclidean"):
    found = module.places(names, vectors, ("read", "write", "absent"), metric)
    assert (found["calls"], found["absent"], found["mean"]) == (["read", "write"], ["absent"], 1)
    assert found["places"] == {"read -> write": 1, "write -> read": 1}
    assert module.neighbours(names, vectors, metric, 1)["open"] == ["close"]
    far = module.places(names, vectors, ("read", "open"), metric)["places"]
assert far["read -> open"] == 2  # after write, before close
assert module.places(names, vectors, ("read",), "cosine")["mean"] is None
assert abs(module.step_cosine(names, vectors) - 1) < 1e-12
assert module.step_cosine(names[1:], vectors[1:]) is None
"""


def test_embeddings(commands, archive, tiny_model, tmp_path):
    model = tiny_model(tmp_path / "model", Vocabulary(NAMES, "names of a test"))
    arguments = [f"--model={model}", f"--archive={archive}", f"--output={tmp_path}"]
    cases = {"run": [*arguments, "--member=1x4.1"], "member": [*arguments, "--member=9x9"]}
    done = commands("kim2017.embeddings", cases, EMBEDDINGS)
    assert done["run"].code == 0, done["run"].err
    found = result(tmp_path, "embeddings")
    assert found["member"] == "1x4.1" and list(found["calls"]) == list(NAMES[:6])  # pipe2, stat64: not in training
    assert found["groups"]["cosine"]["pipe"]["absent"] == ["pipe2"]
    assert len(found["t_sne"]) == 6 and (tmp_path / "embeddings.png").stat().st_size > 0
    assert done["member"].code == 2 and "the model has 1x4.1" in done["member"].err
