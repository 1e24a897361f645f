"""Captures that try to break their reader, as `hostile` needs them: each case writes a file."""

import bz2
import dataclasses
import gzip
import io
import lzma
import pathlib
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MIB = 2**20
_BOMB = 8 * 2**30  # bytes that a few megabytes unpack to
_STRACE = b"".join(b'%d openat(AT_FDCWD, "/etc/x", O_RDONLY) = 3\n%d close(3) = 0\n' % (i, i) for i in (7, 8)) * 500
_AS_STRACE = ("--format=strace",)  # else zeros are not even recognised
_GARBAGE = b"this line is of no format\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """One capture.

    Attributes:
      name: of its file, too.
      write: writes it.
      exit_codes: with which `ingest` may end.
      arguments: of `ingest`, besides the file.
    """

    name: str
    write: Callable[[pathlib.Path], object]
    exit_codes: tuple[int, ...]
    arguments: tuple[str, ...] = ()


def _repeated(pack: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
    """A bomb: a packed block of zeros, again and again, which all these formats read as one stream."""

    def write(path: pathlib.Path) -> None:
        block = pack(bytes(64 * MIB))
        with path.open("wb") as file:
            for _ in range(_BOMB // (64 * MIB)):
                file.write(block)

    return write


def _zip_bomb(method: int, size: int) -> Callable[[pathlib.Path], object]:
    def write(path: pathlib.Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            with archive.open("x", "w", force_zip64=True) as member:
                for _ in range(size // (64 * MIB)):
                    member.write(bytes(64 * MIB))

    return write


def _nested(path: pathlib.Path) -> None:
    data, name = _STRACE, "x.strace"
    for depth in range(20):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        data, name = packed.getvalue(), f"{depth}.zip"
    path.write_bytes(data)


def _links(path: pathlib.Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "/etc/passwd"),
            ("loop", tarfile.SYMTYPE, "loop"),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("device", tarfile.CHRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ("/absolute.strace", "../../outside.strace", "inside.strace"):
            _add(archive, name, _STRACE)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _many_in_tar(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        for i in range(10**6):
            data = b"7 close(3) = 0\n"
            member = tarfile.TarInfo(f"{i}.strace")
            member.size = len(data)
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + data.ljust(tarfile.BLOCKSIZE, b"\0"))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def _many_in_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(10**6):
            archive.writestr(f"{i}.strace", b"7 close(3) = 0\n")


def _damaged(data: bytes) -> bytes:
    rng = random.Random(0)
    changed = bytearray(data)
    for _ in range(20):
        changed[rng.randrange(10, len(changed))] = rng.randrange(256)
    return bytes(changed)


def _torn() -> bytes:
    """Two writers of one file whose lines cut each other."""
    lines = _STRACE.splitlines(keepends=True)
    return b"".join(a[:9] + b + a[9:] for a, b in zip(lines[::2], lines[1::2], strict=True))


def _clock() -> bytes:
    times = ("1700000000.1", "1.0", "99999999999.9", "-5.0", "1700000000.0", "nan", "1e400")
    return b"pid,time,call\n" + b"".join(f"7,{time},close\n".encode() for time in times * 200)


def _mixed() -> bytes:
    json_line = b'{"processId": 3, "eventName": "close", "timestamp": 1}\n'
    return (_STRACE[:2000] + json_line * 20 + b"1 2 3 4\n" * 20 + bytes(range(256)) + b"\n" + _STRACE[:2000]) * 4


def _written(parts: Callable[[], Iterator[bytes]]) -> Callable[[pathlib.Path], object]:
    def write(path: pathlib.Path) -> None:
        with path.open("wb") as file:
            for part in parts():
                file.write(part)

    return write


def _bytes(make: Callable[[], bytes]) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(make())


def _long_line() -> Iterator[bytes]:
    yield _STRACE + b'7 openat(AT_FDCWD, "'
    yield from (b"x" * MIB for _ in range(1024))
    yield b'") = 3\n' + _STRACE


def _pids() -> Iterator[bytes]:
    for start in range(0, 10**7, 10**5):
        yield b"".join(b"%d close(3) = 0\n" % pid for pid in range(start, start + 10**5))


def _endless_row() -> Iterator[bytes]:
    yield b'pid,call\n1,open\n2,"'
    yield from (b"x,\n" * 2**18 for _ in range(128))


def _wide_rows() -> Iterator[bytes]:
    yield b"pid,call," + b",".join(b"c%d" % i for i in range(50_000)) + b"\n"
    for _ in range(50):
        yield b"1,open," + b"," * 49_999 + b"\n"


def _parquet(path: pathlib.Path) -> None:
    pq.write_table(pa.table({"pid": [1] * 1000, "call": ["open", "close"] * 500}), path)


def _changed_footer(path: pathlib.Path) -> None:
    _parquet(path)
    data = bytearray(path.read_bytes())
    data[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)


def _many_columns(path: pathlib.Path) -> None:
    pq.write_table(pa.table({"call": ["open"], **{f"c{i}": [1] for i in range(10**5)}}), path)


def _deep(path: pathlib.Path) -> None:
    kind = pa.int8()
    for _ in range(200):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"call": pa.nulls(1, kind)}), path)


def _long_name(path: pathlib.Path) -> None:
    pq.write_table(pa.table({"call": ["open"], "x" * 2**28: [1]}), path)


def _long_word(path: pathlib.Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 10**5), ["x" * 2**24])
    pq.write_table(pa.table({"pid": [1] * 10**5, "call": words}), path)


def _giant_row(path: pathlib.Path) -> None:
    calls = pa.ListArray.from_arrays(pa.array([0, 10**8]), pa.array(bytearray(10**8), pa.uint8()))
    pq.write_table(pa.table({"calls": calls}), path)


def _endless_groups(path: pathlib.Path) -> None:
    """A hundred million rows in a few kilobytes."""
    table = pa.table({name: pa.nulls(10**7, pa.int64()).fill_null(3) for name in ("pid", "call")})
    with pq.ParquetWriter(path, table.schema, data_page_size=2**30, max_rows_per_page=10**7) as writer:
        for _ in range(10):
            writer.write_table(table, row_group_size=10**7)


CASES = [
    Case("bomb.gz", _repeated(gzip.compress), (2,), _AS_STRACE),
    Case("bomb.xz", _repeated(lzma.compress), (2,), _AS_STRACE),
    Case("bomb.bz2", _repeated(bz2.compress), (2,), _AS_STRACE),
    Case("bomb.zst", _repeated(zstandard.ZstdCompressor().compress), (2,), _AS_STRACE),
    Case("bomb.zip", _zip_bomb(zipfile.ZIP_DEFLATED, _BOMB), (2,), _AS_STRACE),
    Case("bomb in bzip2.zip", _zip_bomb(zipfile.ZIP_BZIP2, 512 * MIB), (2,), _AS_STRACE),
    Case("bomb in LZMA.zip", _zip_bomb(zipfile.ZIP_LZMA, 512 * MIB), (2,), _AS_STRACE),
    Case("20 archives in one another.zip", _nested, (2,)),
    Case("links and paths outside.tar", _links, (0,)),
    Case("a million members.tar", _many_in_tar, (0,)),
    Case("a million members.zip", _many_in_zip, (0,)),
    Case("truncated.gz", _bytes(lambda: gzip.compress(_STRACE * 100)[:-500]), (0,)),
    Case("damaged.gz", _bytes(lambda: _damaged(gzip.compress(random.Random(0).randbytes(10**6)))), (2,)),
    Case("random bytes", _bytes(lambda: random.Random(0).randbytes(10**6)), (2,)),
    Case("random bytes as strace", _bytes(lambda: random.Random(0).randbytes(10**7)), (2,), _AS_STRACE),
    Case("zeros as strace", _bytes(lambda: bytes(10**8)), (2,), _AS_STRACE),
    Case("empty", _bytes(bytes), (2,)),
    Case("cut in a line", _bytes(lambda: _STRACE[:-9]), (0,)),
    Case("torn by two writers", _bytes(_torn), (0, 2)),
    Case("formats mixed", _bytes(_mixed), (0,), _AS_STRACE),
    Case("clock jumps.csv", _bytes(_clock), (0,), ("--format=csv", "--max_gap=1", "--order_events")),
    Case("half garbage", _bytes(lambda: (_STRACE[:2000] + _GARBAGE * 50) * 9), (2,), ("--max_bad_fraction=0.1",)),
    Case("a line of 1 GiB", _written(_long_line), (0,)),
    Case("ten million pids", _written(_pids), (0,)),
    Case("row without end.csv", _written(_endless_row), (0, 2), ("--format=csv", "--columns=call=call,pid=pid")),
    Case("50,000 columns.csv", _written(_wide_rows), (0,), ("--format=csv", "--columns=call=call,pid=pid")),
    Case("12 million words a line", _written(lambda: iter([b"open " * 12_000_000])), (0,), ("--format=text_lines",)),
    Case(
        "130 million numbers", _written(lambda: (b"3 4 " * MIB + b"\n" for _ in range(62))), (0,), ("--format=adfa_ld",)
    ),
    Case("footer.parquet", _changed_footer, (2,)),
    Case("100,000 columns.parquet", _many_columns, (0, 2)),
    Case("200 lists deep.parquet", _deep, (2,)),
    Case("a name of 256 MiB.parquet", _long_name, (0, 2)),
    Case("one word of 16 MiB shared.parquet", _long_word, (0, 2)),
    Case("a row of 100 million calls.parquet", _giant_row, (0, 2)),
    Case("groups without end.parquet", _endless_groups, (0, 2)),
]
