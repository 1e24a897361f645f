"""Rows of a CSV file from anywhere, in bounded memory."""

import csv
from collections.abc import Iterator

from syscall_lm.traces.readers import Counters
from syscall_lm.traces.sources import Source, lines

DAMAGED = "row with damaged quotes"

BLOCK = 2**12  # rows


def blocks(source: Source, counters: Counters, skip: int = 0) -> Iterator[list[list[str]]]:
    """The rows of a file, some at a time, without the first `skip`; one with a field too long to be one is counted."""
    rows = csv.reader(line.decode("utf-8", "replace") for line in lines(source.stream, counters))
    block: list[list[str]] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error:  # a quote that is opened and never closed
            counters.skipped[DAMAGED] += 1
            continue
        if skip:
            skip -= 1
        elif row:
            block.append(row)
        if len(block) >= BLOCK:
            yield block
            block = []
    yield block


def header(head: bytes) -> list[str]:
    """The names in the first line; none if that is no CSV."""
    line = head.split(b"\n", 1)[0][:4096].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    try:
        return [name.strip() for name in next(csv.reader([line.rstrip("\r")]), [])]
    except csv.Error:
        return []
