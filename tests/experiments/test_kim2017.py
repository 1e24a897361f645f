"""The experiments on Kim et al.: what they write, on small archives, and the functions behind it."""

import dataclasses
import json
import pathlib
import shutil
import struct

import jax
import numpy as np
import pytest

from syscall_lm.detectors import catalogue
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import LongestSection
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import comparison, data
from syscall_lm.experiments.kim2017 import study_attempts
from syscall_lm.experiments.kim2017.hosts import Host
from syscall_lm.models import language_model, lstm, store
from syscall_lm.models.store import Member
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


@pytest.fixture(scope="module")
def models(archive, tiny_model, tmp_path_factory):
    """Model directories of two seeds that claim to have been trained on the archive, or on another one."""

    def make(name, seed, members=("1x4", "2x3"), on=archive, **changed):
        opened = TraceArchive(on)
        train, held_out = data.training_traces(opened, data.HELD_OUT, seed)
        configuration = {
            "members": list(members),
            "seed": seed,
            "learning_rate": 0.1 + seed,
            "training_data": data.fingerprint(train),
            "held_out_data": data.fingerprint(held_out),
            "vocabulary": opened.vocabulary.hash,
            **changed,
        }
        names = [f"{member}.{number + 1}" for number, member in enumerate(members)]
        results = {
            name: {"held_out_nll": 1.5 + seed, "best_epoch": 2, "epochs": 3 + seed, "calls_per_second": 100}
            for name in names
        }
        info = {"configuration": configuration, "results": results, "training": {"traces": 22, "calls": 1000}}
        path = tiny_model(tmp_path_factory.mktemp("models") / name, opened.vocabulary, members, info=info)
        rows = [{"shape": member, "epoch": e + 1, "held_out_nll": [2 - e / 9]} for member in members for e in range(3)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def joined(paths):
    return ",".join(map(str, paths))


def result(folder, name):
    """The JSON result; neither it nor the table, which tells how to make them again, names a folder of this machine."""
    text = (folder / f"{name}.json").read_text()
    page = (folder / f"{'study_table' if name == 'study' else name}.md").read_text()
    for written in (text, page):
        assert str(folder) not in written and "/home" not in written and "/tmp" not in written
    assert f"\nsyscall-lm kim2017.{name} --" in page
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


def test_detectors_whose_scores_need_held_out_traces_get_those_of_the_language_models(archive, tmp_path):
    opened = TraceArchive(archive)
    benchmark = data.benchmark(opened)
    for seed in (0, 1):
        held_out = LongestSection(NGram(len(NAMES)))
        comparison.timed_run(held_out, benchmark, seed)
        split = data.training_traces(opened, data.HELD_OUT, seed)
        assert held_out.level_ == NGram(len(NAMES)).fit(*split).threshold_
        assert held_out.level_ > NGram(len(NAMES)).fit(benchmark.train).threshold_
    ngram = catalogue.build(["ngram"], len(NAMES))["ngram"]
    comparison.timed_run(ngram, benchmark, 0)  # it needs none, and learns from all
    expected = NGram(len(NAMES)).fit(benchmark.train).decision_function(benchmark.traces)
    np.testing.assert_array_equal(ngram.decision_function(benchmark.traces), expected)
    assert {"hmm", "elm"} < set(catalogue.RANDOM) and "ngram-longest" in catalogue.RANDOM  # a seed draws the traces
    # Where a split says which traces are held out, those are taken.
    rng = np.random.default_rng(1)
    splits = (*["train"] * 9, *["validation"] * 4, "test")
    known = [(normal_calls(rng, 30), {"label": NORMAL, "split": split}) for split in splits]
    opened = TraceArchive(write(tmp_path / "split.parquet", known))
    benchmark = data.benchmark(opened)
    found = LongestSection(NGram(len(NAMES)))
    benchmark.fit(found, 0)
    assert found.level_ == NGram(len(NAMES)).fit(*data.training_traces(opened, data.HELD_OUT, 0)).threshold_


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
        "stands twice": [f"--archive={archive}", f"--output={tmp_path}", "--detectors=stide,elm,stide"],
        "name at least one": [f"--archive={archive}", f"--output={tmp_path}", "--detectors="],
        "a seed that stands twice": [f"--archive={archive}", f"--output={tmp_path}", "--seeds=1,1"],
        "below 2^32": [f"--archive={archive}", f"--output={tmp_path}", "--seeds=5000000000"],
    }
    done = commands("kim2017.baselines", cases)
    for words in list(cases)[3:]:
        assert done[words].code == 2 and words in done[words].err, done[words]
    assert done["run"].code == 0, done["run"].err
    detectors = result(tmp_path, "baselines")["detectors"]
    assert {name: [run["seed"] for run in value["runs"]] for name, value in detectors.items()} == {
        "stide": [0],
        "ngram-calmest": [0],
        "elm": [0, 1],
    }
    table = (tmp_path / "baselines.md").read_text()
    assert (
        "\nsyscall-lm kim2017.baselines --archive=small.parquet --detectors=stide,ngram-calmest,elm --seeds=0,1\n"
        in table
    )
    assert f"| stide | {detectors['stide']['runs'][0]['all']['auc']:.3f} |" in table and "one (9)" in table
    assert done["seeds"].code == done["detector"].code == 2
    assert "whole numbers" in done["seeds"].err and "no detector is called 'nothing'" in done["detector"].err


