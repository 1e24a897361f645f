"""JSON lines with fields of any name: --columns=call=NAME,pid=NAME,... says what they hold; see `csv`.

A line holds one call ({"pid": 7, "syscall": "openat"}), or a whole trace ({"id": "a", "calls": ["openat", "read"]}).
"""

from collections.abc import Iterator

from syscall_lm.traces import columns, json_lines
from syscall_lm.traces.columns import Columns, Rows
from syscall_lm.traces.json_lines import BLANK
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "JSON lines; --columns says which field holds what"
EXPLAINED_BY = ("mapping", "numbering", "columns")

NOISE = frozenset({BLANK})
GROUPINGS = columns.GROUPINGS
EVENT_TIMES = True  # where a column holds them

vocabulary = columns.vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the objects have the usual fields."""
    del name
    return json_lines.recognise(head, columns.are_usual)


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one file: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the file; its first object tells the fields.
      vocabulary: what `vocabulary` gave.
      options: `columns`, `mapping`, `numbering`, `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled.

    Raises:
      SyscallLMError: the fields do not tell calls and traces.
    """
    rows = None
    for block in json_lines.blocks(source, counters):
        for record in block:
            if rows is None:
                chosen = Columns.choose(list(record), options, source.name)
                rows = Rows(source, vocabulary, options, counters, chosen)
            rows.add(record.get)
        if rows is not None:
            yield from rows.grouping.settle(len(block))
    if rows is not None:
        yield from rows.grouping.finish()
