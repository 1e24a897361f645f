"""KDD98's sessions: Solaris audit trails, and the `bsm.list` beside each that says which session was an attack.

A line of `bsm.list` (DARPA 1998, "list files"): number, start date and time, duration, service, source and destination
port, source and destination address, attack score, name of the attack or "-":

  90 01/23/1998 16:59:22 00:00:22 telnet 1867 23 192.168.1.30 192.168.0.20 1 guess

Its times are local ones of the place of recording, a trail's are not. A trail tells of each process its audit session
and the terminal that it came from. An audit session is taken for a part of the listed session during which it began;
of several the one whose source is its terminal's address and port, then its address, then the latest. What belongs to
one listed session is one trace, calls in the trail's order (Kim et al., section 3.1: "per session"). Calls of no listed
session (daemons) are counted and left out. The data were not at hand: these rules are untested on real trails.

Variants of a call are one call here ("AUE_OPEN_RT" is open), named as UNM's SunOS names it, so that models are portable
between the two (section 3.3).
"""

import array
import collections
import dataclasses
import datetime
import ipaddress
import os
import re
import zoneinfo
from collections.abc import Iterable, Iterator

import numpy as np

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import bsm_records, sources
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.grouping import Naming
from syscall_lm.traces.readers import Counters, bsm
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

LIST = "bsm.list"
ZONE = "America/New_York"
SLACK = 2.0  # seconds that the clocks of list and trail may differ

NOT_A_SESSION = "line that is no session"
UNLISTED = "call of no listed session"
SILENT = "listed session without calls"
NO_LIST = f"trail without a {LIST}"

_LINE = re.compile(
    r"\s*(?P<number>\d{1,9})\s+(?P<start>\d\d/\d\d/\d{4}\s+\d\d:\d\d:\d\d)\s+(?P<hours>\d{1,4}):(?P<minutes>\d\d):"
    r"(?P<seconds>\d\d)\s+(?P<service>\S{1,64})\s+(?P<port>\S{1,9})\s+\S{1,9}\s+(?P<address>\S{1,64})\s+\S{1,64}\s+"
    r"(?P<score>\d{1,3})\s+(?P<attack>\S{1,64})\s*$",
    re.ASCII,
)
_OTHER_NAMES = {"fork1": "fork", "pathdonf": "pathconf"}


@dataclasses.dataclass(frozen=True)
class Session:
    """One line of a list.

    Attributes:
      number: its number; two sessions may share one.
      start, end: seconds since the epoch.
      service: "telnet", ...
      port: the source's, None if there is none.
      address: the source's, 4 bytes; empty if it is none.
      attack: its name; empty for a normal session.
    """

    number: str
    start: float
    end: float
    service: str
    port: int | None
    address: bytes
    attack: str


@dataclasses.dataclass
class _AuditSession:
    """The calls of one audit session: their places in the trail, and their ids."""

    first: bsm_records.Record
    places: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    calls: array.array = dataclasses.field(default_factory=lambda: array.array("H"))


def ingest(folder: str | os.PathLike[str], output: str | os.PathLike[str], events: str) -> Counters:
    """Reads all trails of a folder and their lists into one archive, a trace a listed session.

    Args:
      folder: holds trails and lists, at any depth, packed or not; a list tells of the trails in its own folder.
      output: path of the archive.
      events: the system's `audit_event` file.

    Returns:
      what was read, and what was not, by reason.

    Raises:
      SyscallLMError: no list, no trail, or nothing of one in the other; a file cannot be read.
    """
    names = {number: call_name(event) for number, event in bsm.events(events).items()}
    vocabulary = Vocabulary(tuple(dict.fromkeys(names.values())), f"calls of {os.path.basename(events)}")
    ids = {number: vocabulary.ids[name] for number, name in names.items()}
    counters = Counters()
    lists: dict[str, list[Session]] = {}
    for source in _opened(folder, counters):
        if os.path.basename(source.name).startswith(LIST):
            lists.setdefault(_place(source), []).extend(listed(sources.lines(source.stream, counters), counters))
    if not any(lists.values()):
        raise SyscallLMError(f"{folder}: holds no {LIST} with sessions")
    with TraceArchiveWriter(output, vocabulary) as writer:
        for source in _opened(folder, Counters()):
            if bsm.recognises(source.name, source.head):
                sessions = lists.get(_place(source))
                if sessions is None:
                    counters.skipped[NO_LIST] += 1
                    continue
                for trace in read(source, sessions, ids, vocabulary.unk, counters):
                    writer.write(trace)
        if not writer.num_traces:
            raise SyscallLMError(f"{folder}: its audit trails hold no call of a session in {LIST}")
        writer.metadata.update(format="bsm", counters=counters.to_json(), warning=bsm.WARNING)
    return counters


