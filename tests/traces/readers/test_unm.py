import collections
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import grouping, numbers, sources
from syscall_lm.traces.readers import Counters, Options, unm
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream
from syscall_lm.traces.vocabulary import Vocabulary

PLAIN = Vocabulary(tuple(f"call{i}" for i in range(100)))


def read(data, vocabulary=PLAIN, numbering="A"):
    counters = Counters()
    source = Source("x.int", ByteStream(io.BytesIO(data).read))
    options = Options(numbering=numbering, label="normal", host="h")
    return list(unm.read(source, vocabulary, options, counters)), counters


def runs_of(pairs):
    """The reference: one run after the other, in plain Python."""
    runs = []
    for i, (pid, call) in enumerate(pairs):
        if i == 0 or pairs[i - 1][0] != pid:
            runs.append((pid, []))
        runs[-1][1].append(call)
    return runs


pairs_lists = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99)), min_size=1)


@settings(deadline=None)
@given(pairs_lists, st.sampled_from(["\n", "\r\n", "  \n"]), st.sampled_from(["", "\t"]))
def test_render_and_read_gives_the_same_runs(pairs, end, indent):
    data = "".join(f"{indent}{pid} {call}{end}" for pid, call in pairs).encode()
    traces, counters = read(data)
    assert [(t.pid, t.calls.tolist()) for t in traces] == runs_of(pairs)
    assert counters.lines == counters.calls == len(pairs) and counters.traces == len(traces)
    assert len({t.id for t in traces}) == len(traces) and not counters.skipped
    assert unm.recognises("x", data)


@given(pairs_lists)
def test_numbering_b_is_numbering_a_plus_one(pairs):
    data = "".join(f"{pid} {call + 1}\n" for pid, call in pairs).encode()
    traces, _ = read(data, numbering="B")
    assert [(t.pid, t.calls.tolist()) for t in traces] == runs_of(pairs)


def test_a_run_continues_over_any_block_of_lines(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 7)
    traces, _ = read(b"1 10\n1 20\n1 30\n2 40\n1 50\n")
    assert [t.calls.tolist() for t in traces] == [[10, 20, 30], [40], [50]]
    assert [t.id for t in traces] == ["x.int:1", "x.int:2", "x.int:1#2"]


def test_what_is_no_pair_is_counted():
    traces, counters = read(b"1 2\nx\n1 -3\n\n1 99999999999\n1 70000\n1 2 3\n\xff\0\n1 150\n1 4")
    assert [t.calls.tolist() for t in traces] == [[2, PLAIN.unk, 4]]
    assert counters.skipped == {unm.NOT_A_PAIR: 5, unm.BLANK: 1, numbers.NOT_A_CALL_NUMBER: 1}
    assert counters.unknown == {"number 150": 1}


line_likes = st.sampled_from(
    ["1 2", "1 3", "2 2", "1  2", "01 2", "1 0000000000003", " 1 2", "12 ", "1", "1 2 3", "", " ", "1 1234567890"]
)


@given(st.lists(line_likes, min_size=1))
def test_plain_lines_are_read_as_each_line_would_be(found):
    """A line that is no pair makes the reader look at each line of its block."""
    traces, counters = read("".join(f"{line}\n" for line in found).encode())
    looked_at, skipped = read("".join(f"{line}\n" for line in [*found, "x"]).encode())
    assert [(t.pid, t.calls.tolist()) for t in traces] == [(t.pid, t.calls.tolist()) for t in looked_at]
    assert counters.skipped + collections.Counter({unm.NOT_A_PAIR: 1}) == skipped.skipped
    each = [unm._PAIR.fullmatch(line.encode()) is not None for line in found]
    assert counters.calls == sum(each)


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text("0123456789 \n-x").map(str.encode)), st.sampled_from("AB"))
def test_arbitrary_bytes_are_counted_and_never_raise(data, numbering):
    _, counters = read(data, numbering=numbering)
    assert counters.lines == counters.calls + counters.skipped.total()
    unm.recognises("x", data)


def test_the_options_are_checked():
    with pytest.raises(SyscallLMError, match="--mapping"):
        unm.vocabulary(Options())
    with pytest.raises(SyscallLMError, match="--numbering=C"):
        unm.numbering(Options(numbering="C"))
    assert unm.numbering(Options()) == "A"


def sun_mapping():
    """A mapping in which SunOS 4's loader can be told."""
    listed = [f"call{i}" for i in range(100)]
    listed[4], listed[2], listed[66], listed[17], listed[37] = "open", "read", "mmap", "stat", "stat#37"
    return Vocabulary(tuple(listed))


