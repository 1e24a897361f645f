"""KDD98's sessions, on version-2 records and lists that are written here."""

import datetime
import gzip
import struct
import zoneinfo

import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import bsm_records, bsm_sessions
from syscall_lm.traces.archive import TraceArchive
from syscall_lm.traces.readers import Counters

START = datetime.datetime(1998, 6, 1, 8, 30, tzinfo=zoneinfo.ZoneInfo("America/New_York")).timestamp()
VICTIM, ATTACKER, FRIEND = "172.16.112.50", "192.168.1.30", "192.168.0.40"
EVENTS = """
1:AUE_EXIT:exit(2):pc
23:AUE_EXECVE:execve(2):pc,ex
72:AUE_OPEN_R:open(2) - read:fr
73:AUE_OPEN_RC:open(2) - read,creat:fc,fr,fa,fm
241:AUE_FORK1:fork1(2):pc
6152:AUE_login:login - local:lo
"""
EXIT, EXECVE, OPEN_R, OPEN_RC, FORK1 = 1, 23, 72, 73, 241


def record(event, seconds, session, address=FRIEND, terminal=0, pid=77):
    """A record of Solaris 2.5.1: header of version 2, subject, trailer."""
    host = bytes(map(int, address.split(".")))
    subject = struct.pack(">B5I", 0x24, 1, 2, 3, 4, 5) + struct.pack(">III", pid, session, terminal) + host
    start = struct.pack(">BHHII", 2, event, 0, int(START + seconds), 0)
    size = 5 + len(start) + len(subject) + 7
    return struct.pack(">BI", 0x14, size) + start + subject + struct.pack(">BHI", 0x13, 0xB105, size)


def line(number, clock, duration, port, address, attack="-", date="06/01/1998"):
    score = int(attack != "-")
    return f"{number} {date} {clock} {duration} telnet {port} 23 {address} {VICTIM} {score} {attack}\n"


@pytest.fixture
def folder(tmp_path):
    """A day: two sessions at once, one of them an attack in two parts, a silent one, and a daemon."""
    day = tmp_path / "kdd98/week1/monday"
    day.mkdir(parents=True)
    sessions = line(1, "08:30:00", "00:01:00", 1754, FRIEND) + line(2, "08:30:10", "00:00:20", 1867, ATTACKER, "guess")
    (day / "bsm.list").write_text(sessions + line(3, "09:00:00", "00:00:05", 1900, FRIEND) + "nonsense\n\n")
    remote = 1867 << 16 | 23
    trail = [
        record(OPEN_R, -3600, 5),  # a daemon's audit session, begun before any listed one
        record(EXECVE, 0, 100, FRIEND),
        record(EXECVE, 10, 200, ATTACKER, remote),
        record(6152, 10, 200, ATTACKER),
        record(OPEN_RC, 11, 100, FRIEND),
        record(FORK1, 12, 201, ATTACKER),  # the login's session follows the connection's
        record(OPEN_R, 13, 200, ATTACKER, remote),
        record(EXIT, 14, 201, ATTACKER),
        record(EXIT, 15, 5),
        record(EXIT, 40, 100, FRIEND),
    ]
    with gzip.open(day / "pascal.bsm.gz", "wb") as file:
        file.write(b"".join(trail))
    (tmp_path / "audit_event").write_text(EVENTS)
    return tmp_path


def test_a_listed_session_is_a_trace(folder):
    counters = bsm_sessions.ingest(folder / "kdd98", folder / "out.parquet", str(folder / "audit_event"))
    archive = TraceArchive(folder / "out.parquet")
    batch = archive.read()
    names = [[archive.vocabulary.name(int(call)) for call in calls] for calls in batch.calls]
    assert names == [["execve", "open", "exit"], ["execve", "fork", "open", "exit"]]
    assert batch.column("label").tolist() == ["normal", "attack"] and batch.column("family").tolist() == ["", "guess"]
    assert batch.column("start_time").tolist() == [START, START + 10]
    assert counters.skipped == {
        bsm_sessions.NOT_A_SESSION: 1,
        bsm_sessions.UNLISTED: 2,
        bsm_sessions.SILENT: 1,
        "event of a program, no call": 1,
    }
    assert (counters.calls, counters.traces) == (7, 2)


