"""From what a user names (files, patterns, folders, standard input) to streams of plain bytes, in a fixed order.

Folders, zip and tar archives are walked; gzip, bzip2, xz and zstd are recognised by their first bytes and unpacked on
the way, one archive deep. Nothing is written to disk: a member's name is a label and never a path. Every length comes
from outside, so what is unpacked is bounded (`Limits`).
"""

import collections
import contextlib
import dataclasses
import glob
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import tar_stream, unpacking
from syscall_lm.traces.readers import Counters
from syscall_lm.traces.unpacking import CHUNK, ByteStream

STANDARD_INPUT = "-"
HEAD = 2**16  # bytes by which a format is recognised
MAX_LINE = 2**20

TRUNCATED = "compressed data truncated or damaged"
TAR_DAMAGED = "tar archive truncated or damaged"
ZIP_DAMAGED = "zip archive truncated or damaged"
ZIP_MEMBER = "zip member encrypted, damaged, or packed otherwise than by deflate"
# What zipfile unpacks piece by piece; of bzip2 and LZMA it unpacks all that it read before it tells how much it was.
_ZIP_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (TRUNCATED, TAR_DAMAGED, ZIP_DAMAGED, ZIP_MEMBER)
NESTED = "archive within an archive"
EMPTY = "empty file"
SPECIAL = "neither file nor folder"

MAX_LIST = 2**26  # bytes; a million members


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
    for path, lone in find_files(arguments, skipped):
        yield from open_file(path, lone, skipped, limits)


def open_file(
    path: str, lone: bool, skipped: collections.Counter[str], limits: Limits | None = None
) -> Iterator[Source]:
    """The source that a file on disk is, or the sources that it holds.

    Args:
      path: the file, "-" for standard input.
      lone: whether it is all that the user named: an error then if it holds nothing.
      skipped, limits: see `open_sources`.

    Raises:
      SyscallLMError: see `open_sources`.
    """
    try:
        standard = contextlib.nullcontext(sys.stdin.buffer)  # stays open
        opened = standard if path == STANDARD_INPUT else open(path, "rb", buffering=0)
    except OSError as error:
        raise SyscallLMError(f"{as_text(path)}: cannot be read ({error.strerror})") from error
    with opened as file:
        yield from _Opener(path, file, lone, skipped, limits or Limits()).sources()


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
    too_long = False
    pieces: list[bytes] = []  # of a line that is longer than a chunk, joined once its end is there
    held = 0
    while chunk := stream.read(size):
        if b"\n" not in chunk and held + len(chunk) <= max_line and not too_long:
            pieces.append(chunk)
            held += len(chunk)
            continue
        block = b"".join([*pieces, chunk]).split(b"\n")
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
        pieces, held = [rest], len(rest)
        if b"\r" in chunk or (block and block[0].endswith(b"\r")):
            block = [line.removesuffix(b"\r") for line in block]
        yield block
    rest = b"".join(pieces)
    if too_long or rest:
        counters.lines += 1
        if too_long:
            counters.skipped["line too long"] += 1
        else:
            yield [rest.removesuffix(b"\r")]


def find_files(arguments: Sequence[str], skipped: collections.Counter[str]) -> Iterator[tuple[str, bool]]:
    """The files that arguments name, in order, and whether each is all that the user named; see `open_sources`."""
    if not arguments:
        raise SyscallLMError("no input given; expected files, folders, patterns or - for standard input")
    for path, given in _paths(arguments, skipped):
        yield path, given and len(arguments) == 1


def _paths(arguments: Sequence[str], skipped: collections.Counter[str]) -> Iterator[tuple[str, bool]]:
    """Files to open, and whether the user named each itself."""
    for argument in arguments:
        if argument == STANDARD_INPUT:
            yield argument, True
        elif os.path.isdir(argument):
            yield from ((path, False) for path in _walk(argument, skipped))
        elif _is_special(argument):  # what is read to recognise a format would be lost
            raise SyscallLMError(
                f"{as_text(argument)}: is no file but a pipe or device; give - and redirect standard input from it"
            )
        elif os.path.lexists(argument):
            yield argument, True
        elif glob.has_magic(argument):
            try:
                found = sorted(glob.glob(argument, recursive=True))
            except RecursionError:
                raise SyscallLMError(f"{as_text(argument)}: folders lie too deep within each other") from None
            if not found:
                raise SyscallLMError(f"{as_text(argument)}: no file matches this pattern")
            folder = argument[: argument.index("**")] if "**" in argument else ""
            for path in found:
                if folder and _through_link(path, folder):  # ** would walk in circles
                    skipped["symbolic link"] += 1
                    continue
                if os.path.isdir(path):
                    yield from ((p, False) for p in _walk(path, skipped))
                elif _is_special(path):
                    skipped[SPECIAL] += 1
                else:
                    yield path, False
        else:
            raise SyscallLMError(f"{as_text(argument)}: no such file or folder")