@pytest.mark.parametrize(("numbering", "other"), [("A", "B"), ("B", "A")])
def test_a_file_of_the_other_numbering_is_refused(numbering, other):
    beginnings = {"A": b"7 4\n7 2\n7 66\n", "B": b"7 5\n7 3\n7 67\n"}
    traces, _ = read(beginnings[numbering], sun_mapping(), numbering)
    assert [sun_mapping().name(c) for c in traces[0].calls] == ["open", "read", "mmap"]
    with pytest.raises(SyscallLMError, match=f"--numbering={other}"):
        read(beginnings[other] + b"7 9\n", sun_mapping(), numbering)
    read(beginnings[other], PLAIN, numbering)  # under a mapping with other names these numbers tell nothing


def test_under_b_a_name_that_stands_twice_is_the_call_that_a_gives():
    mapping = sun_mapping()
    assert unm.number_table(mapping, "A")[37] == 37
    assert unm.number_table(mapping, "B")[38] == 17 == unm.number_table(mapping, "B")[18]
    assert unm.number_table(mapping, "B")[0] == mapping.unk
    (trace,), counters = read(b"1 0\n1 38\n", mapping, "B")
    assert trace.calls.tolist() == [mapping.unk, 17] and counters.unknown == {"number 0": 1}


# ---------------------------------------------------------------- the data


@pytest.fixture(scope="module")
def load(shared_data):
    """Reads one file of the lpr data."""
    folder = shared_data / "unm_lpr"
    options = Options(mapping=str(folder / "syscallMap.txt"))
    vocabulary = unm.vocabulary(options)

    def load(name, numbering="A"):
        found, counters = [], Counters()
        for source in sources.open_sources([str(folder / name)], collections.Counter()):
            if unm.recognises(source.name, source.head):
                found += unm.read(source, vocabulary, Options(numbering=numbering), counters)
        assert not counters.skipped
        return found, vocabulary

    return load


@pytest.mark.parametrize(
    ("name", "traces", "calls", "distinct"),
    [
        ("unm/lpr-normal-10.txt", 522, 166_827, None),
        ("unm/lpr-normal-11.txt", 49, 20_275, None),
        ("unm/synthetic-lpr-syn.int", 9, 2398, 8),
        ("mit/exploit-ai.int.gz", 1001, 165_248, 8),
        ("unm/exploit-unm.int.gz", 1001, 164_232, 8),
    ],
)
def test_counts_of_the_small_files(load, name, traces, calls, distinct):
    found, _ = load(name)
    assert (len(found), sum(len(t.calls) for t in found)) == (traces, calls)
    assert distinct in (None, len({t.calls.tobytes() for t in found}))


def test_both_numberings_of_mits_recordings_hold_the_same_calls(load):
    a, vocabulary = load("mit/traces.tar.gz")
    b, _ = load("mit/lpr-live-mit-new.tar.gz", "B")
    assert (len(a), sum(len(t.calls) for t in a), len({t.calls.tobytes() for t in a})) == (2697, 2_912_622, 1736)
    assert (len(b), sum(len(t.calls) for t in b), len({t.calls.tobytes() for t in b})) == (2703, 2_926_304, 1741)
    assert len({int(c) for t in a for c in set(t.calls.tolist())}) == 39
    by_name = {re.sub(r"^\d+-", "", t.source.rpartition("/")[2]): t.calls for t in b}
    exit_call = vocabulary.ids["exit"]
    for trace in a:  # B adds the calls that A's recorder left out: unknown ones, and the final exit
        calls = by_name[trace.source.rpartition("/")[2]]
        calls = calls[calls != vocabulary.unk]
        calls = calls[:-1] if calls[-1] == exit_call else calls
        assert np.array_equal(trace.calls, calls)
    with pytest.raises(SyscallLMError, match="--numbering=A"):
        load("mit/traces.tar.gz", "B")
    with pytest.raises(SyscallLMError, match="--numbering=B"):
        load("mit/lpr-live-mit-new.tar.gz", "A")


def test_a_run_of_more_calls_than_fit_is_cut_and_counted(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_HELD", 1000)
    monkeypatch.setattr(sources, "CHUNK", 400)
    traces, counters = read(b"7 5\n" * 10_000)
    assert sum(len(trace.calls) for trace in traces) == 10_000 and len({trace.id for trace in traces}) == len(traces)
    assert counters.skipped[grouping.LONG] == len(traces) - 1 > 5
