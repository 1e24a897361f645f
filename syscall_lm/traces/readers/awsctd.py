"""AWSCTD (Attack-caused Windows OS System Calls Traces Dataset): one trace a line, numbers and then the class.

  15,18,18,27,...,AdWare

Čeponis & Goranin, "Towards a robust method of dataset generation of malicious activity for anomaly-based HIDS training
and presentation of AWSCTD dataset", 2018. The numbers are the data set's own: without --mapping a call is "number 15".
The class becomes the family; every class but Clean is an attack. Known from descriptions only: no original was at hand.
"""

import re
from collections.abc import Iterator

from syscall_lm.traces import columns, numbers, recognition
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source, lines
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "AWSCTD: lines of call numbers separated by commas, the class last"

NOT_A_TRACE, BLANK = "not a trace", "empty line"
NOISE = frozenset({BLANK})

_LONGEST_LINE = 2**26
_LINE = re.compile(rb"\s*(\d{1,5}(?:,\s*\d{1,5})*),\s*([A-Za-z][\w .+-]{0,63})\s*")
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
        found = _LINE.fullmatch(line)
        if found is None:
            counters.skipped[NOT_A_TRACE if line.strip() else BLANK] += 1
            continue
        values = numbers.integers(found[1].replace(b",", b" "))[0]
        calls = ids.encode(values[numbers.drop_large(values, counters)])
        if len(calls) == 0:
            continue
        family = found[2].decode().strip()
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
