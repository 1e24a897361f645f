"""ADFA-LD (Creech & Hu, WCNC 2013): one trace a file, i386 call numbers separated by spaces.

Read are the original zip, its folder, or single files. The folders tell the official protocol: training on
`Training_Data_Master`, testing on `Validation_Data_Master` (normal) and `Attack_Data_Master`. The calls were recorded
on a 32-bit Ubuntu 11.04, so the numbers are those of the kernel's i386 table; the list inside the zip is another
architecture's (`asm-generic/unistd.h`) and is not used.
"""

import re
from collections.abc import Iterator

import numpy as np

from syscall_lm.traces import grouping, numbers
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, line_blocks
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

DESCRIPTION = "ADFA-LD: the original zip, its folder, or files of i386 call numbers"

WRONG_TABLE = "ADFA-LD's own list of calls (the wrong table)"
NOISE = frozenset({WRONG_TABLE})

LAST_NUMBER = 340  # prlimit64, the last call of Ubuntu 11.04's i386 kernel
_LONGEST_LINE = 2**26  # a whole trace is one line

_FOLDERS = {
    "Training_Data_Master": (NORMAL, "train"),
    "Validation_Data_Master": (NORMAL, "test"),
    "Attack_Data_Master": (ATTACK, "test"),
}
_OWN_NAME = re.compile(r"(?:Training|Validation|Attack)_Data_Master|(?:^|[/!])U[TVA]D-[^/]*\.txt$")
_LIST = re.compile(r"ADFA-LD[+ _]Syscall[+ _]List\.txt$")
_FAMILY_NUMBER = re.compile(r"_\d+$")
_ONE_LINE = re.compile(rb"\s*(?:\d{1,4}[ \t]+){2,}\d{0,4}\s*", re.ASCII)


def recognises(name: str, head: bytes) -> bool:
    """By the data set's own folder or file names, or three or more small numbers in a single line."""
    own_name = _OWN_NAME.search(name) or _LIST.search(name)
    return bool((own_name and name.endswith(".txt")) or _ONE_LINE.fullmatch(head))


def vocabulary(options: Options) -> Vocabulary:
    """The kernel's i386 table, so that an id is the call's number."""
    del options
    return Vocabulary.from_abi("i386", last_number=LAST_NUMBER)


def read(source: Source, vocabulary: Vocabulary, options: Options, counters: Counters) -> Iterator[Trace]:
    """The one trace of a file; several of a file that holds more calls than fit into memory.

    Args:
      source: the file; its folder tells label, split and family.
      vocabulary: the i386 table.
      options: label, family and split for a file that lies in none of the data set's folders; host.
      counters: is filled; a word that is no number counts as one skipped.
    """
    if _LIST.search(source.name):
        counters.skipped[WRONG_TABLE] += 1
        return
    ids = np.arange(len(vocabulary.names), dtype=np.uint16)
    parts, held = [], 0
    for block in line_blocks(source.stream, counters, _LONGEST_LINE):
        found, others = numbers.integers(b" ".join(block))
        if others:
            counters.skipped[numbers.NOT_A_NUMBER] += others
        parts.append(numbers.encode(found[numbers.drop_large(found, counters)], ids, vocabulary, counters))
        held += len(parts[-1])
        if held > grouping.MAX_HELD:
            counters.skipped[grouping.LONG] += 1
            yield _trace(np.concatenate(parts), source, options, counters)
            parts, held = [], 0
    if held:
        yield _trace(np.concatenate(parts), source, options, counters)


def _trace(calls: np.ndarray, source: Source, options: Options, counters: Counters) -> Trace:
    counters.traces += 1
    counters.calls += len(calls)
    label, family, split = _protocol(source.name, options)
    return Trace(
        calls=calls,
        id=re.split("[/!]", source.name)[-1].removesuffix(".txt") or source.name,
        source=source.name,
        host=options.host,
        label=label,
        family=family,
        split=split,
    )


def _protocol(name: str, options: Options) -> tuple[str, str, str]:
    """Label, family and split of a file."""
    folders = re.split("[/!]", name)[:-1]
    for i, folder in enumerate(folders):
        if folder in _FOLDERS:
            label, split = _FOLDERS[folder]
            attack = folders[i + 1] if label == ATTACK and i + 1 < len(folders) else ""
            return label, _FAMILY_NUMBER.sub("", attack) or options.family, split
    return options.label, options.family, options.split
