"""CSV with a header and columns of any name: --columns=call=NAME,pid=NAME,... says what they hold.

WHAT is call, calls (a whole trace in one row), trace (what tells traces apart, instead of a process), pid, tid,
command, host, time, label (attack or normal); WHAT= says that no column holds it, whatever the columns are called.
Calls are names, or numbers that --mapping or --numbering=abi explains.
"""

from collections.abc import Iterator

from syscall_lm.traces import columns, csv_rows
from syscall_lm.traces.columns import Columns, Rows
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.trace import Trace
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

DESCRIPTION = "CSV with a header; --columns says which column holds what"
EXPLAINED_BY = ("mapping", "numbering", "columns")

NOISE = frozenset()
GROUPINGS = columns.GROUPINGS
EVENT_TIMES = True  # where a column holds them

vocabulary = columns.vocabulary


def recognises(name: str, head: bytes) -> bool:
    """Whether the first line names the usual columns."""
    del name
    return columns.are_usual(csv_rows.header(head))


def read(source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters) -> Iterator[Trace]:
    """The traces of one table: each when its thread or process ends, the rest at the end of the file.

    Args:
      source: the table.
      vocabulary: what `vocabulary` gave.
      options: `columns`, `mapping`, `numbering`, `group`, `max_gap`; label, family, split and host are handed on.
      counters: is filled.

    Raises:
      SyscallLMError: the columns do not tell calls and traces.
    """
    names = csv_rows.header(source.head)
    rows = Rows(source, vocabulary, options, counters, Columns.choose(names, options, source.name))
    positions = {name: i for i, name in enumerate(names)}
    for block in csv_rows.blocks(source, counters, skip=1):
        for row in block:
            if len(row) < len(names):
                row = [*row, *[""] * (len(names) - len(row))]
            rows.add(lambda name, row=row: row[positions[name]])
        yield from rows.grouping.settle(len(block))
    yield from rows.grouping.finish()
