"""kim2017.taught: who teaches judges nothing like it, and the tables tell what users get."""

import dataclasses
import json

import numpy as np
import pytest

from syscall_lm import evaluation
from syscall_lm.detectors.evidence import Evidence
from syscall_lm.detectors.taught import Examples, Judge, Taught
from syscall_lm.experiments.kim2017 import attack_files, halves
from syscall_lm.traces.archive import TraceArchive, TraceArchiveWriter
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

NAMES = ("read", "write", "open", "close", "poll", "pipe", "pipe2", "stat64")


def normal_calls(rng, length):
    return np.cumsum(rng.choice([1, 2], length)) % 6


def write(path, traces):
    with TraceArchiveWriter(path, Vocabulary(NAMES, "names of a test")) as writer:
        for trace in traces:
            writer.write(trace)
    return path


def test_attacks_whose_process_ran_in_several_recordings_are_counted():
    names = ["Adduser_1/UAD-Adduser-1-7.txt", "Adduser_1/UAD-Adduser-1-8.txt", "Adduser_2/UAD-Adduser-2-=7.txt"]
    names += ["Web_Shell_1/UAD-WS1-7.txt", "Web_Shell_1/UAD-WS1-9.txt", "Hydra_FTP_6/UAD-Hydra-FTP-67.txt"]
    sources = np.array([f"ADFA-LD.zip!Attack_Data_Master/{name}" for name in names])
    families = ["Adduser"] * 3 + ["Web_Shell"] * 2 + ["Hydra_FTP"]
    found = attack_files.recurring_processes(sources, np.array(families))
    assert found == {"attacks": 6, "recurring": 4, "frequent": {"7": 4}, "shared_with_development": 2 / 3}
    odd = ["Hydra_FTP_6/UAD-Hydra-FTP-6=57.txt", "Hydra_FTP_10/UAD-Hydra-FTP-10-10.txt", "somewhere/else", ""]
    assert attack_files.processes(np.array(odd)).tolist() == ["57", "10", "somewhere/else", ""]
    nothing = attack_files.recurring_processes(np.array([], str), np.array([], str))
    assert nothing == {"attacks": 0, "recurring": 0, "frequent": {}, "shared_with_development": 0.0}


@pytest.fixture(scope="module")
def taught_archive(tmp_path_factory):
    """Four blocks of 200 file numbers, of which each has normal traces; attacks named by recording and process."""
    rng = np.random.default_rng(0)
    traces = [Trace(normal_calls(rng, 20), f"UTD-{i}", label=NORMAL, split="train") for i in range(25)]
    for i in range(1, 801, 4):
        traces.append(Trace(normal_calls(rng, int(rng.integers(10, 40))), f"UVD-{i:04}", label=NORMAL, split="test"))
    traces[190] = dataclasses.replace(traces[190], calls=traces[30].calls)
    processes = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    for family in ("Adduser", "Hydra_SSH", "Meterpreter", "Web_Shell"):
        own = {"Web_Shell": 5, "Meterpreter": 20}.get(family, 0)  # processes 6 to 10 of the others are here too
        for recording, process in enumerate(processes):
            calls = normal_calls(rng, int(rng.integers(10, 40))).astype(np.uint16)
            calls[rng.random(len(calls)) < 0.05] = 6  # some attacks differ from normal traces, some do not
            name = f"UAD-{family}-{recording}-{process + own}"
            place = f"{family}_{recording}/{name}.txt"
            traces.append(Trace(calls, name, place, label=ATTACK, split="test", family=family))
    for copy, first in ((35, 0), (19, 20)):  # of process 10 in Web_Shell, one of Adduser; of 9 in Hydra_SSH, one of 21
        traces[225 + copy] = dataclasses.replace(traces[225 + copy], calls=traces[225 + first].calls)
    return write(tmp_path_factory.mktemp("taught") / "small.parquet", traces)


