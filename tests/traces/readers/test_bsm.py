import io
import ipaddress
import struct

import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import bsm_records
from syscall_lm.traces.readers import Counters, Options, bsm
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream

SUBJECT = struct.pack(">B9I", 0x24, 1, 2, 3, 4, 5, 77, 7, 8, 9)


def record(event=23, *tokens, version=2, kind=0x14):
    body = b"".join(tokens)
    start = struct.pack(">BHH", version, event, 0)
    if kind in (0x15, 0x79):
        start += struct.pack(">II", 4, 0x7F000001)
    start += struct.pack(">II" if kind in (0x14, 0x15) else ">QQ", 1_000_000_000, 250)
    size = 5 + len(start) + len(body) + 7
    return struct.pack(">BI", kind, size) + start + body + struct.pack(">BHI", 0x13, 0xB105, size)


@pytest.mark.parametrize("kind", [0x14, 0x15, 0x74, 0x79])
@pytest.mark.parametrize("version", [2, 11])
def test_headers_of_all_kinds(read, kind, version):
    data = record(23, SUBJECT, kind=kind, version=version)
    traces, counters, names = read("bsm", data)
    assert names == [["event_23"]] and (traces[0].pid, traces[0].start_time) == (77, 1_000_000_000.25)
    assert not counters.skipped and bsm.recognises("x", data)


def test_the_subject_is_found_behind_tokens_that_imitate_it(read):
    text = b"\x24" * 60 + b"\0"
    attribute = struct.pack(">BIIIIQI", 0x3E, 1, 2, 3, 4, 5, 6)
    arguments = struct.pack(">BI", 0x3C, 2) + b"a\x24\x24\0\x13\xb1\x05\0"
    tokens = (struct.pack(">BH", 0x28, len(text)) + text, attribute, arguments, SUBJECT)
    for solaris_attribute in (24, 28):
        old = b"\x31" + bytes(solaris_attribute)
        traces, counters, _ = read("bsm", record(72, old, *tokens) * 2)
        assert [(trace.pid, len(trace.calls)) for trace in traces] == [(77, 2)] and not counters.skipped


def test_what_is_no_call_is_told(read):
    mark = struct.pack(">BIIH", 0x11, 1, 2, 5) + b"next\0"
    login, nobody, exit = record(6152, SUBJECT), record(23, b"\xee"), record(bsm.EXIT, SUBJECT)
    data = mark + record(23, SUBJECT) + login + nobody + exit + record(23, SUBJECT) + mark
    traces, counters, names = read("bsm", data)
    assert names == [["event_23", "event_1"], ["event_23"]]
    assert counters.skipped == {bsm.PROGRAM: 1, bsm.NO_SUBJECT: 1, bsm_records.FILE_MARK: 2}
    assert [trace.id for trace in traces] == ["capture:77", "capture:77#2"]
    assert bsm.recognises("x", data)


def test_reading_goes_on_behind_damage(read):
    good = record(23, SUBJECT)
    for damage in (b"garbage", good[:30], good[:-3] + b"xxx", b"\x14" + b"\xff" * 40, bytes(3000)):
        _, counters, names = read("bsm", good + damage + good + good)
        assert len(names[0]) >= 2 and counters.skipped[bsm_records.DAMAGED] == 1
    _, counters, names = read("bsm", good + good[:-3])
    assert len(names[0]) == 1 and counters.skipped == {bsm_records.NO_TRAILER: 1}


def test_large_trails_are_read_in_pieces(read):
    text = struct.pack(">BH", 0x28, 30_000) + bytes(30_000)
    _, counters, names = read("bsm", record(23, text, SUBJECT) * 100)
    assert len(names[0]) == 100 and counters.lines == 100


def test_the_samples_of_openbsm(read, shared_data):
    folder = shared_data / "format_samples/openbsm"
    data = (folder / "test/samples/execve-long-args.trail").read_bytes()
    events = str(folder / "etc/audit_event")
    traces, counters, names = read("bsm", data, Options(mapping=events))
    assert names == [["AUE_EXECVE"]] and traces[0].pid == 50009 and not counters.skipped
    assert abs(traces[0].start_time - 1158613982.608) < 1e-3
    vocabulary = bsm.vocabulary(Options(mapping=events))
    assert {"AUE_FORK1", "AUE_OPEN_RWTC", "AUE_EXIT"} <= set(vocabulary.names)
    assert "AUE_login" not in vocabulary.names and len(vocabulary.names) > 300

    records = 0
    for path in sorted((folder / "test/reference").iterdir()):
        data = path.read_bytes()
        if path.name.endswith("_token") or "_token-" in path.name:
            if data[0] not in (0x11, 0x13, 0x14):
                assert bsm_records._token_size(data, 0, len(data)) == len(data), path.name
        else:
            assert bsm.recognises(path.name, data)
            _, counters, _ = read("bsm", data)
            assert counters.lines == 1 and counters.skipped == {bsm.PROGRAM: 1}, path.name
            records += 1
    assert records == 56


def test_who_a_record_is_of(shared_data):
    folder = shared_data / "format_samples/openbsm/test/reference"
    addresses = {"subject32_record": "127.0.0.1", "subject32ex_record": "fe80::1"}
    for name, address in addresses.items():
        source = Source(name, ByteStream(io.BytesIO((folder / name).read_bytes()).read))
        (record,) = bsm_records.records(source, Counters())
        assert (record.pid, record.session, record.terminal) == (0x13243546, 0x97867564, 0x16593746)
        assert record.address == ipaddress.ip_address(address).packed


def test_a_mapping_that_is_no_audit_event_is_refused(tmp_path):
    (tmp_path / "map").write_text("0 read\n1 write\n")
    for path, words in ((tmp_path / "map", "holds no kernel event"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(SyscallLMError, match=words):
            bsm.vocabulary(Options(mapping=str(path)))
