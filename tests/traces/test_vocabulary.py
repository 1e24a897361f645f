import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.vocabulary import UNK_NAME, Vocabulary

call_names = st.text("abc_0", min_size=1, max_size=4)
vocabularies = st.lists(call_names, min_size=1, max_size=20, unique=True).map(lambda names: Vocabulary(tuple(names)))


@given(vocabularies, st.lists(call_names))
def test_encoding_finds_every_name_and_only_those(vocabulary, names):
    ids = vocabulary.encode(names)
    assert ids.dtype == np.uint16
    assert [vocabulary.name(i) for i in ids] == [n if n in vocabulary.names else UNK_NAME for n in names]


@given(vocabularies, vocabularies, st.data())
def test_mapping_from_another_vocabulary_goes_by_name(mine, other, data):
    calls = np.array(data.draw(st.lists(st.integers(0, other.unk), min_size=1)))
    mapped = mine.map_from(other)[calls]
    for call, result in zip(calls, mapped, strict=True):
        name = other.name(call)
        assert mine.name(result) == (name if name in mine.names else UNK_NAME)
    assert len(mine.map_from(other)) == other.size


@given(vocabularies)
def test_mapping_from_itself_changes_nothing(vocabulary):
    assert vocabulary.map_from(vocabulary).tolist() == list(range(vocabulary.size))


@given(vocabularies, vocabularies)
def test_the_hash_tells_lists_apart(one, other):
    assert (one.hash == other.hash) == (one.names == other.names)


@given(vocabularies)
def test_the_two_extra_ids_follow_the_names(vocabulary):
    assert (vocabulary.unk, vocabulary.go, vocabulary.size) == tuple(len(vocabulary.names) + i for i in (0, 1, 1))
    assert vocabulary.name(vocabulary.unk) == vocabulary.name(vocabulary.go) == UNK_NAME


def test_abi_tables_hold_the_kernels_numbers():
    i386 = Vocabulary.from_abi("i386", last_number=340)
    assert (i386.name(3), i386.name(340), i386.name(17), len(i386.names)) == ("read", "prlimit64", "syscall_0x11", 341)
    assert {"read", "openat", "clone3"} <= set(Vocabulary.from_abi("x86_64").names)
    with pytest.raises(SyscallLMError, match="--abi=vax"):
        Vocabulary.from_abi("vax")


@given(st.lists(call_names, min_size=1, max_size=20), st.booleans())
def test_a_mapping_file_keeps_every_position(tmp_path_factory, names, numbered):
    path = tmp_path_factory.mktemp("mapping") / "m.txt"
    path.write_text("".join(f"{i} {name}\n" if numbered else f"{name}\n" for i, name in enumerate(names)))
    vocabulary = Vocabulary.from_mapping_file(str(path))
    assert [name.partition("#")[0] for name in vocabulary.names] == names


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0 read\n2 write\n",
        b"two words here\n",
        b"\xff\xfe\n",
        b"x" * 65,
        "² open".encode(),
        b"9" * 5000 + b" read",
    ],
)
def test_a_bad_mapping_file_is_one_clear_sentence(tmp_path, text):
    (tmp_path / "m.txt").write_bytes(text)
    with pytest.raises(SyscallLMError, match="m.txt"):
        Vocabulary.from_mapping_file(str(tmp_path / "m.txt"))
    with pytest.raises(SyscallLMError, match="cannot be read"):
        Vocabulary.from_mapping_file(str(tmp_path / "missing"))


@pytest.mark.parametrize("names", [(), ("a", "b", "a"), tuple(map(str, range(2**16)))])
def test_impossible_vocabularies_are_refused(names):
    with pytest.raises(SyscallLMError):
        Vocabulary(names)
