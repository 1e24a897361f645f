"""The rows of a long table that people want to see first."""

import heapq
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa


class Highest:
    """Lines of text of the rows with the highest values in a column; of equal ones the first.

    Args:
      count: how many are kept.
      column: of numbers.
      line: makes one line of a row.
      alike: what to say of rows with equal values, copies of one trace among them: they share a line, which tells how
        many more there are; empty: each has its own.
    """

    def __init__(self, count: int, column: str, line: Callable[[Mapping[str, Any]], str], alike: str = ""):
        self._count, self._column, self._line, self._alike = count, column, line, alike
        self._kept: list[tuple[float, int, str]] = []
        self._rows: dict[float, int] = {}  # with each of the highest values, where they share a line
        self._seen = 0

    def add(self, rows: pa.Table) -> None:
        """Looks at some more rows."""
        values, places = rows[self._column].to_numpy(), np.arange(len(rows))
        if self._alike:
            different, places, counts = np.unique(values, return_index=True, return_counts=True)
            for value, count in zip(different.tolist(), counts.tolist(), strict=True):
                self._rows[value] = self._rows.get(value, 0) + count
        places = heapq.nlargest(self._count, sorted(places.tolist()), values.__getitem__)
        found = zip(places, rows.take(pa.array(places, pa.int64())).to_pylist(), strict=True)
        new = [(row[self._column], -self._seen - place, self._line(row)) for place, row in found]
        if self._alike:
            shown = {value for value, _, _ in self._kept}
            new = [row for row in new if row[0] not in shown]
        self._kept = heapq.nlargest(self._count, self._kept + new)
        self._rows = {value: self._rows.get(value, 0) for value, _, _ in self._kept}
        self._seen += len(rows)

    @property
    def lines(self) -> list[str]:
        """The highest first."""
        return [text + self._others(self._rows[value] - 1) for value, _, text in self._kept]

    def _others(self, count: int) -> str:
        return f" (and {count:,} more {self._alike})" if self._alike and count > 0 else ""