SMALL = """
from syscall_lm.reports import figures
figures.DPI = 30  # for speed
"""


def test_figure_3(commands, archive, models, tmp_path):
    seeds = [models("seed0", 0), models("seed1", 1)]
    detectors = "--detectors=lstm,state-knn,state-kmeans,leaky_relu,vote,stide,elm"
    first = [f"--archive={archive}", detectors, f"--models={joined(seeds)}", f"--output={tmp_path}"]
    setup = (
        SMALL
        + """
compare = module.comparison.compare
def interrupted(names, benchmark, size, members, results, keep):
    def stop(results):
        keep(results)
        if "leaky_relu" in results:
            raise KeyboardInterrupt
    return compare(names, benchmark, size, members, results, stop)
def main(argv):
    module.comparison.compare = interrupted if "stop" in argv else compare
    real()
real = module.main
main.__module__ = real.__module__
module.main = main
"""
    )
    cases = {
        "interrupted": [*first, "stop"],
        "run": first,
        "other": [f"--archive={archive}", f"--models={models('other', 2, training_data='beef')}"],
        "same seed": [f"--archive={archive}", f"--models={seeds[0]},{models('again', 0)}"],
        "members": [f"--archive={archive}", f"--models={seeds[0]},{models('fewer', 3, ('1x4',))}"],
        "none": [f"--archive={archive}", "--models="],
    }
    done = commands("kim2017.figure3", cases, setup)
    assert done["interrupted"].code == 130
    assert done["run"].code == 0, done["run"].err
    assert "leaky_relu, seed 0" not in done["run"].err and "vote, seed 0" in done["run"].err  # it went on
    found = result(tmp_path, "figure3")
    seeds_of = {name: [run["seed"] for run in value["runs"]] for name, value in found["detectors"].items()}
    on_members = [f"{kind} {name}" for kind in ("lstm", "state-knn", "state-kmeans") for name in ("1x4.1", "2x3.2")]
    assert seeds_of == {**dict.fromkeys([*on_members, "leaky_relu", "vote"], [0, 1]), "stide": [0], "elm": [0, 1]}
    assert [model["results"]["1x4.1"]["held_out_nll"] for model in found["models"]] == [1.5, 2.5]
    for value in found["detectors"].values():
        for run in value["runs"]:
            assert len(run["roc"]) == 241 and run["roc"] == sorted(run["roc"]) and run["roc"][-1] == 1
    table = (tmp_path / "figure3.md").read_text()
    assert "| 1x4.1 | 2.000 ± 0.707 | 2 ± 0 | 4 ± 1 |" in table and "| vote | " in table
    curves = {name: np.mean([run["roc"] for run in value["runs"]], 0) for name, value in found["detectors"].items()}
    above = np.mean(curves["vote"] >= np.maximum(curves["lstm 1x4.1"], curves["lstm 2x3.2"]))
    assert f"vote at {100 * above:.0f} %" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure3.json", "figure3.md", "figure3.png"]
    words = {"other": "was not trained on", "same seed": "seed 0", "members": "holds 1x4.1, but", "none": "no model"}
    for case, word in words.items():
        assert done[case].code == 2 and word in done[case].err, case


