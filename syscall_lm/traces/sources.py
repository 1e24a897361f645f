"""From what a user names (files, patterns, folders, standard input) to streams of plain bytes, in a fixed order.

Folders, zip and tar archives are walked; gzip, bzip2, xz and zstd are recognised by their first bytes and unpacked on
the way, one archive deep. Nothing is written to disk: a member's name is a label and never a path. Every length comes
from outside, so what is unpacked is bounded (`Limits`).
"""

import bz2
import collections
import contextlib
import dataclasses
import glob
import gzip
import lzma
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zstandard

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import tar_stream
from syscall_lm.traces.readers import Counters

STANDARD_INPUT = "-"
HEAD = 2**16  # bytes by which a format is recognised
CHUNK = 2**18
MAX_LINE = 2**20

TRUNCATED = "compressed data truncated or damaged"
TAR_DAMAGE_ERRORSD = "tar archive truncated or damaged"
ZIP_MEMBER = "zip member encrypted, damaged or packed in an unknown way"
DAMAGE = (TRUNCATED, TAR_DAMAGE_ERRORSD, ZIP_MEMBER)
NESTED = "archive within an archive"
EMPTY = "empty file"

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end of an empty file
_UNPACKING_ERRORS = (EOFError, OSError, ValueError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile)
_UNPACKING_ERRORS += (zlib.error, lzma.LZMAError, zstandard.ZstdError)
_XZ_MEMORY, _ZSTD_WINDOW = 2**29, 2**27  # bytes


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may come out of compressed data.

    Attributes:
      ratio: at most this many bytes out of one byte of the file on disk, ...
      free_bytes: ... once this many have come out.
      member_bytes: at most this many bytes out of one compressed file or archive member.
    """

    ratio: int = 500
    free_bytes: int = 2**26
    member_bytes: int = 2**36


class ByteStream:
    """Bytes from a function, with a look ahead.

    Args:
      read: gives at most the asked number of bytes, none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes (fewer only at the end), which stay to be read."""
        while len(self._ahead) < size and (data := self._read(size - len(self._ahead))):
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._read(size)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file or archive member.

    Attributes:
      name: for people and for ids: "runs.tar.gz!real/x.int.gz". Holds what the archive says: never use it as a path.
      stream: its content, unpacked.
    """

    name: str
    stream: ByteStream

    @property
    def head(self) -> bytes:
        """The first bytes, which stay to be read."""
        return self.stream.peek(HEAD)


def open_sources(
    arguments: Sequence[str], skipped: collections.Counter[str], limits: Limits | None = None
) -> Iterator[Source]:
    """Opens what the arguments name, one at a time; a source is to be read before the next one is asked for.

    Args:
      arguments: files, patterns (`*`, `?`, `[`, `**`), folders, "-" for standard input.
      skipped: is filled with what was not opened or not read to its end, by reason.
      limits: how much may come out of compressed data.

    Raises:
      SyscallLMError: a file is missing or cannot be read; a lone argument is empty, or nothing can be read of it;
        compressed data exceeds the limits.
    """
    if not arguments:
        raise SyscallLMError("no input given; expected files, folders, patterns or - for standard input")
    limits = limits or Limits()
    for path, given in _paths(arguments, skipped):
        try:
            standard = contextlib.nullcontext(sys.stdin.buffer)  # stays open
            opened = standard if path == STANDARD_INPUT else open(path, "rb", buffering=0)
        except OSError as error:
            raise SyscallLMError(f"{as_text(path)}: cannot be read ({error.strerror})") from error
        with opened as file:
            lone = given and len(arguments) == 1
            yield from _Opener(path, file, lone, skipped, limits).sources()


