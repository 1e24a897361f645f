"""The rows that are shown first are those that sorting all of them would put first."""

import collections

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.experiments.highest import Highest


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=5), st.integers(0, 6))
def test_the_highest_of_all_tables_the_first_of_equals_first(tables, count):
    def line(row):
        return f"{row['value']} {row['number']}"

    highest, together = Highest(count, "value", line), Highest(count, "value", line, alike="alike")
    rows, number = [], 0
    for values in tables:
        numbers = range(number, number + len(values))
        table = pa.table({"value": pa.array(values, pa.int64()), "number": pa.array(numbers, pa.int64())})
        highest.add(table)
        together.add(table)
        rows += zip(values, numbers, strict=True)
        number += len(values)
    expected = sorted(rows, key=lambda row: -row[0])
    assert highest.lines == [f"{value} {place}" for value, place in expected[:count]]
    firsts = {value: place for value, place in reversed(expected)}
    copies = collections.Counter(value for value, _ in rows)
    assert together.lines == [
        f"{value} {firsts[value]}" + (f" (and {copies[value] - 1} more alike)" if copies[value] > 1 else "")
        for value in sorted(firsts, reverse=True)[:count]
    ]