def _through_link(path: str, folder: str) -> bool:
    """Whether a symbolic link lies between `folder` and `path`."""
    parts = path[len(folder) :].split(os.sep)
    return any(os.path.islink(folder + os.sep.join(parts[: i + 1])) for i in range(len(parts)))


def _is_special(path: str) -> bool:
    """Whether a path is a named pipe, a device or the like: to open it may block for ever."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _walk(folder: str, skipped: collections.Counter[str]) -> Iterator[str]:
    """The files in a folder and those within, which may lie deeper than functions can call each other."""
    entered = [_entries(folder)]
    while entered:
        entry = next(entered[-1], None)
        if entry is None:
            entered.pop()
        elif entry.is_symlink():
            skipped["symbolic link"] += 1
        elif entry.is_dir():
            entered.append(_entries(entry.path))
        elif entry.is_file():
            yield entry.path
        else:
            skipped[SPECIAL] += 1


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        return iter(sorted(os.scandir(folder), key=lambda entry: entry.name))
    except OSError as error:
        raise SyscallLMError(f"{as_text(folder)}: cannot be read ({error.strerror})") from error


class _ShortReads:
    """A file of which a zip archive's list of members is not read if it is longer than MAX_LIST.

    `zipfile` reads the list at once, and keeps ten times as many bytes.
    """

    def __init__(self, file: Any):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_LIST:
            raise ValueError(f"a list of members of {size:,} bytes")
        return self._file.read(size)


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
        elif (packing := unpacking.packing(head)) is None:
            yield Source(self._name, raw)
        else:
            stream = ByteStream(self._guarded(unpacking.reader(raw, packing), self._name, depth=0))
            head = stream.peek(tar_stream.BLOCK)
            if not head:
                self._nothing(f"nothing can be unpacked from it ({packing}); is it empty, truncated or damaged?", EMPTY)
            elif tar_stream.is_header(head):
                yield from self._tar_members(stream)
            elif _is_zip(head) or unpacking.packing(head):
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
            self._skipped[TAR_DAMAGED] += 1

    def _zip_members(self) -> Iterator[Source]:
        if not self._file.seekable():
            raise SyscallLMError(f"{self._name}: a zip archive is read from its end; give it as a file")
        try:
            archive = zipfile.ZipFile(cast(Any, _ShortReads(self._file)))
            self._bytes_in = self._file.seek(0, os.SEEK_END)
        except unpacking.ERRORS as error:
            self._nothing(f"a zip archive, but truncated or damaged ({error})", ZIP_DAMAGED)
            return
        for info in archive.infolist():
            name = info.filename.encode("utf-8", "surrogateescape")
            if name.endswith(b"/"):  # a folder; `is_dir` fails for an empty name
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                self._skipped["link or special file in an archive"] += 1
                continue
            if not self._safe(name):
                continue
            if info.compress_type not in _ZIP_BOUNDED:
                self._skipped[ZIP_MEMBER] += 1
                continue
            try:
                file: Any = archive.open(info)
            except SyscallLMError:
                raise
            except unpacking.ERRORS:
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
        if packing := unpacking.packing(head):
            stream = ByteStream(self._guarded(unpacking.reader(stream, packing), label, depth=1))
            head = stream.peek(tar_stream.BLOCK)
        if not head:
            self._skipped[EMPTY] += 1
        elif _is_zip(head) or tar_stream.is_header(head) or unpacking.packing(head):
            self._skipped[NESTED] += 1
        else:
            yield Source(label, stream)

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
            except unpacking.ERRORS:
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


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def as_text(path: str | bytes) -> str:
    """A path as text that any file can hold."""
    return os.fsencode(path).decode("utf-8", "replace") if isinstance(path, str) else path.decode("utf-8", "replace")
