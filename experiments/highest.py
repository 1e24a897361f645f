"""The rows of a long table that people want to see first."""

import heapq
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa


class Highest:
    """Lines of text of the rows with the highest values in a column; of equal ones the first.

    Args:
      count: how many are kept.
      column: of numbers.
      line: makes one line of a row.
    """

    def __init__(self, count: int, column: str, line: Callable[[Mapping[str, Any]], str]):
        self._count, self._column, self._line = count, column, line
        self._kept: list[tuple[float, int, str]] = []
        self._seen = 0

    def add(self, rows: pa.Table) -> None:
        """Looks at some more rows."""
        places = heapq.nlargest(self._count, range(len(rows)), rows[self._column].to_numpy().__getitem__)
        found = zip(places, rows.take(pa.array(places, pa.int64())).to_pylist(), strict=True)
        self._kept += [(row[self._column], -self._seen - place, self._line(row)) for place, row in found]
        self._kept = heapq.nlargest(self._count, self._kept)
        self._seen += len(rows)

    @property
    def lines(self) -> list[str]:
        """The highest first."""
        return [text for _, _, text in self._kept]
