"""Rows of a CSV file from anywhere, in bounded memory."""

import csv
from collections.abc import Iterator

from syscall_lm.traces.readers import Counters
from syscall_lm.traces.sources import Source, lines

DAMAGED = "row with damaged quotes"

BLOCK = 2**12  # rows
MAX_ROW = 2**20  # bytes
csv.field_size_limit(MAX_ROW)  # a field may hold the calls of a whole trace


def blocks(source: Source, counters: Counters, skip: int = 0) -> Iterator[list[list[str]]]:
    """The rows of a file, some at a time, without the first `skip`; one with a field too long to be one is counted."""
    text = _Text(lines(source.stream, counters))
    rows = csv.reader(text)
    block: list[list[str]] = []
    held = 0
    while True:
        try:
            text.taken = 0
            row = next(rows)
        except StopIteration:
            break
        except csv.Error:  # a quote that is opened and never closed, a row that never ends
            counters.skipped[DAMAGED] += 1
            continue
        if skip:
            skip -= 1
        elif row:
            block.append(row)
        held += text.taken
        if len(block) >= BLOCK or held >= MAX_ROW:
            yield block
            block, held = [], 0
    yield block


class _Text:
    """Lines as text, and an error where a row takes too many: a few letters of a row become an object of its own.

    Attributes:
      taken: bytes of the row that is being read.
    """

    def __init__(self, found: Iterator[bytes]):
        self._found = found
        self.taken = 0

    def __iter__(self) -> "_Text":
        return self

    def __next__(self) -> str:
        if self.taken > MAX_ROW:
            raise csv.Error("a row that does not end")
        line = next(self._found)
        self.taken += len(line) + 1
        return line.decode("utf-8", "replace")


def header(head: bytes) -> list[str]:
    """The names in the first line; none if that is no CSV."""
    line = head.split(b"\n", 1)[0][:4096].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    try:
        return [name.strip() for name in next(csv.reader([line.rstrip("\r")]), [])]
    except csv.Error:
        return []