def _opened(folder: str | os.PathLike[str], counters: Counters) -> Iterator[Source]:
    for path, lone in sources.find_files([os.fspath(folder)], counters.skipped):
        yield from sources.open_file(path, lone, counters.skipped)


def _place(source: Source) -> str:
    """The folder, or the folder within an archive, that a source lies in."""
    return source.name[: max(source.name.rfind("/"), source.name.rfind("!")) + 1]


def call_name(event: str) -> str:
    """The call of an audit event: "AUE_OPEN_RWTC" is open, "AUE_FORK1" fork."""
    name = event.removeprefix("AUE_").removeprefix("O_").partition("_")[0].lower()
    return _OTHER_NAMES.get(name, name)


def listed(lines: Iterable[bytes], counters: Counters, zone: str = ZONE) -> Iterator[Session]:
    """The sessions of a list; other lines are counted.

    Raises:
      SyscallLMError: this system does not know the time zone.
    """
    try:
        local = zoneinfo.ZoneInfo(zone)
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise SyscallLMError(f"this system knows no time zone {zone}; install its time zone data (tzdata)") from error
    for line in lines:
        found = _LINE.match(line.decode("latin-1"))
        try:
            if found is None:
                raise ValueError
            begin = datetime.datetime.strptime(" ".join(found["start"].split()), "%m/%d/%Y %H:%M:%S")
            start = begin.replace(tzinfo=local).timestamp()
        except (ValueError, OverflowError):
            counters.skipped[NOT_A_SESSION] += bool(line.strip())
            continue
        duration = 3600 * int(found["hours"]) + 60 * int(found["minutes"]) + int(found["seconds"])
        attack = found["attack"].partition(",")[0]
        yield Session(
            number=found["number"],
            start=start,
            end=start + duration,
            service=found["service"],
            port=int(found["port"]) if found["port"].isdecimal() else None,
            address=_address(found["address"]),
            attack="" if attack == "-" and not int(found["score"]) else attack,
        )


def _address(text: str) -> bytes:
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError:
        return b""


def read(source: Source, sessions: list[Session], ids: dict[int, int], unk: int, counters: Counters) -> Iterator[Trace]:
    """The listed sessions of a trail that made calls.

    Args:
      source: the trail.
      sessions: of its list.
      ids: audit event to call id; kernel events that it lacks become UNK.
      unk: that id.
      counters: is filled.
    """
    found: dict[int, _AuditSession] = {}
    for place, record in enumerate(bsm_records.records(source, counters)):
        if not bsm.is_call(record.event):
            counters.skipped[bsm.PROGRAM] += 1
        elif record.pid is None:
            counters.skipped[bsm.NO_SUBJECT] += 1
        else:
            if record.session not in found:
                found[record.session] = _AuditSession(record)
            found[record.session].places.append(place)
            found[record.session].calls.append(ids.get(record.event, unk))
    parts: dict[int, list[_AuditSession]] = collections.defaultdict(list)
    for audit in found.values():
        number = session_of(audit.first, sessions)
        if number is None:
            counters.skipped[UNLISTED] += len(audit.calls)
        else:
            parts[number].append(audit)
    naming = Naming(source.name)
    for number, session in enumerate(sessions):
        if number not in parts:
            counters.skipped[SILENT] += 1
            continue
        places = np.concatenate([np.array(audit.places, np.uint64) for audit in parts[number]])
        calls = np.concatenate([np.array(audit.calls, np.uint16) for audit in parts[number]])[np.argsort(places)]
        counters.traces += 1
        counters.calls += len(calls)
        if unknown := int((calls == unk).sum()):
            counters.count_unknown("event that audit_event does not name", unknown)
        yield Trace(
            calls=calls,
            id=naming(session.number),
            source=source.name,
            command=session.service,
            start_time=session.start,
            label=ATTACK if session.attack else NORMAL,
            family=session.attack,
        )


def session_of(first: bsm_records.Record, sessions: list[Session]) -> int | None:
    """The index of the listed session that an audit session belongs to, by its first record; None for none."""
    ports = (first.terminal >> 16, first.terminal & 0xFFFF)

    def fit(number: int) -> tuple[bool, bool, float]:
        session = sessions[number]
        here = bool(session.address) and session.address == first.address
        return here and session.port in ports, here, session.start

    running = [n for n, one in enumerate(sessions) if one.start - SLACK <= first.time <= one.end + SLACK]
    return max(running, key=fit, default=None)
