"""The rows that are shown first are those that sorting all of them would put first."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from syscall_lm.experiments.highest import Highest


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=5), st.integers(0, 6))
def test_the_highest_of_all_tables_the_first_of_equals_first(tables, count):
    highest, rows, number = Highest(count, "value", lambda row: f"{row['value']} {row['number']}"), [], 0
    for values in tables:
        numbers = range(number, number + len(values))
        highest.add(pa.table({"value": pa.array(values, pa.int64()), "number": pa.array(numbers, pa.int64())}))
        rows += zip(values, numbers, strict=True)
        number += len(values)
    expected = sorted(rows, key=lambda row: -row[0])[:count]
    assert highest.lines == [f"{value} {place}" for value, place in expected]
