"""AWSCTD (Attack-caused Windows OS System Calls Traces Dataset): one trace a line, numbers and then the class.

  15,18,18,27,...,AdWare

Čeponis & Goranin, "Towards a robust method of dataset generation of malicious activity for anomaly-based HIDS training
and presentation of AWSCTD dataset", 2018. The numbers are the data set's own: without --mapping a call is "number 15".
The class becomes the family; every class but Clean is an attack. Known from descriptions only: no original was at hand.
"""

import re
from collections.abc import Iterator

import numpy as np

from syscall_lm.traces import columns, numbers, recognition
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, lines
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "AWSCTD: lines of call numbers separated by commas, the class last"
EXPLAINED_BY = ("mapping", "numbering")

NOT_A_TRACE, BLANK = "not a trace", "empty line"
NOISE = frozenset({BLANK})

_LONGEST_LINE = 2**26
_MAX_DIGITS = 5
_LINE = re.compile(rb"\s*(0*\d{1,5}(?:,\s*0*\d{1,5})*),\s*([A-Za-z][\w .+-]{0,63})\s*")
_CLASS = re.compile(rb"\s*([A-Za-z][\w .+-]{0,63})\s*")
_HEAD_LINE = re.compile(rb"\d{1,5}(?:,\d{1,5}){2,},[A-Za-z][\w .+-]{0,63}")
_HEAD_CUT = re.compile(rb"\d{1,5}(?:,\d{1,5}){1000,},?")  # one line may be longer than what is looked at
_CLEAN = frozenset({"clean", "benign", "normal", "goodware"})

vocabulary = columns.vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first lines are numbers and then a word, or begin like a very long such line."""
    del name
    return recognition.mostly(head, _HEAD_LINE.fullmatch) or _HEAD_CUT.fullmatch(head) is not None


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file, in order.

    Args:
      source: the file.
      vocabulary: what `vocabulary` gave.
      options: `mapping` explains the numbers; split and host are handed to the traces.
      counters: is filled.
    """
    ids = numbers.NumberIds(vocabulary, counters, numbers.number_names(options))
    for number, line in enumerate(lines(source.stream, counters, _LONGEST_LINE), start=1):
        found = _split(line)
        if found is None:
            counters.skipped[NOT_A_TRACE if line.strip() else BLANK] += 1
            continue
        values, family = found
        calls = ids.encode(values[numbers.drop_large(values, counters)])
        if len(calls) == 0:
            continue
        counters.traces += 1
        counters.calls += len(calls)
        yield Trace(
            calls=calls,
            id=f"{source.name}:{number}",
            source=source.name,
            host=options.host,
            label=NORMAL if family.lower() in _CLEAN else ATTACK,
            family=family,
            split=options.split,
        )


def _split(line: bytes) -> tuple[np.ndarray, str] | None:
    """The numbers, int64 `[n]`, and the class; nothing if the line is no trace."""
    head, _, last = line.rpartition(b",")
    commas = head.count(b",")
    # A plain line shows by what it is without its digits, much sooner than to an expression.
    if head.translate(None, numbers.DIGITS) == b"," * commas and (name := _CLASS.fullmatch(last)):
        values = numbers.integers(head.replace(b",", b" "))[0]
        if len(values) == commas + 1 and values.max() < 10**_MAX_DIGITS:
            return values, name[1].decode().strip()
    if found := _LINE.fullmatch(line):
        return numbers.integers(found[1].replace(b",", b" "))[0], found[2].decode().strip()
    return None