def test_lines_of_a_list():
    lines = [
        line(1, "08:30:00", "01:02:03", 1754, FRIEND),
        line(2, "08:30:00", "00:00:00", "-", "host", "guess_passwd,123,old,clear,r2l"),
        line(3, "08:30:00", "00:00:01", 1, FRIEND, date="01/23/1998"),
        line(4, "25:30:00", "00:00:01", 1, FRIEND),
        line(5, "08:30:00", "00:00:01", 1, FRIEND, date="02/30/1998"),
    ]
    counters = Counters()
    one, two, three = bsm_sessions.listed((text.encode() for text in lines), counters)
    assert (one.start, one.end, one.port, one.address, one.attack) == (
        START, START + 3723, 1754, bytes([192, 168, 0, 40]), ""
    )  # fmt: skip
    assert (two.port, two.address, two.attack) == (None, b"", "guess_passwd")
    assert three.start == datetime.datetime(1998, 1, 23, 13, 30, tzinfo=datetime.UTC).timestamp()  # winter time
    assert counters.skipped == {bsm_sessions.NOT_A_SESSION: 2}


def test_source_and_port_choose_among_sessions_of_one_time():
    def session(port, address, start=0.0):
        host = bytes(map(int, address.split(".")))
        return bsm_sessions.Session("1", start, start + 60, "telnet", port, host, "")

    sessions = [session(1, FRIEND), session(2, FRIEND), session(1, ATTACKER), session(3, ATTACKER, 30)]

    def chosen(address, terminal, time=31.0):
        first = bsm_records.Record(EXECVE, time, 7, 1, terminal, bytes(map(int, address.split("."))))
        return bsm_sessions.session_of(first, sessions)

    assert chosen(FRIEND, 1 << 16 | 23) == 0 and chosen(FRIEND, 2 << 16 | 23) == 1
    assert chosen(ATTACKER, 1 << 16 | 23) == 2 and chosen(ATTACKER, 9 << 16) == 3
    assert chosen(VICTIM, 0) == 3 and chosen(VICTIM, 0, 5.0) == 0  # the latest; the first of several
    assert chosen(FRIEND, 0, -1.5) == 0 and chosen(FRIEND, 0, -2.5) is None and chosen(FRIEND, 0, 93) is None


@pytest.mark.parametrize(
    ("event", "call"),
    [("AUE_OPEN_RWTC", "open"), ("AUE_FORK1", "fork"), ("AUE_STAT", "stat"), ("AUE_O_SHMSYS", "shmsys")],
)
def test_variants_of_a_call_are_one(event, call):
    assert bsm_sessions.call_name(event) == call


def test_what_cannot_be_used_is_refused(folder):
    events = str(folder / "audit_event")
    day = folder / "kdd98/week1/monday"
    (folder / "kdd98/elsewhere").mkdir()
    (day / "pascal.bsm.gz").rename(folder / "kdd98/elsewhere/pascal.bsm.gz")  # its list is not there
    with pytest.raises(SyscallLMError, match="hold no call of a session"):
        bsm_sessions.ingest(folder / "kdd98", folder / "out.parquet", events)
    (day / "bsm.list").write_text("nothing\n")
    with pytest.raises(SyscallLMError, match=r"holds no bsm.list"):
        bsm_sessions.ingest(folder / "kdd98", folder / "out.parquet", events)
    with pytest.raises(SyscallLMError, match="no time zone"):
        list(bsm_sessions.listed([], Counters(), "Nowhere/Here"))
    assert not (folder / "out.parquet").exists()