def test_states(commands, archive, models, tmp_path):
    seeds = [models("s0", 0), models("s1", 1)]
    cases = {
        "run": [f"--archive={archive}", f"--models={joined(seeds)}", f"--output={tmp_path}"],
        "none": [f"--archive={archive}", "--models="],
    }
    done = commands("kim2017.states", cases)
    assert done["run"].code == 0, done["run"].err
    assert done["none"].code == 2 and "no model" in done["none"].err
    found, page = result(tmp_path, "states"), (tmp_path / "states.md").read_text()
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    opened = TraceArchive(archive)
    benchmark = data.benchmark(opened)
    aucs = [run["members"]["1x4.1"]["knn euclidean 11"] for run in found["runs"]]
    for path, auc in zip(seeds, aucs, strict=True):  # the sweep holds the catalogue's own detector
        detector = catalogue.build(["state-knn"], opened.vocabulary.size, store.load(path).members)["state-knn 1x4.1"]
        scores = detector.fit(benchmark.train).decision_function(benchmark.traces)
        assert auc == pytest.approx(comparison.curve_of(scores, benchmark).auc)
    swept = {name: np.mean([aucs[name] for run in found["runs"] for aucs in run["members"].values()])
             for name in found["runs"][0]["members"]["1x4.1"] if name.startswith("knn euclidean")}  # fmt: skip
    holds = max(swept, key=swept.get) == "knn euclidean 11"
    assert f"k = 11 is best for kNN: **{'holds' if holds else 'does not hold'}**" in page
    assert page.count("**holds**") + page.count("**does not hold**") == 7


def test_recipes(commands, archive, models, tmp_path):
    fast, printed = (
        [models("f0", 0), models("f1", 1)],
        [models(f"p{s}", s, ("1x4", "1x5"), epochs=4, schedule="constant") for s in (0, 1)],
    )
    longer = models("l1", 1, epochs=9)
    common = [f"--archive={archive}", f"--recipe=printed={joined(printed)}", f"--output={tmp_path}"]
    cases = {
        "run": [*common, f"--recipe=fast={joined(fast)}", f"--recipe=longer={longer}"],
        "different": [*common, f"--recipe=fast={fast[0]}", f"--recipe=other={models('q', 0, ('1x5',))}"],
        "twice": [*common, f"--recipe=printed={longer}"],
    }
    done = commands("kim2017.recipes", cases, SMALL)
    assert done["run"].code == 0, done["run"].err
    found = result(tmp_path, "recipes")
    assert list(found["members"]) == ["1x4.1"]
    member = found["members"]["1x4.1"]
    assert [run["calls"] for run in member["runs"]["printed"]] == [3000, 4000]
    # The tiny models are all drawn alike, so the recipes do not differ, for any resample.
    assert member["differences"] == {
        "fast": {"auc": 0, "interval": [0, 0], "seeds": [0, 1]},
        "longer": {"auc": 0, "interval": [0, 0], "seeds": [1]},
    }
    table = (tmp_path / "recipes.md").read_text()
    assert "| learning_rate | 0.1, 1.1 | 0.1, 1.1 | 1.1 |" in table
    assert "1x4.1: the AUC of longer less that of printed is +0.000" in table
    told = "1x4.1, seed 1, which all have: held-out nats on the same traces (each seed holds out others) "
    assert told + "printed 2.500, fast 2.500, longer 2.500; AUC printed " in table
    assert table.count("stopped at its cap") == 1 and "printed, seed 1, stopped at its cap (best epoch 2 of 4)" in table
    assert "--recipe=printed=p0,p1 --recipe=fast=f0,f1 --recipe=longer=l1" in table
    trained = "--archive=small.parquet --model=l1 --members=1x4,2x3 --seed=1 --learning_rate=1.1 --epochs=9"
    assert f"\nsyscall-lm train {trained}\n" in table
    assert done["different"].code == 2 and "no member of the same name" in done["different"].err
    assert done["twice"].code == 2 and "a name of its own" in done["twice"].err


