"""Audit trails of Solaris' Basic Security Module: bytes to records. Also OpenBSM's (macOS, FreeBSD).

A record is a header token, tokens that describe the event, and a trailer token; numbers are big endian. A token's kind
is its first byte; only the subject's process id is of interest here, but to reach it all tokens before it have to be
measured, since text in them may hold any byte. Layouts: audit.log(5) of OpenBSM, "SunSHIELD Basic Security Module
Guide", appendix "Audit record descriptions".
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator

from syscall_lm.traces.readers import Counters
from syscall_lm.traces.sources import Source

DAMAGED, NO_TRAILER = "bytes outside records", "record cut by the end of the file"
FILE_MARK = "file token"

MAX_RECORD = 2**20  # bytes; kernels make records of at most 32 KiB
_CHUNK = 2**18

VERSIONS = frozenset({1, 2, 10, 11, 12})
_HEADERS = {0x14: 18, 0x15: 22, 0x74: 26, 0x79: 30}  # at least: header32, header32_ex, header64, header64_ex
_TRAILER = b"\x13\xb1\x05"
_TRAILER_SIZE = 7
_FILE = 0x11
_SUBJECTS = frozenset({0x24, 0x75, 0x7A, 0x7C})
_PID_AT = 21  # behind kind, audit, effective and real ids
_OLD_ATTRIBUTE = 0x31

# Sizes with the kind's byte: fixed ones, and ...
_FIXED = {
    0x22: 6,  # IPC
    0x24: 37,  # subject32
    0x26: 37,  # process32
    0x27: 6,  # return32
    0x2A: 5,  # address
    0x2B: 21,  # IP header
    0x2C: 3,  # port
    0x2E: 9,  # socket
    0x2F: 5,  # sequence
    0x32: 29,  # IPC permissions
    0x34: 65,  # groups, old
    0x3E: 29,  # attribute32
    0x52: 9,  # exit
    0x72: 10,  # return64
    0x73: 33,  # attribute64
    0x75: 41,  # subject64
    0x77: 41,  # process64
    0x7E: 21,  # address_ex
}
# ... ones that hold 2 bytes of length at this place, behind which so many bytes follow.
_COUNTED = {0x23: 1, 0x28: 1, 0x29: 1, 0x60: 1, 0x2D: 6, 0x71: 10, 0x84: 18, 0x85: 18}
_ADDRESS_TYPE_AT = {0x7A: 33, 0x7B: 33, 0x7C: 37, 0x7D: 37}  # subject and process with an address of 4 or 16 bytes
_UNITS = {0: 1, 1: 2, 2: 4, 3: 8}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One audit record.

    Attributes:
      event: its number in `audit_event`.
      time: seconds since the epoch.
      pid: of the subject; None if the record has none.
      session: the subject's audit session.
      terminal: the port of the terminal that it came from; of a network connection the remote and the local port, 16
        bits each, as far as the audit service knew them.
      address: the terminal's, 4 or 16 bytes.
    """

    event: int
    time: float
    pid: int | None
    session: int = 0
    terminal: int = 0
    address: bytes = b""


def is_record(head: bytes) -> bool:
    """Whether bytes begin with a complete record, or with a file token and a header."""
    if head[:1] == bytes([_FILE]):
        size = _file_token(head)
        head = head[size:] if size else b""
    size = _size(head)
    return size > 0 and (_complete(head, size) if len(head) >= size else True)


def records(source: Source, counters: Counters) -> Iterator[Record]:
    """The records of a trail; what lies outside of them is counted, once a stretch."""
    data, position, lost = b"", 0, False
    ended = False
    while True:
        if len(data) - position < MAX_RECORD and not ended:
            chunk = source.stream.read(_CHUNK)
            ended = not chunk
            data, position = data[position:] + chunk, 0
            if not ended and len(data) < MAX_RECORD:
                continue
        while position < len(data) and (ended or len(data) - position >= MAX_RECORD):
            size = _size(data, position)
            if size and _complete(data, size, position):
                counters.lines += 1
                lost = False
                yield _parse(data[position : position + size])
                position += size
                continue
            if data[position] == _FILE and (size := _file_token(data[position : position + 2**16 + 16])):
                counters.skipped[FILE_MARK] += 1
                position += size
                continue
            if not lost:
                counters.lines += 1
                cut = size and len(data) - position < size
                counters.skipped[NO_TRAILER if cut else DAMAGED] += 1
                lost = True
            position = _next(data, position, ended)
        if ended and position >= len(data):
            return