def test_who_teaches_judges_nothing_like_it(taught_archive):
    half = halves.Half.of(TraceArchive(taught_archive))
    attack, content = half.benchmark.is_attack, [trace.tobytes() for trace in half.benchmark.traces]
    ids = halves.judged_column(TraceArchive(taught_archive).read(), "id")
    process = np.array([name.rpartition("-")[2] if own else "" for name, own in zip(ids, attack, strict=True)])
    number = np.array([-9999 if own else int(name[4:]) for name, own in zip(ids, attack, strict=True)])
    copy = np.flatnonzero(number == 661)[0]  # equals number 21, and so belongs to the first block
    block = np.where(np.arange(len(number)) == copy, 0, (number - 1) // 50)
    judged = []
    for teach, judge in half.folds(0):
        assert half.development[teach].all() and half.development[judge].all() and not set(teach) & set(judge)
        assert not set(process[teach[attack[teach]]]) & set(process[judge])
        assert not {content[i] for i in teach} & {content[i] for i in judge}
        assert not set(block[teach][~attack[teach]]) & set(block[judge][~attack[judge]])
        judged += judge.tolist()
    assert sorted(judged) == np.flatnonzero(half.development).tolist()
    assert half.development[~attack].tolist() == [
        (n - 1) // 200 % 2 == 0 or i == copy for i, n in enumerate(number[~attack])
    ]
    new = half.scopes[halves.NEW]
    assert set(process[new & attack]) == {str(p) for p in range(11, 15)} and (new & ~attack).sum() == 99
    assert half.reported.families.tolist() == ["Web_Shell"] * 10 and len(half.reported.traces) == 99 + 10


def test_taught(commands, taught_archive, tmp_path):
    trace = Trace(np.arange(5, dtype=np.uint16), "UTD-1", label=NORMAL, split="train")
    archive = write(tmp_path / "other.parquet", [trace, dataclasses.replace(trace, split="test")])
    arguments = [f"--archive={taught_archive}", f"--output={tmp_path}", "--seeds=0,1"]
    others = [f"--archive={archive}", f"--output={tmp_path / 'none'}"]
    done = commands("kim2017.taught", {"run": arguments, "others": others, "seeds": [*arguments, "--seeds="]})
    assert done["run"].code == 0, done["run"].err
    found = json.loads((tmp_path / "taught.json").read_text())
    assert "syscall-lm kim2017.taught --archive=small.parquet" in (tmp_path / "taught.md").read_text()
    opened = TraceArchive(taught_archive)
    half = halves.Half.of(opened)
    names = ["sets-and-mixture", "taught", "taught, by strangers", "taught, linear alone", "taught, trees alone"]
    assert list(found["detectors"]) == names and found["new"] == 4
    inside, attack = half.development, half.benchmark.is_attack
    evidence = Evidence(opened.vocabulary.size).fit(half.benchmark.train)
    x, usual = evidence.transform(half.benchmark.traces), evidence.transform(half.benchmark.train)

    def judge_by(teach):
        return Judge(1).fit(x[teach], attack[teach], usual).log_odds(x)

    scores = judge_by(inside)
    runs = found["detectors"]["taught"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    expected = evaluation.curve(*half.apart(scores, ~inside))
    assert runs[1]["reported"]["auc"] == pytest.approx(expected.auc, abs=1e-12)
    strict = scores.copy()
    for teach, judge in half.folds(1):
        fold = judge_by(teach)
        scores[judge] = fold[judge]
        same = np.isin(half.groups, half.groups[judge])
        strict[same] = fold[same]
    for name, values in {"taught": scores, "taught, by strangers": strict}.items():
        for scope in ("development", "all", halves.NEW):
            expected = evaluation.curve(*half.apart(values, half.scopes[scope])).auc
            assert found["detectors"][name]["runs"][1][scope]["auc"] == pytest.approx(expected, abs=1e-12), (
                name,
                scope,
            )
    assert [list(families) for families in found["elsewhere"].values()] == [["Adduser", "Hydra_SSH", "Meterpreter"]] * 2
    families, normal = half.benchmark.families, halves.blocks(half.ids, half.benchmark, 400)
    aucs = {"sets-and-mixture": [], "taught": []}
    for third in (0, 1):  # the small archive has no third one
        judged, teach = [], []
        for i in np.flatnonzero(inside):
            if attack[i]:
                own = i - len(half.ids)
                judged += [i] * (families[own] == "Hydra_SSH")
                # Its process 9 is a copy of process 21 of another family.
                teach += [i] * (half.processes[own] not in [*half.processes[families == "Hydra_SSH"], "21"])
            else:
                (judged if normal[i] % 3 == third else teach).append(i)
        is_judged = np.isin(np.arange(len(x)), judged)
        aucs["sets-and-mixture"].append(evaluation.curve(*half.apart(x[:, 0], is_judged)).auc)
        for seed in (0, 1):
            fold = Judge(seed).fit(x[teach], attack[teach], usual).log_odds(x)
            aucs["taught"].append(evaluation.curve(*half.apart(fold, is_judged)).auc)
    expected = {name: pytest.approx(np.mean(values), abs=1e-12) for name, values in aucs.items()}
    assert found["elsewhere"]["by turns"]["Hydra_SSH"] == expected
    detector = Taught(evidence, Examples(half.benchmark.traces.take(inside), attack[inside])).learn(
        half.benchmark.train
    )
    reported = half.reported
    shown = [detector.decision_function(reported.traces.take(reported.is_attack == kind)) for kind in (False, True)]
    none = evaluation.curve(*shown).auc  # what users get is what the tables tell
    assert none == pytest.approx(found["detectors"]["taught"]["runs"][0]["reported"]["auc"], abs=1e-12)
    assert found["padding"]["taught"][0]["none"] == pytest.approx(none, abs=1e-12)
    assert len({each["x 8"] for each in found["padding"]["taught"]}) == 2  # a seed a padding
    numbers = {count: [run["normal"] for run in runs] for count, runs in found["few"].items()}
    assert numbers == {"10": [34] * 2, "30": [101] * 2, "100": [101] * 2}  # of 30 attacks and 101 normal traces
    whole = [run["reported"]["auc"] for run in runs]
    assert [run["auc"] for run in found["few"]["100"]] != [run["auc"] for run in found["few"]["10"]]
    np.testing.assert_allclose([run["auc"] for run in found["few"]["100"]], whole, atol=0.05)
    page = (tmp_path / "taught.md").read_text()
    assert "| Adduser, normal by turns |" in page and "the 4 attacks of the reported half" in page
    assert done["others"].code == 2 and "the development half holds 0 attacked processes" in done["others"].err
    assert done["seeds"].code == 2 and "whole numbers" in done["seeds"].err