def test_tables_show_what_detectors_were_chosen_on_and_what_padding_leaves(commands, archive, tmp_path):
    common = [f"--archive={archive}", f"--output={tmp_path}", "--seeds=0,1"]
    detectors = "--detectors=stide,ngram-calmest,call-sets"
    assert commands("kim2017.baselines", {"run": [*common, detectors]})["run"].code == 0
    table = tmp_path / "baselines.md"
    assert "AUC, padded" not in table.read_text().replace("Padded:", "")
    assert commands("kim2017.mimicry", {"run": [*common, "--detectors=stide,call-sets"]}, SMALL)["run"].code == 0
    assert commands("kim2017.tables", {"run": [f"--output={tmp_path}"]})["run"].code == 0
    padded = {
        name: comparison.spread([run["paddings"]["1"]["auc"] for run in value["runs"]], ".3f")
        for name, value in json.loads((tmp_path / "mimicry.json").read_text())["detectors"].items()
    }
    first = table.read_text().split("###")[1]
    ends = {line.split(" | ")[0].strip("| "): line.split(" | ")[-2:] for line in first.splitlines() if "%" in line}
    assert ends["detector"] == ["chosen on", "AUC, padded |"]
    assert ends["stide"] == ["nothing", f"{padded['stide']} |"]
    assert ends["ngram-calmest"] == ["known beforehand", " |"]
    assert ends["call-sets"] == ["development half of the attacks", f"{padded['call-sets']} |"]


def test_committed_tables_are_what_the_committed_results_give(commands, tmp_path):
    folder = pathlib.Path(__file__).parents[2] / "results" / "kim2017"
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "empty").mkdir()
    cases = {"empty": [f"--output={tmp_path / 'empty'}"], "run": [f"--output={tmp_path}"]}
    done = commands("kim2017.tables", cases, "command.own_flags(module)[0].unparse()")
    assert done["run"].code == 0, done["run"].err
    assert done["empty"].code == 2 and "holds no results" in done["empty"].err
    tables = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert len(tables) == 10
    for name, text in tables.items():
        assert (folder / name).read_text() == text, f"{name}: `syscall-lm kim2017.tables` makes it again"


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


def test_mimicry(commands, archive, models, tmp_path):
    shared = [f"--archive={archive}", "--attacks=6"]
    alone = [*shared, f"--output={tmp_path}", "--detectors=ngram,ngram-calmest,ngram-highest", "--seeds=0,4"]
    model = [*shared, f"--models={models('m', 1)}", f"--output={tmp_path / 'lstm'}", "--detectors=lstm,average,stide"]
    done = commands("kim2017.mimicry", {"run": alone, "lstm": model}, SMALL + MIMICRY)
    assert done["run"].code == 0, done["run"].err
    found = result(tmp_path, "mimicry")["detectors"]
    assert [run["seed"] for run in found["ngram"]["runs"]] == [0, 4]
    scores = {
        name: {padding: value["median_score"] for padding, value in by["runs"][0]["paddings"].items()}
        for name, by in found.items()
    }
    assert scores["ngram"]["8"] < scores["ngram"]["0"]  # the mean is diluted
    assert scores["ngram-calmest"]["75 calls"] < scores["ngram-calmest"]["0"] / 2
    assert scores["ngram-highest"]["8"] > 0.8 * scores["ngram-highest"]["0"]
    assert (tmp_path / "mimicry.png").stat().st_size > 0
    assert done["lstm"].code == 0, done["lstm"].err
    assert list(result(tmp_path / "lstm", "mimicry")["detectors"]) == ["lstm 1x4.1", "lstm 2x3.2", "average", "stide"]


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


