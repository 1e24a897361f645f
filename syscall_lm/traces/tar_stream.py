"""Tar archives read from front to back, without extracting and without trusting a length.

The standard library's tarfile reads a long-name or pax record whole, whatever length its header claims, and keeps every
member in memory; a capture comes from outside, so this reader bounds both. It knows v7, ustar, GNU (long names,
base-256 sizes) and pax (path, size). Format: POSIX.1-2017, `pax`, "ustar Interchange Format".
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

BLOCK = 512
MAX_RECORD = 2**20  # bytes of a long-name or pax record; real ones hold a path

REGULAR = b"0\0" + b"7"  # 7: contiguous file
KINDS = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "named pipe"}


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@dataclasses.dataclass
class Member:
    """One member that the stream stands at; `read` gives its content until the next member is asked for.

    Attributes:
      name: its path in the archive, undecoded.
      kind: "file", "folder", or what else it is ("symbolic link", ...).
      truncated: the archive ended within the member.
    """

    name: bytes
    kind: str
    _stream: Readable
    _left: int
    _padding: int
    truncated: bool = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes of content; none at the end."""
        data = self._stream.read(min(size, self._left)) if self._left else b""
        if self._left and not data:
            self.truncated, self._left, self._padding = True, 0, 0
        self._left -= len(data)
        return data

    def finish(self) -> None:
        """Moves the stream behind the member."""
        while self.read(2**16):
            pass
        _read_fully(self._stream, self._padding)


class TarError(Exception):
    """The stream is not a tar archive from here on."""


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are the header of a tar member: their checksum is right."""
    if len(block) < BLOCK or not any(block[:BLOCK]):
        return False
    try:
        checksum = _number(block[148:156])
    except TarError:
        return False
    return checksum == sum(block[:148]) + 8 * 32 + sum(block[156:BLOCK])


def members(stream: Readable) -> Iterator[Member]:
    """The members in order.

    Raises:
      TarError: a header is damaged, or the archive ends within one.
    """
    name, size = None, None  # from records that speak of the next member
    while True:
        block = _read_fully(stream, BLOCK)
        if not block or not any(block):
            return  # a block of zeros ends an archive; one that just stops is common and as good
        if not is_header(block):
            raise TarError("a damaged header")
        kind = block[156:157]
        stated = _number(block[124:136])
        if kind in (b"L", b"K", b"x", b"g"):
            record = _record(stream, stated)
            if kind == b"L":
                name = record.rstrip(b"\0")
            elif kind == b"x":
                pax = _pax(record)
                name = pax[b"path"].rstrip(b"/") if b"path" in pax else name  # a file's too, as tarfile has it
                if pax.get(b"size", b"").isdigit():
                    size = int(pax[b"size"][:20])
            continue
        stated = stated if size is None else size
        if name is None:
            name = _text(block[:100])
            if block[257:263] == b"ustar\0" and block[345:500].strip(b"\0"):
                name = _text(block[345:500]) + b"/" + name
        if kind in REGULAR:
            # Before POSIX a folder was a file whose name ends so; since then such a file is one, and has content.
            found = "folder" if kind == b"\0" and name.endswith(b"/") else "file"
        else:
            found = "folder" if kind in b"5D" else KINDS.get(kind, "special member")
        if found == "folder" or kind in b"123456":
            stated = 0  # these have no content, whatever their header says
        member = Member(name, found, stream, stated, -stated % BLOCK)
        yield member
        member.finish()
        if member.truncated:
            raise TarError("a truncated member")
        name, size = None, None


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":  # GNU's base 256
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.translate(None, b"01234567"):  # `int` would take signs, and so sizes below zero
        raise TarError("a damaged number")
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _record(stream: Readable, size: int) -> bytes:
    if not 0 <= size <= MAX_RECORD:
        raise TarError(f"a name record of {size} bytes")
    return _read_fully(stream, size + -size % BLOCK)[:size]


def _pax(record: bytes) -> dict[bytes, bytes]:
    """Keys and values of "LENGTH KEY=VALUE\\n" entries; stops at the first that is damaged."""
    values: dict[bytes, bytes] = {}
    while record:
        length, _, _ = record.partition(b" ")
        if not length.isdigit() or len(length) > 8 or not len(length) < int(length) <= len(record):
            break
        key, _, value = record[len(length) + 1 : int(length)].removesuffix(b"\n").partition(b"=")
        values[key] = value
        record = record[int(length) :]
    return values


def _read_fully(stream: Readable, size: int) -> bytes:
    parts = []
    while size > 0 and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    if parts and size > 0:
        raise TarError("the archive ends within a block")
    return b"".join(parts)
