"""Vocabularies: which call names a model or an archive knows, and their ids."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import system_calls

from syscall_lm.errors import SyscallLMError

UNK_NAME = "<unknown>"
MAX_NAMES = 2**16 - 2  # ids, UNK and GO fit in uint16
MAX_NAMES_SEEN = 2**13  # distinct names that a capture may add; Windows has some 2,000 calls


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """An ordered list of call names; a name's id is its position.

    Two ids follow the names: `unk` stands for every call outside the list and is predicted like any other; `go` starts
    every trace and is an input only (Kim et al., figure 2b).

    Attributes:
      names: the call names, in the order of their ids.
      origin: where the list comes from, for people ("abi x86_64", "mapping calls.txt").
    """

    names: tuple[str, ...]
    origin: str = ""

    def __post_init__(self):
        if not self.names:
            raise SyscallLMError("a vocabulary needs at least one call name")
        if len(self.names) > MAX_NAMES:
            raise SyscallLMError(f"a vocabulary holds at most {MAX_NAMES} names, not {len(self.names)}")
        if len(set(self.names)) != len(self.names):
            twice = next(name for i, name in enumerate(self.names) if name in self.names[:i])
            raise SyscallLMError(f"a vocabulary names each call once, but {twice!r} stands twice")

    @property
    def unk(self) -> int:
        """The id of an unknown call."""
        return len(self.names)

    @property
    def go(self) -> int:
        """The input id that starts a trace."""
        return len(self.names) + 1

    @property
    def size(self) -> int:
        """V, the number of ids that can be predicted: all names and UNK."""
        return len(self.names) + 1

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Name to id."""
        return {name: i for i, name in enumerate(self.names)}

    @functools.cached_property
    def hash(self) -> str:
        """16 hexadecimal digits that change with any name or with the order."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def name(self, call: int) -> str:
        """The name of an id, `<unknown>` for UNK."""
        return self.names[call] if 0 <= call < len(self.names) else UNK_NAME

    def encode(self, names: Iterable[str]) -> np.ndarray:
        """Names to uint16 ids; a name outside the list becomes UNK."""
        return np.fromiter((self.ids.get(name, self.unk) for name in names), np.uint16)

    def map_from(self, other: "Vocabulary") -> np.ndarray:
        """The table that turns ids of `other` into ids of this vocabulary, by name.

        Returns:
          uint16 `[other.size]`; names that this vocabulary lacks, and UNK, map to UNK. This is what makes a model
          portable between hosts (Kim et al., section 3.3).
        """
        return np.append(self.encode(other.names), np.uint16(self.unk)).astype(np.uint16)

    @classmethod
    def from_abi(cls, abi: str, last_number: int | None = None) -> "Vocabulary":
        """The whole system-call table of a Linux ABI, in the order of the numbers.

        Args:
          abi: a name of the `system-calls` package: x86_64, i386, arm64, ...
          last_number: keep numbers 0 to this one and no others, so that an id is the kernel's number. Numbers that the
            table leaves out get the name that strace prints for them (`syscall_0x11`).
        """
        table = abi_table(abi)
        if last_number is None:
            return cls(tuple(table[number] for number in sorted(table)), f"abi {abi}")
        names = tuple(table.get(number, f"syscall_{number:#x}") for number in range(last_number + 1))
        return cls(names, f"abi {abi}, numbers 0 to {last_number}")

    @classmethod
    def from_mapping_file(cls, path: str) -> "Vocabulary":
        """A list of names, one a line, line number = call number from zero (UNM's mapping files).

        A line may also begin with its number ("4 open"). A name that stands twice (SunOS has two entries for `fstat`)
        gets its number appended, so that the positions stay right.

        Raises:
          SyscallLMError: the file is missing, empty, not text, or its numbers do not count up from zero.
        """
        try:
            text = pathlib.Path(path).read_bytes().decode("utf-8")
        except OSError as error:
            raise SyscallLMError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise SyscallLMError(f"{path}: a mapping file is text, one call name a line, but this is binary") from error
        names: list[str] = []
        for number, line in enumerate(text.splitlines()):
            words = line.split()
            if len(words) == 2 and words[0].isdecimal():
                if words[0].lstrip("0") != str(number).lstrip("0"):
                    raise SyscallLMError(f"{path}, line {number + 1}: expected call number {number}, found {words[0]}")
                words = words[1:]
            if len(words) != 1 or len(words[0]) > 64 or number >= MAX_NAMES:
                raise SyscallLMError(f"{path}, line {number + 1}: expected one call name, found {line[:60]!r}")
            names.append(words[0])
        if not names:
            raise SyscallLMError(f"{path}: an empty mapping file; expected one call name a line")
        return cls(_distinct(names), f"mapping {pathlib.Path(path).name}")

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "Vocabulary":
        """The names that occur, sorted: for systems without a table (Windows)."""
        return cls(tuple(sorted(set(names))), "names seen")


class NamesSeen:
    """A vocabulary that grows while a capture is read, for formats without a table of their own.

    It stands in for a `Vocabulary` until all names are known: `ids` only grows, and `unk` is an id that no name gets.

    Attributes:
      abi: the ABI whose table the names are likely from.
      ids: name to id, in the order of appearance.
    """

    unk = 2**16 - 1

    def __init__(self, abi: str):
        self.abi = abi
        self.ids: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names so far, in the order of their ids."""
        return tuple(self.ids)

    def add(self, name: str) -> int:
        """The id of a name, a new one if need be; UNK once there are too many."""
        if name not in self.ids and len(self.ids) >= MAX_NAMES_SEEN:
            return self.unk
        return self.ids.setdefault(name, len(self.ids))


def settle(names: Iterable[str], abi: str) -> Vocabulary:
    """The vocabulary for a capture that holds these names.

    Returns:
      The ABI's whole table if it has most of the names, since a model wants calls that did not happen to occur too;
      else the names themselves, sorted, so that the same names make the same vocabulary in whatever order they came.
    """
    seen = list(dict.fromkeys(names))[:MAX_NAMES_SEEN]
    table = set(abi_table(abi).values())
    if 2 * sum(name in table for name in seen) > len(seen):
        return Vocabulary.from_abi(abi)
    return Vocabulary.from_names(seen)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    result: list[str] = []
    for number, name in enumerate(names):
        result.append(f"{name}#{number}" if name in seen else name)
        seen.add(name)
    return tuple(result)


@functools.cache
def abi_table(abi: str) -> Mapping[int, str]:
    """Call number to name.

    Raises:
      SyscallLMError: there is no such ABI.
    """
    tables = system_calls.syscalls()
    try:
        return {number: name for name, number in tables.load_arch_table(abi).items()}
    except system_calls.NoSuchArchitecture as error:
        known = ", ".join(sorted(tables.archs()))
        raise SyscallLMError(f"--abi={abi}: no such ABI; known are {known}") from error