PORTABILITY = (
    SMALL
    + """
from syscall_lm.models import language_model, lstm, store
from syscall_lm.models.store import Member
import jax
def train_members(shapes, recipe, learn, held_out, workdir, progress):  # training takes too long for a test
    assert (recipe.epochs, recipe.minibatch_calls, len(learn) + len(held_out)) == (3, 512, 10)
    members = tuple(Member(str(s), s, language_model.initialise(jax.random.key(0), s)) for s in shapes)
    losses = zip(shapes, (3, 1, 2), strict=True)
    rows = [{"shape": str(s), "held_out_nll": [loss + worse]} for s, loss in losses for worse in (0, 1)]
    return members, rows
module.training.train_members = train_members
"""
)


def test_portability(commands, hosts, tmp_path):
    both = [f"--mit={joined(hosts['mit'])}", f"--unm={joined(hosts['unm'])}", "--seeds=0,1"]
    lstm = ["--detectors=stide,lstm", "--members=1x4,1x3,1x2", "--epochs=3", f"--output={tmp_path / 'lstm'}"]
    cases = {"run": [*both, "--detectors=ngram", f"--output={tmp_path}"], "lstm": [*both, *lstm], "no host": []}
    done = commands("kim2017.portability", cases, PORTABILITY)
    assert done["run"].code == 0, done["run"].err
    rows = result(tmp_path, "portability")["rows"]
    run = {(row["source"], row["target"]): row["runs"] for row in rows if row["status"] == "run"}
    assert len(run) == 4 and all([one["seed"] for one in runs] == [0, 1] for runs in run.values())
    assert [row["status"] for row in rows if row["source"] == "KDD98"] == ["not run: no data"] * 2
    assert "| KDD98 | | KDD98 | not run: no data |" in (tmp_path / "portability.md").read_text()
    # The ids differ: only by name does the other host's traffic look normal.
    assert all(one["all"]["auc"] > 0.99 for runs in run.values() for one in runs)
    assert run["UNM lpr", "MIT lpr"][0]["unmapped_calls"] == 0
    assert 0 < run["MIT lpr", "UNM lpr"][0]["unmapped_calls"] < 0.01  # fork, which the first host does not know
    assert done["lstm"].code == 0, done["lstm"].err
    found = result(tmp_path / "lstm", "portability")
    assert {(row["detector"], row["source"]) for row in found["rows"] if row["status"] == "run"} == {
        (detector, source) for detector in ("stide", "lstm") for source in ("MIT lpr", "UNM lpr")
    }
    assert [model["chosen"] for model in found["models"]] == ["1x3"] * 4  # the lowest held-out loss
    assert done["no host"].code == 2 and "needs a host" in done["no host"].err