def lines(stream: tar_stream.Readable, counters: Counters, max_line: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of a stream, one by one; see `line_blocks`."""
    for block in line_blocks(stream, counters, max_line):
        yield from block


def line_blocks(stream: tar_stream.Readable, counters: Counters, max_line: int = MAX_LINE) -> Iterator[list[bytes]]:
    """The lines of a stream, without their ends (`\\n` or `\\r\\n`), many at a time and in bounded memory.

    Args:
      stream: has `read(size)`.
      counters: its `lines` grows; a line longer than `max_line` bytes is counted as skipped and not yielded.
      max_line: the longest line that is kept, in bytes.
    """
    size = min(CHUNK, max_line)
    rest, too_long = b"", False
    while chunk := stream.read(size):
        block = (rest + chunk).split(b"\n")
        rest = block.pop()
        counters.lines += len(block)
        # Only a line that began in an earlier chunk can be too long, and only the first here did.
        if block and (too_long or len(block[0]) > max_line):
            counters.skipped["line too long"] += 1
            del block[0]
            too_long = False
        if len(rest) > max_line:
            too_long = True
        if too_long:
            rest = b""
        if b"\r" in chunk or (block and block[0].endswith(b"\r")):
            block = [line.removesuffix(b"\r") for line in block]
        yield block
    if too_long or rest:
        counters.lines += 1
        if too_long:
            counters.skipped["line too long"] += 1
        else:
            yield [rest.removesuffix(b"\r")]


def _paths(arguments: Sequence[str], skipped: collections.Counter[str]) -> Iterator[tuple[str, bool]]:
    """Files to open, and whether the user named each itself."""
    for argument in arguments:
        if argument == STANDARD_INPUT:
            yield argument, True
        elif os.path.isdir(argument):
            yield from ((path, False) for path in _walk(argument, skipped))
        elif os.path.lexists(argument):
            yield argument, True
        elif glob.has_magic(argument):
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                raise SyscallLMError(f"{as_text(argument)}: no file matches this pattern")
            for path in found:
                yield from ((p, False) for p in (_walk(path, skipped) if os.path.isdir(path) else [path]))
        else:
            raise SyscallLMError(f"{as_text(argument)}: no such file or folder")


def _walk(folder: str, skipped: collections.Counter[str]) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SyscallLMError(f"{as_text(folder)}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_symlink():
            skipped["symbolic link"] += 1
        elif entry.is_dir():
            yield from _walk(entry.path, skipped)
        elif entry.is_file():
            yield entry.path
        else:
            skipped["neither file nor folder"] += 1


class _Opener:
    """Turns one file on disk into sources."""

    def __init__(self, path: str, file: Any, lone: bool, skipped: collections.Counter[str], limits: Limits):
        self._file, self._lone, self._skipped, self._limits = file, lone, skipped, limits
        self._name = "standard input" if path == STANDARD_INPUT else as_text(path)
        self._bytes_in = 0  # read from disk
        self._unpacked = collections.Counter[int]()  # by depth: out of the file, out of members

    def sources(self) -> Iterator[Source]:
        if self._is_folder():
            raise SyscallLMError(f"{self._name}: is a folder")
        raw = ByteStream(self._read_file)
        head = raw.peek(tar_stream.BLOCK)
        if not head:
            self._nothing("is empty", EMPTY)
        elif _is_zip(head):
            yield from self._zip_members()
        elif tar_stream.is_header(head):
            yield from self._tar_members(raw)
        elif (packing := _packing(head)) is None:
            yield Source(self._name, raw)
        else:
            stream = self._unpack(raw, packing, self._name, depth=0)
            head = stream.peek(tar_stream.BLOCK)
            if not head:
                self._nothing(f"nothing can be unpacked from it ({packing}); is it empty, truncated or damaged?", EMPTY)
            elif tar_stream.is_header(head):
                yield from self._tar_members(stream)
            elif _is_zip(head) or _packing(head):
                self._nothing("is packed twice; unpack it once yourself", NESTED)
            else:
                yield Source(self._name, stream)

    def _is_folder(self) -> bool:
        try:
            return stat.S_ISDIR(os.fstat(self._file.fileno()).st_mode)
        except (OSError, ValueError, AttributeError):
            return False

    def _nothing(self, problem: str, reason: str) -> None:
        if self._lone:
            raise SyscallLMError(f"{self._name}: {problem}")
        self._skipped[reason] += 1

    def _read_file(self, size: int) -> bytes:
        try:
            data = self._file.read1(size) if hasattr(self._file, "read1") else self._file.read(size)
        except OSError as error:
            raise SyscallLMError(f"{self._name}: cannot be read ({error.strerror or error})") from error
        self._bytes_in += len(data)
        return data

    def _tar_members(self, stream: ByteStream) -> Iterator[Source]:
        try:
            for member in tar_stream.members(stream):
                if member.kind == "folder":
                    continue
                if member.kind != "file":
                    self._skipped[f"{member.kind} in an archive"] += 1
                elif self._safe(member.name):
                    yield from self._member(member.name, ByteStream(member.read))
        except tar_stream.TarError:
            self._skipped[TAR_DAMAGE_ERRORSD] += 1

    def _zip_members(self) -> Iterator[Source]:
        if not self._file.seekable():
            raise SyscallLMError(f"{self._name}: a zip archive is read from its end; give it as a file")
        try:
            archive = zipfile.ZipFile(self._file)
            self._bytes_in = self._file.seek(0, os.SEEK_END)
        except _UNPACKING_ERRORS as error:
            raise SyscallLMError(f"{self._name}: a zip archive, but truncated or damaged ({error})") from error
        for info in archive.infolist():
            name = info.filename.encode("utf-8", "surrogateescape")
            if info.is_dir():
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                self._skipped["link or special file in an archive"] += 1
                continue
            if not self._safe(name):
                continue
            try:
                file = archive.open(info)
            except SyscallLMError:
                raise
            except _UNPACKING_ERRORS:
                self._skipped[ZIP_MEMBER] += 1
                continue
            with file:
                yield from self._member(name, ByteStream(self._guarded(file.read1, self._label_of(name), 0)))

    def _safe(self, name: bytes) -> bool:
        # Nothing is extracted, so these could do no harm; but an archive that holds them is up to something.
        parts = name.replace(b"\\", b"/").split(b"/")
        if name.startswith((b"/", b"\\")) or b".." in parts:
            self._skipped["absolute or .. path in an archive"] += 1
            return False
        return True

    def _label_of(self, member: bytes) -> str:
        return f"{self._name}!{as_text(member[:1024])}"

    def _member(self, name: bytes, stream: ByteStream) -> Iterator[Source]:
        label = self._label_of(name)
        head = stream.peek(tar_stream.BLOCK)
        if packing := _packing(head):
            stream = self._unpack(stream, packing, label, depth=1)
            head = stream.peek(tar_stream.BLOCK)
        if not head:
            self._skipped[EMPTY] += 1
        elif _is_zip(head) or tar_stream.is_header(head) or _packing(head):
            self._skipped[NESTED] += 1
        else:
            yield Source(label, stream)

    def _unpack(self, packed: ByteStream, packing: str, label: str, depth: int) -> ByteStream:
        match packing:
            case "gzip":
                read = gzip.GzipFile(fileobj=packed).read1  # type: ignore[arg-type]  # it needs read() only
            case "bzip2":
                read = _FrameReader(packed, bz2.BZ2Decompressor).read
            case "xz":
                read = _FrameReader(packed, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)).read
            case _:
                read = _FrameReader(packed, _ZstdDecompressor, chunk=2**10).read
        return ByteStream(self._guarded(read, label, depth))

    def _guarded(self, read: Callable[[int], bytes], label: str, depth: int) -> Callable[[int], bytes]:
        """`read` with the limits; damage ends the stream and is counted."""
        limits, total, ended = self._limits, 0, False

        def guarded(size: int) -> bytes:
            nonlocal total, ended
            if ended:
                return b""
            try:
                data = read(size)
            except SyscallLMError:  # of the file underneath
                raise
            except _UNPACKING_ERRORS:
                self._skipped[TRUNCATED] += 1
                data = b""
            ended = not data
            total += len(data)
            self._unpacked[depth] += len(data)
            if total > limits.member_bytes:
                raise SyscallLMError(f"{label}: unpacks to more than {limits.member_bytes:,} bytes; unpack it yourself")
            unpacked = self._unpacked[depth]
            if unpacked > limits.free_bytes and unpacked > limits.ratio * self._bytes_in:
                raise SyscallLMError(
                    f"{label}: unpacks to over {limits.ratio} times its size, like a decompression bomb; "
                    "if you trust it, unpack it yourself"
                )
            return data

        return guarded


class _FrameReader:
    """Reads concatenated bzip2, xz or zstd frames with bounded output, which their file classes do not promise."""

    def __init__(self, packed: ByteStream, new: Callable[[], Any], chunk: int = CHUNK):
        self._packed, self._new, self._chunk = packed, new, chunk
        self._decompressor = new()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises EOFError for damage."""
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data or self._packed.read(self._chunk)
                if not data.strip(b"\0"):  # the end, or padding
                    return b""
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not (data := self._packed.read(self._chunk)):
                raise EOFError
            if unpacked := self._decompressor.decompress(data, size):
                return unpacked


class _ZstdDecompressor:
    """zstandard's decompressor as bz2's and lzma's are: with a limit on what comes out at once.

    One block of at least 4 bytes gives at most 128 KiB, so what is held is bounded by feeding little at a time.
    """

    def __init__(self):
        self._object = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        self._unpacked, self._given = b"", 0

    @property
    def needs_input(self) -> bool:
        return self._given >= len(self._unpacked)

    @property
    def eof(self) -> bool:
        return self.needs_input and self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, size: int) -> bytes:
        if data:
            self._unpacked, self._given = self._object.decompress(data), 0
        piece = self._unpacked[self._given : self._given + size]
        self._given += len(piece)
        return piece


def _packing(head: bytes) -> str | None:
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def as_text(path: str | bytes) -> str:
    """A path as text that any file can hold."""
    return os.fsencode(path).decode("utf-8", "replace") if isinstance(path, str) else path.decode("utf-8", "replace")
