"""From what a capture calls a call (a name, a number) to its id."""

import re
from typing import Generic, TypeGuard, TypeVar

from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary, abi_table

Word = TypeVar("Word", str, bytes, int)

LONGEST_NAME = 64
_NAME = re.compile(r"[A-Za-z_][\w.:$@!-]{0,63}", re.ASCII)

# What tools call some calls by another name than the kernel's tables do.
_OTHER_NAMES = {
    "pread": ("pread64",),
    "pwrite": ("pwrite64",),
    "umount": ("umount2",),
    "newselect": ("_newselect", "select"),
    "stat": ("newstat", "newfstatat"),
    "fstat": ("newfstat",),
    "sendfile": ("sendfile64",),
    "fadvise64": ("fadvise64_64",),
    "arch_prctl": (),
}


class CallIds(dict[Word, int], Generic[Word]):
    """A dictionary of names (str or bytes) or numbers (int) to ids that answers for every key.

    A known one is found at the speed of a dictionary. Others become UNK and are counted, or make a growing vocabulary
    grow.

    Args:
      vocabulary: gives the ids.
      counters: its `unknown` grows.
      numbers: for keys that are numbers: what they mean. Those that it lacks are shown as "number 7".
    """

    def __init__(self, vocabulary: Vocabulary | NamesSeen, counters: Counters, numbers: "dict[int, str] | None" = None):
        super().__init__()
        self._vocabulary, self._counters, self._numbers = vocabulary, counters, numbers

    def __missing__(self, word: Word) -> int:
        return self.count(word, 1)

    def count(self, word: Word, times: int) -> int:
        """The id of a word that stands for so many calls; an unknown one counts as often."""
        vocabulary = self._vocabulary
        name = self._name(word)
        ids = vocabulary.ids
        call = next((ids[n] for n in (name, *_OTHER_NAMES.get(name, ())) if n in ids), vocabulary.unk)
        if call == vocabulary.unk and isinstance(vocabulary, NamesSeen) and len(name) <= LONGEST_NAME:
            call = vocabulary.add(name)
        if call == vocabulary.unk:
            self._counters.count_unknown(name[:LONGEST_NAME], times)
        else:
            self[word] = call
        return call

    def _name(self, word: Word) -> str:
        if isinstance(word, bytes):
            return word.decode("utf-8", "replace")
        if isinstance(word, int):
            return (self._numbers or {}).get(word, f"number {word}")
        return word


def is_name(word: object) -> TypeGuard[str]:
    """Whether a word can be the name of a call."""
    return isinstance(word, str) and _NAME.fullmatch(word) is not None


def by_number(vocabulary: Vocabulary | NamesSeen, counters: Counters, abi: str) -> CallIds[int]:
    """Ids of an ABI's call numbers."""
    return CallIds(vocabulary, counters, dict(abi_table(abi)))


def abi_vocabulary(options: Options) -> Vocabulary:
    """The whole table of the ABI: the vocabulary of every format that holds Linux's names."""
    return Vocabulary.from_abi(options.abi)