def test_portability_from_kdd98(commands, hosts, tmp_path):
    """Audit trails of two services, by turns; an attack's calls are in another order."""
    folder = tmp_path / "kdd98"
    folder.mkdir()
    rng, start = np.random.default_rng(0), 896704200  # 1998-06-01 08:30 in New York
    sessions, trail = [], b""
    for number in range(40):
        attack = number % 5 == 4
        clock = f"{8 + (30 + number) // 60:02d}:{(30 + number) % 60:02d}:00"
        sessions.append(
            f"{number} 06/01/1998 {clock} 00:00:30 telnet 1 23 1.2.3.4 5.6.7.8 {int(attack)} {'-p'[attack]}\n"
        )
        events = rng.choice(6, 40) if attack else normal_calls(rng, 40)
        for event in events + 1:
            subject = struct.pack(">B9I", 0x24, 1, 2, 3, 4, 5, 77, number + 1, 8, 9)
            header = struct.pack(">BHHII", 2, event, 0, start + 60 * number + 1, 0)
            size = 12 + len(header) + len(subject)
            trail += struct.pack(">BI", 0x14, size) + header + subject + struct.pack(">BHI", 0x13, 0xB105, size)
    (folder / "bsm.list").write_text("".join(sessions))
    (folder / "trail.bsm").write_bytes(trail)
    events = "".join(f"{number + 1}:AUE_{name.upper()}:{name}(2):pc\n" for number, name in enumerate(NAMES))
    (tmp_path / "audit_event").write_text(events)
    kdd98 = [f"--kdd98_dir={folder}", f"--output={tmp_path}", "--detectors=ngram", "--seeds=0"]
    unm = f"--unm={joined(hosts['unm'])}"
    cases = {"run": [*kdd98, unm, f"--kdd98_events={tmp_path / 'audit_event'}"], "events": kdd98}
    done = commands("kim2017.portability", cases, SMALL)
    assert done["run"].code == 0, done["run"].err
    rows = {(row["source"], row["target"]): row for row in result(tmp_path, "portability")["rows"]}
    assert set(rows) == {(one, other) for one in ("KDD98", "UNM lpr") for other in ("KDD98", "UNM lpr")}
    (run,) = rows["KDD98", "KDD98"]["runs"]
    assert (run["all"]["normal"], run["all"]["attacks"]) == (27, 8)  # 32 normal sessions, a sixth of them learned from
    assert rows["KDD98", "UNM lpr"]["runs"][0]["all"]["auc"] > 0.9
    assert done["events"].code == 2 and "--kdd98_events" in done["events"].err


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
places = np.random.default_rng(0).uniform(0, 500, (40, 2))
boxes = []
frame = np.array([-9, -9, 509, 509])
for place, offset in zip(places, module.label_offsets(places, ["fstatat64"] * 40, frame), strict=True):
    boxes.append([*(place + offset), *(place + offset + (40, 8))])