def _next(data: bytes, position: int, ended: bool) -> int:
    """Where the next record may begin: behind the next trailer."""
    found = data.find(_TRAILER, position + 1)
    if found >= 0 and found + _TRAILER_SIZE <= len(data):
        return found + _TRAILER_SIZE
    return len(data) if ended else max(position + 1, len(data) - _TRAILER_SIZE)


def _size(data: bytes, position: int = 0) -> int:
    """The size that a header claims; 0 if there is no header."""
    if len(data) - position < 18 or data[position] not in _HEADERS or data[position + 5] not in VERSIONS:
        return 0
    size = int.from_bytes(data[position + 1 : position + 5], "big")
    return size if _HEADERS[data[position]] + _TRAILER_SIZE <= size <= MAX_RECORD else 0


def _complete(data: bytes, size: int, position: int = 0) -> bool:
    """Whether the trailer stands where the header says."""
    end = position + size
    return data[end - _TRAILER_SIZE : end] == _TRAILER + size.to_bytes(4, "big")


def _file_token(data: bytes) -> int:
    """The size of a file token that a header or the end follows; 0 if it is none."""
    if len(data) < 12:
        return 0
    size = 11 + int.from_bytes(data[9:11], "big")
    follows = data[size : size + 1]
    return size if len(data) >= size and (not follows or follows[0] in _HEADERS) else 0


def _parse(record: bytes) -> Record:
    kind = record[0]
    event = int.from_bytes(record[6:8], "big")
    position = 10
    if kind in (0x15, 0x79):
        position += 4 + (16 if int.from_bytes(record[10:14], "big") == 16 else 4)
    if kind in (0x14, 0x15):
        seconds, fraction = struct.unpack_from(">II", record, min(position, len(record) - 8))
        position += 8
    else:
        seconds, fraction = struct.unpack_from(">QQ", record, min(position, len(record) - 16))
        position += 16
    time = float(seconds) + (fraction / 1000 if fraction < 1000 else 0.0)
    subject = _subject(record, position, attribute=25)
    if subject is None:  # Solaris' old attribute token has two sizes
        subject = _subject(record, position, attribute=29)
    return Record(event, time, None) if subject is None else Record(event, time, *_identity(subject))


def _identity(subject: bytes) -> tuple[int, int, int, bytes]:
    """Process, audit session, terminal port and address of a subject token."""
    pid, session = struct.unpack_from(">II", subject, _PID_AT)
    port_end = _PID_AT + (12 if subject[0] in (0x24, 0x7A) else 16)
    address = subject[port_end + 4 * (subject[0] in _ADDRESS_TYPE_AT) :]
    return pid, session, int.from_bytes(subject[_PID_AT + 8 : port_end], "big"), address


def _subject(record: bytes, position: int, attribute: int) -> bytes | None:
    """The subject token, whole."""
    end = len(record) - _TRAILER_SIZE
    while position < end:
        kind = record[position]
        size = attribute if kind == _OLD_ATTRIBUTE else _token_size(record, position, end)
        if not 0 < size <= end - position:
            return None
        if kind in _SUBJECTS:
            return record[position : position + size]
        position += size
    return None


def _token_size(record: bytes, position: int, end: int) -> int:
    """The size of a token; 0 if its kind is not known or its length is not there."""
    kind = record[position]
    if kind in _FIXED:
        return _FIXED[kind]

    def number(at: int, size: int) -> int:
        return int.from_bytes(record[position + at : position + at + size], "big")

    if kind in _COUNTED:
        at = _COUNTED[kind]
        return at + 2 + number(at, 2)
    if kind in _ADDRESS_TYPE_AT:
        at = _ADDRESS_TYPE_AT[kind]
        return at + 4 + (16 if number(at, 4) == 16 else 4)
    if kind == 0x21:  # data
        return 4 + _UNITS.get(record[position + 2], 0) * record[position + 3] if position + 4 <= end else 0
    if kind == 0x3B:  # groups
        return 3 + 4 * number(1, 2)
    if kind == 0x7F:  # socket_ex
        return 9 + 2 * ((16 if number(5, 2) == 16 else 4) + 2) - 2
    if kind in (0x25, 0x3C, 0x3D):  # attribute paths, arguments, environment
        return _strings(record, position, end, number(1, 4))
    return 0


def _strings(record: bytes, position: int, end: int, count: int) -> int:
    at = position + 5
    find: Callable[..., int] = record.find
    for _ in range(min(count, end)):
        at = find(b"\0", at, end) + 1
        if at == 0:
            return 0
    return at - position
