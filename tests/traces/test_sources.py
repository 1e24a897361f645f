import bz2
import collections
import gzip
import io
import lzma
import os
import pathlib
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import sources, tar_stream
from syscall_lm.traces.readers import Counters
from syscall_lm.traces.sources import Limits, lines, open_sources
from syscall_lm.traces.unpacking import ByteStream

IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
PACK = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXT = b"7853  read(3, ...) = 1\n" * 2000


def whole(stream):
    return b"".join(iter(lambda: stream.read(10_000), b""))


def contents(*arguments, limits=None):
    """Name -> content of every source, and what was skipped."""
    skipped = collections.Counter()
    found = {}
    for source in open_sources([str(a) for a in arguments], skipped, limits):
        assert source.name not in found
        found[source.name] = whole(source.stream)
    return found, skipped


def tar_of(members, format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("outer", PACK)
@pytest.mark.parametrize("inner", PACK)
def test_packed_files_and_members_read_as_the_plain_file(tmp_path, outer, inner):
    (tmp_path / "one").write_bytes(PACK[outer](TEXT))
    (tmp_path / "two.tar").write_bytes(PACK[outer](tar_of([("a/b", PACK[inner](TEXT)), ("c", TEXT)])))
    (tmp_path / "three.zip").write_bytes(zip_of([("a/b", PACK[inner](TEXT)), ("c", TEXT)]))
    found, skipped = contents(tmp_path)
    names = ["one", "three.zip!a/b", "three.zip!c", "two.tar!a/b", "two.tar!c"]
    assert list(found) == [str(tmp_path / name) for name in names]
    assert set(found.values()) == {TEXT}
    assert not skipped


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_concatenated_frames_are_read_through(tmp_path, packing):
    (tmp_path / "x").write_bytes(PACK[packing](b"one\n") + PACK[packing](b"two\n"))
    assert list(contents(tmp_path / "x")[0].values()) == [b"one\ntwo\n"]


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_truncation_keeps_what_can_be_read_and_is_counted(tmp_path, packing):
    data = os.urandom(3_000_000)  # more than a block of any of them
    packed = PACK[packing](data)
    (tmp_path / "x").write_bytes(packed[: len(packed) * 2 // 3])
    found, skipped = contents(tmp_path / "x")
    (read,) = found.values()
    assert 500_000 < len(read) < len(data) and data.startswith(read)
    assert skipped == {sources.TRUNCATED: 1}


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_a_lone_file_of_which_nothing_can_be_unpacked_is_an_error(tmp_path, packing):
    (tmp_path / "x").write_bytes(PACK[packing](TEXT)[:14])
    with pytest.raises(SyscallLMError, match="nothing can be unpacked"):
        contents(tmp_path / "x")
    (tmp_path / "y").write_bytes(TEXT)
    found, skipped = contents(tmp_path)  # beside others it is counted
    assert list(found) == [str(tmp_path / "y")] and skipped[sources.TRUNCATED] == 1


def test_truncated_zip_and_tar(tmp_path):
    archive = zip_of([("a", TEXT)])
    (tmp_path / "x.zip").write_bytes(archive[:-30])
    with pytest.raises(SyscallLMError, match="truncated or damaged"):
        contents(tmp_path / "x.zip")
    (tmp_path / "x.tar").write_bytes(tar_of([("a", TEXT), ("b", TEXT)])[: 512 * 3 + len(TEXT)])
    found, skipped = contents(tmp_path / "x.tar")
    assert found[f"{tmp_path}/x.tar!a"] == TEXT
    assert 0 < len(found[f"{tmp_path}/x.tar!b"]) < len(TEXT)
    assert skipped == {sources.TAR_DAMAGED: 1}


@IN_TMP
@given(
    kind=st.sampled_from(["gzip", "bzip2", "xz", "zstd", "tar", "zip", "tar.gz"]),
    place=st.floats(0, 1, exclude_max=True),
    change=st.binary(min_size=1, max_size=8),
    cut=st.booleans(),
)
def test_damage_raises_nothing_but_the_package_error(tmp_path, kind, place, change, cut):
    members = [("a", TEXT), ("b" * 150, gzip.compress(TEXT))]
    make = {**PACK, "tar": lambda _: tar_of(members), "zip": lambda _: zip_of(members)}
    make["tar.gz"] = lambda _: gzip.compress(tar_of(members))
    data = bytearray(make[kind](TEXT))
    at = int(place * len(data))
    data[at : at + len(change)] = change
    (tmp_path / "x").write_bytes(data[: at + 8] if cut else data)
    try:
        contents(tmp_path / "x")
    except SyscallLMError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


@IN_TMP
@given(data=st.binary(max_size=3000))
@example(b"PK\x03\x04" + bytes(100))
@example(b"PK\x05\x06" + bytes(18))
@example(b"\x1f\x8b\x08")
def test_arbitrary_bytes_raise_nothing_but_the_package_error(tmp_path, data):
    for prefix in (b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh91AY&SY", b"PK\x03\x04"):
        (tmp_path / "x").write_bytes(prefix + data)
        try:
            contents(tmp_path / "x")
        except SyscallLMError as error:
            assert str(tmp_path) in str(error)


names = st.text(st.characters(blacklist_characters="\0\\", blacklist_categories=["Cs"]), min_size=1, max_size=300)
safe_names = names.filter(lambda name: ".." not in name.split("/") and not name.startswith("/"))


@settings(deadline=None)
@example([("0/", b"\1")], 0)
@example([("\x80/", b"")], 2)
@example([("\x80\n", b"")], 2)  # a name that ends in what ends a pax record too
@given(st.lists(st.tuples(safe_names, st.binary(max_size=1500)), max_size=6), st.sampled_from([0, 1, 2]))
def test_tar_stream_agrees_with_tarfile(members, format):
    try:
        archive = tar_of(members, format=format)
    except (ValueError, UnicodeEncodeError):  # ustar cannot hold the name
        return
    found = []
    for member in tar_stream.members(io.BytesIO(archive)):
        if member.kind == "file":
            found.append((member.name.decode(), whole(member)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        expected = [(info.name, whole(tar.extractfile(info))) for info in tar if info.isreg()]
    assert found == expected


def test_members_that_point_elsewhere_are_skipped_and_counted(tmp_path):
    def special(name, type, target="/etc/passwd"):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = type, target
        return info

    members = [("../up", TEXT), ("/etc/passwd", TEXT), ("a/../../b", TEXT), ("good", TEXT)]
    members += [(special("soft", tarfile.SYMTYPE), b""), (special("hard", tarfile.LNKTYPE, "good"), b"")]
    members += [(special("device", tarfile.CHRTYPE), b""), (special("pipe", tarfile.FIFOTYPE), b"")]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    found, skipped = contents(tmp_path / "x.tar")
    assert list(found) == [f"{tmp_path}/x.tar!good"]
    assert skipped == {
        "absolute or .. path in an archive": 3,
        "symbolic link in an archive": 1,
        "hard link in an archive": 1,
        "device in an archive": 1,
        "named pipe in an archive": 1,
    }
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    (tmp_path / "x.zip").write_bytes(zip_of([("../up", TEXT), ("C:\\..\\up", TEXT), (link, b"/etc"), ("good", TEXT)]))
    found, skipped = contents(tmp_path / "x.zip")
    assert list(found) == [f"{tmp_path}/x.zip!good"] and sum(skipped.values()) == 3


def test_nothing_is_written(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of([("a/b", TEXT)]))
    (tmp_path / "x.zip").write_bytes(zip_of([("a/b", TEXT)]))
    before = sorted(tmp_path.rglob("*"))
    assert len(contents(tmp_path)[0]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_archives_within_archives_are_counted_not_opened(tmp_path):
    inside = [("in.tar", tar_of([("a", TEXT)])), ("in.zip", zip_of([("a", TEXT)]))]
    inside += [("in.tar.gz", gzip.compress(tar_of([("a", TEXT)]))), ("good", TEXT)]
    (tmp_path / "x.tar").write_bytes(tar_of(inside))
    (tmp_path / "x.zip").write_bytes(zip_of(inside))
    found, skipped = contents(tmp_path)
    assert [name.rpartition("!")[2] for name in found] == ["good", "good"]
    assert skipped == {sources.NESTED: 6}
    (tmp_path / "twice").write_bytes(gzip.compress(gzip.compress(TEXT)))
    with pytest.raises(SyscallLMError, match="packed twice"):
        contents(tmp_path / "twice")


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd", "tar.gz", "zip", "tar of gz"])
def test_a_decompression_bomb_is_refused_in_bounded_memory(tmp_path, packing):
    zeros = bytes(40_000_000)
    if packing == "zip":
        data = zip_of([("a", zeros)])
    elif packing == "tar.gz":
        data = gzip.compress(tar_of([("a", zeros)]))
    elif packing == "tar of gz":
        data = tar_of([(str(i), gzip.compress(zeros)) for i in range(3)])
    else:
        data = PACK[packing](zeros)
    (tmp_path / "x").write_bytes(data)
    del zeros, data
    tracemalloc.start()
    try:
        with pytest.raises(SyscallLMError, match="bomb"):
            for source in open_sources([str(tmp_path / "x")], collections.Counter(), Limits(100, 2**20)):
                while source.stream.read(2**18):
                    pass
        assert tracemalloc.get_traced_memory()[1] < 36e6
    finally:
        tracemalloc.stop()


def test_one_member_has_a_largest_size(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(TEXT))
    with pytest.raises(SyscallLMError, match="more than 1,000 bytes"):
        contents(tmp_path / "x.gz", limits=Limits(member_bytes=1000))


def test_a_tar_record_that_claims_to_be_long_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    assert contents(tmp_path / "x.tar") == ({}, {sources.TAR_DAMAGED: 1})


def test_a_tar_size_below_zero_is_damage(tmp_path):
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"-0000000001\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1 << 20))
    assert contents(tmp_path / "x.tar") == ({}, {sources.TAR_DAMAGED: 1})


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_zip_cannot_unpack_piece_by_piece_is_not_unpacked(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as archive:
        archive.writestr("bomb", bytes(30 << 20))
        archive.writestr(zipfile.ZipInfo("plain"), TEXT)
    tracemalloc.start()
    found, skipped = contents(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(found.values()) == [TEXT] and skipped == {sources.ZIP_MEMBER: 1} and peak < 5 << 20


def test_many_members_take_no_memory_each():
    header = tarfile.TarInfo("some/member").tobuf()
    left = 50_000

    def read(size):
        nonlocal left
        left -= 1
        return header if left >= 0 else b""

    tracemalloc.start()
    try:
        assert sum(1 for _ in tar_stream.members(ByteStream(read))) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_folders_are_walked_in_order_and_links_are_skipped(tmp_path):
    for name in ("b/2", "b/10", "a", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    found, skipped = contents(tmp_path)
    assert list(found) == [str(tmp_path / name) for name in ("a", "b/10", "b/2", "c")]
    assert skipped == {"symbolic link": 2, "neither file nor folder": 1, sources.EMPTY: 1}
    found, _ = contents(f"{tmp_path}/b/*")
    assert list(found) == [str(tmp_path / name) for name in ("b/10", "b/2")]
    found, _ = contents(f"{tmp_path}/**/2", tmp_path / "a")
    assert list(found) == [str(tmp_path / name) for name in ("b/2", "a")]


def test_pipes_are_refused_or_counted_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(TEXT)
    found, skipped = contents(f"{tmp_path}/*")
    assert list(found) == [str(tmp_path / "file")] and skipped == {sources.SPECIAL: 1}
    with pytest.raises(SyscallLMError, match="pipe or device"):
        contents(tmp_path / "pipe")


def test_folders_may_lie_deeper_than_functions_call_each_other(tmp_path, monkeypatch):
    folder = pathlib.Path(*"d" * 1500)
    monkeypatch.chdir(tmp_path)
    for name in "d" * 1500:
        os.mkdir(name)
        os.chdir(name)
    pathlib.Path("file").write_bytes(TEXT)
    os.chdir(tmp_path)
    found, _ = contents("d")
    assert list(found) == [str(folder / "file")]
    for _ in range(1500):  # pytest cannot remove them either
        os.chdir("d")
    os.unlink("file")
    for _ in range(1500):
        os.chdir("..")
        os.rmdir("d")


def test_what_cannot_be_opened_is_one_clear_sentence(tmp_path):
    (tmp_path / "empty").touch()
    for argument, words in (
        (tmp_path / "missing", "no such file"),
        (tmp_path / "*.none", "no file matches"),
        (tmp_path / "empty", "is empty"),
    ):
        with pytest.raises(SyscallLMError, match=words) as caught:
            contents(argument)
        assert str(argument) in str(caught.value)
    with pytest.raises(SyscallLMError, match="no input"):
        contents()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_one_clear_sentence(tmp_path):
    (tmp_path / "x").write_bytes(TEXT)
    (tmp_path / "x").chmod(0)
    with pytest.raises(SyscallLMError, match="cannot be read"):
        contents(tmp_path / "x")


def test_standard_input_is_read_and_stays_open(monkeypatch):
    for data in (TEXT, gzip.compress(TEXT)):
        stdin = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr("sys.stdin", stdin)
        assert contents("-")[0] == {"standard input": TEXT}
        assert not stdin.closed


def test_a_file_name_that_is_not_utf8_becomes_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.strace"
    pathlib.Path(os.fsdecode(path)).write_bytes(TEXT)
    (name,) = contents(tmp_path)[0]
    assert name.encode() == os.fsencode(tmp_path) + "/\N{REPLACEMENT CHARACTER}.strace".encode()


class Chunks:
    """Gives data in pieces of the given sizes, over and over."""

    def __init__(self, data, sizes):
        self.stream, self.sizes, self.calls = io.BytesIO(data), sizes, 0

    def read(self, size):
        self.calls += 1
        return self.stream.read(max(1, min(size, self.sizes[self.calls % len(self.sizes)])))


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"", b"\r", b"a\0b", b"x" * 50]))),
    st.lists(st.integers(1, 40), min_size=1),
    st.booleans(),
)
def test_lines_equal_a_split_whatever_the_chunks(parts, sizes, final_newline):
    data = b"\n".join(parts) + b"\n" * final_newline
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    counters = Counters()
    found = list(lines(Chunks(data, sizes), counters, max_line=40))
    assert found == [line.removesuffix(b"\r") for line in expected if len(line) <= 40]
    assert counters.lines == len(expected)
    assert counters.skipped["line too long"] == len(expected) - len(found)


def test_a_line_of_100_megabytes_is_skipped_in_bounded_memory():
    piece, left = b"x" * 2**18, 400

    def read(size):
        nonlocal left
        left -= 1
        return (piece if left > 0 else b"\nlast" if left == 0 else b"")[:size]

    counters = Counters()
    stream = ByteStream(read)
    tracemalloc.start()
    try:
        assert list(lines(stream, counters)) == [b"last"]
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()
    assert counters.lines == 2 and counters.skipped == {"line too long": 1}


def test_a_zip_with_a_lying_size_is_bounded(tmp_path):
    archive = bytearray(zip_of([("a", TEXT)]))
    at = archive.rindex(b"PK\x01\x02")
    archive[at + 24 : at + 28] = struct.pack("<I", 10)  # the directory claims 10 bytes
    (tmp_path / "x.zip").write_bytes(archive)
    found, _ = contents(tmp_path / "x.zip")
    assert all(len(data) <= len(TEXT) for data in found.values())


def test_a_zip_archive_of_too_many_members_is_refused_before_their_list_is_read(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(zip_of([(f"member{i}", TEXT) for i in range(50)]))
    found, _ = contents(tmp_path / "x.zip")
    assert len(found) == 50
    monkeypatch.setattr(sources, "MAX_LIST", 1000)
    with pytest.raises(SyscallLMError, match="list of members of"):
        contents(tmp_path / "x.zip")