boxes = np.array(boxes)
sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
assert (sides > 0).all(axis=2).sum() == 40  # none overlaps another, or leaves the frame
assert (boxes[:, :2] >= frame[:2]).all() and (boxes[:, 2:] <= frame[2:]).all()
"""


def test_embeddings(commands, archive, models, tmp_path):
    arguments = [
        f"--archive={archive}",
        f"--models={joined([models('e0', 0), models('e1', 1)])}",
        f"--output={tmp_path}",
    ]
    cases = {"run": [*arguments, "--member=2x3.2"], "member": [*arguments, "--member=9x9"]}
    done = commands("kim2017.embeddings", cases, EMBEDDINGS)
    assert done["run"].code == 0, done["run"].err
    found = result(tmp_path, "embeddings")
    assert found["drawn"] == {"member": "2x3.2", "seed": 0} and list(found["calls"]) == list(NAMES[:6])
    assert [(one["member"], one["seed"]) for one in found["members"]] == [
        ("1x4.1", 0), ("2x3.2", 0), ("1x4.1", 1), ("2x3.2", 1)
    ]  # fmt: skip
    assert found["members"][0]["groups"]["cosine"]["pipe"]["absent"] == ["pipe2"]  # it is not in training
    table = (tmp_path / "embeddings.md").read_text()
    places = [one["groups"]["cosine"]["read and write"]["mean"] for one in found["members"]]
    verdict = "holds" if np.mean(places) <= 0.6 else "does not hold"
    nearer = sum(place < 3 for place in places)
    assert f"- read, write lie together: **{verdict}**. Mean place {np.mean(places):.1f} of 5 (chance 3)" in table
    assert f"nearer than chance in {nearer} of 4 models" in table
    assert "- pipe: cannot be told" in table and table.count("**") == 2 * 3  # two groups and the step
    assert f"| read and write: read, write | {found['calls']['read']:,}, {found['calls']['write']:,} |" in table
    assert len(found["t_sne"]) == 6 and (tmp_path / "embeddings.png").stat().st_size > 0
    assert done["member"].code == 2 and "the models have 1x4.1" in done["member"].err


@pytest.fixture(scope="module")
def study_archive(tmp_path_factory):
    """Two blocks of 200 file numbers; a trace of the second equals one of the first."""
    rng = np.random.default_rng(0)
    traces = [(normal_calls(rng, n), {"label": NORMAL, "split": "train"}) for n in rng.integers(5, 40, 25)]
    traces += [(normal_calls(rng, n), {"label": NORMAL, "split": "test"}) for n in rng.integers(20, 40, 300)]
    traces[299] = traces[30]
    for family in ("Adduser", "Web_Shell"):
        known = {"label": ATTACK, "split": "test", "family": family}
        traces += [(rng.choice(8, int(n)), known) for n in rng.integers(20, 90, 5)]
    return write(tmp_path_factory.mktemp("study") / "small.parquet", traces)


STUDY = """
import numpy as np
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import LongestSection
from syscall_lm.experiments.kim2017 import attack_files, study_attempts
from syscall_lm.traces.trace import Sequences
rng = np.random.default_rng(0)
traces = [rng.integers(0, 3, n) for n in (9, 1, 14)]
for order in (1, 2, 3):  # read call by call, a model of the trace so far says the same
    adaptive = study_attempts.adaptive(Sequences.from_list(traces), order, np.full(24, 1 / 3))
    expected = [np.log(3) if t == 0 else NGram(3, order).fit(Sequences.from_list([trace[:t]])).surprisal(
        Sequences.from_list([trace[: t + 1]]))[-1] for trace in traces for t in range(len(trace))]
    np.testing.assert_allclose(adaptive, expected, rtol=1e-12)
thin = study_attempts.thinned(Sequences.from_list([np.arange(1000), [5]]), 0.3, rng)
assert 200 < thin.lengths[0] < 400 and (np.diff(thin[0].astype(int)) > 0).all() and thin[1].tolist() == [5]
for name in list(study_attempts.ATTEMPTS)[2:]:  # for speed
    del study_attempts.ATTEMPTS[name]
