import collections
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscall_lm.traces import grouping, numbers, sources
from syscall_lm.traces.readers import Counters, Options, adfa_ld
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream

VOCABULARY = adfa_ld.vocabulary(Options())


def read(data, name="x.txt", options=None):
    counters = Counters()
    source = Source(name, ByteStream(io.BytesIO(data).read))
    return list(adfa_ld.read(source, VOCABULARY, options or Options(), counters)), counters


def test_an_id_is_the_kernels_number():
    assert {n: VOCABULARY.name(n) for n in (3, 4, 5, 6, 102, 168, 192, 197, 240, 265, 340)} == {
        3: "read", 4: "write", 5: "open", 6: "close", 102: "socketcall", 168: "poll", 192: "mmap2", 197: "fstat64",
        240: "futex", 265: "clock_gettime", 340: "prlimit64",
    }  # fmt: skip
    assert len(VOCABULARY.names) == 341


@settings(deadline=None)
@given(st.lists(st.integers(0, 340), min_size=1), st.sampled_from([" ", "  ", "\t", "\n", "\r\n"]), st.booleans())
def test_render_and_read_gives_the_same_calls(calls, separator, final):
    (trace,), counters = read((separator.join(map(str, calls)) + " " * final).encode())
    assert trace.calls.dtype == np.uint16 and trace.calls.tolist() == calls
    assert counters.calls == len(calls) and not counters.skipped and not counters.unknown


def test_what_is_no_call_number_is_counted():
    (trace,), counters = read(b"3 -4 5 x 99999999999999999999 70000 341 6 \xff\0 0x3 6.0\n")
    assert trace.calls.tolist() == [3, 5, 341, 6]
    assert counters.skipped == {numbers.NOT_A_NUMBER: 6, numbers.NOT_A_CALL_NUMBER: 1}
    assert counters.unknown == {"number 341": 1}


@settings(deadline=None)
@given(st.binary())
def test_arbitrary_bytes_never_raise(data):
    traces, counters = read(data)
    assert counters.calls == sum(len(trace.calls) for trace in traces)
    assert counters.calls + counters.skipped.total() <= len(data)
    adfa_ld.recognises("x", data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.zip!ADFA-LD/Training_Data_Master/UTD-0001.txt", ("UTD-0001", "normal", "f", "train")),
        ("ADFA-LD/Validation_Data_Master/UVD-0001.txt", ("UVD-0001", "normal", "f", "test")),
        ("Attack_Data_Master/Web_Shell_10/UAD-WS10-7.txt", ("UAD-WS10-7", "attack", "Web_Shell", "test")),
        ("Attack_Data_Master/Hydra_FTP_1/UAD-H.txt", ("UAD-H", "attack", "Hydra_FTP", "test")),
        ("elsewhere/t.txt", ("t", "normal", "f", "s")),
    ],
)
def test_folders_tell_the_protocol(name, expected):
    (trace,), _ = read(b"3 4 5", name, Options(label="normal", family="f", split="s"))
    assert (trace.id, trace.label, trace.family, trace.split) == expected


def test_recognises_a_line_of_numbers_and_the_data_sets_own_names():
    assert adfa_ld.recognises("x", b"6 6 63 6 42 120\n") and adfa_ld.recognises("x", b"6 6 63 " * 9000)
    assert adfa_ld.recognises("ADFA-LD/Training_Data_Master/UTD-0001.txt", b"6")
    for head in (b"4 2\n4 66\n", b"", b"6 6\n", b"6 6 6 x", b"1 2 3\n4 5 6\n"):
        assert not adfa_ld.recognises("x.txt", head)


def test_the_whole_data_set(shared_data):
    skipped, counters = collections.Counter(), Counters()
    counts, ids = collections.Counter(), set()
    families = set()
    for source in sources.open_sources([str(shared_data / "adfa_ld/ADFA-LD.zip")], skipped):
        assert adfa_ld.recognises(source.name, source.head)
        for trace in adfa_ld.read(source, VOCABULARY, Options(), counters):
            counts[trace.label, trace.split, "traces"] += 1
            counts[trace.label, trace.split, "calls"] += len(trace.calls)
            ids.add(trace.id)
            families.add(trace.family)
    assert counts == {
        ("normal", "train", "traces"): 833,
        ("normal", "train", "calls"): 308_077,
        ("normal", "test", "traces"): 4372,
        ("normal", "test", "calls"): 2_122_085,
        ("attack", "test", "traces"): 746,
        ("attack", "test", "calls"): 317_388,
    }
    assert len(ids) == 833 + 4372 + 746
    assert families == {"", "Adduser", "Hydra_FTP", "Hydra_SSH", "Java_Meterpreter", "Meterpreter", "Web_Shell"}
    assert counters.skipped == {adfa_ld.WRONG_TABLE: 1} and not counters.unknown and not skipped


def test_a_file_of_more_calls_than_fit_is_cut_and_counted(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_HELD", 200_000)
    counters, options = Counters(), Options()
    source = Source("x", ByteStream(io.BytesIO(b"7 3 900\n" * 200_000).read))
    traces = list(adfa_ld.read(source, adfa_ld.vocabulary(options), options, counters))
    assert counters.calls == sum(len(trace.calls) for trace in traces) == 600_000
    assert len(traces) == counters.skipped[grouping.LONG] + 1 > 1
    assert counters.unknown == {"number 900": 200_000}
