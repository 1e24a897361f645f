"""gzip, bzip2, xz and zstd, recognised by their first bytes and unpacked with bounded memory."""

import bz2
import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

CHUNK = 2**18

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end of an empty file
# What truncated or damaged data raises.
ERRORS = (EOFError, OSError, ValueError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile)
ERRORS += (zlib.error, lzma.LZMAError, zstandard.ZstdError)
_XZ_MEMORY, _ZSTD_WINDOW = 2**29, 2**27  # bytes


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


def packing(head: bytes) -> str | None:
    """What a file that starts with `head` is packed with: gzip, bzip2, xz, zstd or nothing."""
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def reader(packed: ByteStream, kind: str) -> Callable[[int], bytes]:
    """The function that reads at most so many unpacked bytes; it raises one of `ERRORS` for damage.

    Args:
      packed: the packed bytes.
      kind: what `packing` said of them.
    """
    match kind:
        case "gzip":
            return gzip.GzipFile(fileobj=packed).read1  # type: ignore[arg-type]  # it needs read() only
        case "bzip2":
            return _FrameReader(packed, bz2.BZ2Decompressor).read
        case "xz":
            return _FrameReader(packed, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)).read
        case _:
            return _FrameReader(packed, _ZstdDecompressor, chunk=2**10).read


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