"""


def test_study(commands, study_archive, models, tmp_path):
    arguments = [
        f"--archive={study_archive}",
        f"--output={tmp_path}",
        "--detectors=ngram-calmest,call-sets",
        "--seeds=0",
    ]
    trained = [models(f"s{seed}", seed, on=study_archive) for seed in (0, 1)]
    cases = {"run": [*arguments, f"--models={joined(trained)}"], "seeds": [*arguments, "--seeds="]}
    done = commands("kim2017.study", cases, STUDY)
    assert done["run"].code == 0, done["run"].err
    found = result(tmp_path, "study")
    # Traces 25 to 200 (number 0 counts as none) lie in block 0, and the copy with number 299 goes there too.
    assert found["development"] == {"attacks": 5, "normal": 177}
    (run,) = found["detectors"]["ngram-calmest"]["runs"]
    assert (run["reported"]["normal"], run["reported"]["attacks"]) == (123, 5)
    assert list(run["development"]["families"]) == ["Adduser"] and list(run["reported"]["families"]) == ["Web_Shell"]
    padding = found["detectors"]["ngram-calmest"]["padding"][0]
    assert padding["x 8"] < padding["x 1"] <= run["all"]["auc"] and padding["75 calls"] < run["all"]["auc"]
    assert f"| ngram-calmest | {run['development']['auc']:.3f} (" in (tmp_path / "study_table.md").read_text()
    runs = {name: [run["seed"] for run in value["runs"]] for name, value in found["attempts"].items()}
    on_models = [f"sets-and-calmest, {m} {how}" for m in ("1x4.1", "2x3.2") for how in study_attempts.ON_MODELS]
    assert runs == {"n-gram of order 1": [0], "n-gram of order 2": [0], **dict.fromkeys(on_models, [0, 1])}
    assert done["seeds"].code == 2 and "whole numbers" in done["seeds"].err


def test_attempts_calibrated_by_length(study_archive):
    """Without the calibration they are the detectors that ship; with it, a score rises or falls with length no more."""
    benchmark = data.benchmark(TraceArchive(study_archive))
    context = study_attempts.Context(benchmark, np.ones(len(benchmark.traces), bool), len(NAMES))
    shipped = benchmark.fit(catalogue.build(["sets-and-calmest"], len(NAMES))["sets-and-calmest"], 0)
    expected = shipped.decision_function(benchmark.traces)
    np.testing.assert_allclose(study_attempts.agreed(context, False, False), expected, rtol=1e-9, atol=1e-9)
    shipped = benchmark.fit(catalogue.build(["sets-and-mixture"], len(NAMES))["sets-and-mixture"], 0)
    mixture = study_attempts.mixture(context, sets=True)
    np.testing.assert_allclose(mixture, shipped.decision_function(benchmark.traces), rtol=1e-9, atol=1e-9)
    shape = lstm.Shape(len(NAMES), 3)
    member = TrainedMember(Member("m", shape, language_model.initialise(jax.random.key(0), shape)))
    by_ngram = study_attempts.with_language_model(context, member, 0, share=0.0)
    by_member = study_attempts.with_language_model(context, member, 0, share=1.0)
    mixed = study_attempts.with_language_model(context, member, 0, share=0.5)
    assert (np.abs(by_ngram - by_member) > 1e-3).any() and (np.abs(mixed - by_member) > 1e-3).any()
    for scores in (by_ngram, by_member, mixed):  # the call sets still let pass what they let pass
        assert (scores <= study_attempts.standardised(context, "sets", False)).all()
    itself = dataclasses.replace(context, benchmark=dataclasses.replace(benchmark, traces=benchmark.train))
    itself.__dict__["scores"] = context.unseen  # judged are the training traces, by models that did not see them
    for name in context.unseen:
        scores = study_attempts.standardised(itself, name, True)
        np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-9)
        assert abs(np.corrcoef(scores, np.log(benchmark.train.lengths))[0, 1]) < 1e-9


def test_precision_tells_what_cheaper_arithmetic_does(archive, models, commands, tmp_path):
    path = models("precise", 0)
    arguments = [f"--archive={archive}", f"--models={path}", f"--output={tmp_path / 'out'}"]
    wrong = [f"--archive={archive}", f"--models={tmp_path}", f"--output={tmp_path / 'none'}"]
    done = commands("precision", {"right": arguments, "no model": wrong})
    assert done["right"].code == 0, done["right"].err
    assert done["no model"].code == 2 and "not a model directory" in done["no model"].err
    assert not (tmp_path / "none").exists()
    found = json.loads((tmp_path / "out" / "precision.json").read_text())
    table = (tmp_path / "out" / "table.md").read_text()
    for rates in found["products"]:
        tiles = rates["tiles"]
        shown = " | ".join(f"{tiles[kind] / tiles['float32']:.2f}" for kind in ("bfloat16", "int8"))
        assert f"| {rates['cells']} | scoring a tile of 256 lanes | {shown} |" in table
    rows = found["rows"]
    assert [(row["member"], row["precision"]) for row in rows] == [
        (member, kind)
        for member in ("1x4.1", "2x3.2")
        for kind in ("--operands=bfloat16", "bfloat16 operands", "int8 weights", "int8 operands")
    ]
    for row in rows:  # weights within 0.1 and states within 1: roundings of 2^-9 and 2^-8 move a logit by some 1e-3
        assert 0 < row["mean_difference"] <= row["largest_difference"] < 0.01
        assert row["largest_difference_of_a_score"] <= row["largest_difference"]
        assert row["rank_correlation"] > 0.99
        assert abs(row["auc_difference"]) < 0.05
