"""One trace a line: names or numbers of calls, separated by spaces, tabs or commas.

Numbers are explained by --mapping or --numbering=abi; without them a call is "number 15". Names that are no words
([A-Za-z_][A-Za-z0-9_.:$@!-]*) are skipped.
"""

import array
import re
from collections.abc import Iterator

import numpy as np

from syscall_lm.traces import call_ids, columns, numbers, recognition
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, lines
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary, abi_table

DESCRIPTION = "one trace a line: names or numbers of calls"
EXPLAINED_BY = ("mapping", "numbering")

NOT_A_CALL, BLANK = "not a call", "empty line"
NOISE = frozenset({BLANK})

_LONGEST_LINE = 2**26
_DIGITS = b"0123456789 \t"
_WORD = re.compile(r"\S+")
_HEAD_NUMBERS = re.compile(rb"\s*\d{1,5}(?:[ \t,]+\d{1,5}){2,}\s*")
_COMMON = frozenset(name.encode() for abi in ("x86_64", "i386", "arm64") for name in abi_table(abi).values())

vocabulary = columns.vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines, at least two, are three or more numbers each; or are names of Linux's calls."""
    del name
    head_lines = recognition.head_lines(head)
    if len(head_lines) > 1 and all(map(_HEAD_NUMBERS.fullmatch, head_lines)):
        return True
    return recognition.mostly(head, _is_names, share=0.9)


def _is_names(line: bytes) -> bool:
    words = line[:4096].replace(b",", b" ").split()
    return len(words) > 1 and sum(word in _COMMON for word in words) >= 0.8 * len(words)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file, in order.

    Args:
      source: the file.
      vocabulary: what `vocabulary` gave.
      options: `mapping` and `numbering` explain numbers; label, family, split and host are handed to the traces.
      counters: is filled; a word that is no call counts as one skipped.
    """
    by_number = numbers.NumberIds(vocabulary, counters, numbers.number_names(options))
    by_name: CallIds[str] = CallIds(vocabulary, counters)
    for number, line in enumerate(lines(source.stream, counters, _LONGEST_LINE), start=1):
        line = line.replace(b",", b" ")
        if not line.translate(None, _DIGITS):  # nothing else in it
            values, others = numbers.integers(line)
            if others:
                counters.skipped[numbers.NOT_A_NUMBER] += others
            calls = by_number.encode(values[numbers.drop_large(values, counters)])
        else:
            calls = _named(line, by_name, counters)
        if len(calls) == 0:
            if not line.strip():
                counters.skipped[BLANK] += 1
            continue
        counters.traces += 1
        counters.calls += len(calls)
        yield Trace(
            calls=calls,
            id=f"{source.name}:{number}",
            source=source.name,
            host=options.host,
            label=options.label,
            family=options.family,
            split=options.split,
        )


def _named(line: bytes, ids: CallIds[str], counters: Counters) -> np.ndarray:
    calls = array.array("H")
    for found in _WORD.finditer(line.decode("utf-8", "replace")):  # one by one: there may be millions
        if call_ids.is_name(word := found[0]):
            calls.append(ids[word])
        else:
            counters.skipped[NOT_A_CALL] += 1
    return np.array(calls, np.uint16)
