"""Lists of numbers stay the lists of structs that they stand for, however they are cut, joined and put in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from planner.dataset.lists import Lists

STRUCT = pa.struct([("name", pa.string())])
# Of all lists, beside the values that each has of its own: v0 and v1 here, v2 to v4 there.
KEPT = pa.array([{"name": "v0"}, {"name": "v1"}], STRUCT)
ROWS = st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=6)


def lists_of(rows: list[list[int]]) -> Lists:
    numbers = [[~n if n < len(KEPT) else n - len(KEPT) for n in row] for row in rows]
    own = pa.array([{"name": f"v{n}"} for n in range(len(KEPT), 5)], STRUCT)
    return Lists.of(pa.array(numbers, pa.list_(pa.int32())), own)


def names(lists: Lists) -> list[list[int]]:
    return [[int(element["name"][1:]) for element in row] for row in lists.whole(KEPT).to_pylist()]


@given(ROWS, ROWS)
def test_joined_lists_are_those_of_both(one: list[list[int]], other: list[list[int]]) -> None:
    assert names(Lists.concat([lists_of(one).distinct(), lists_of(other)])) == one + other


@given(ROWS, st.data())
def test_lists_are_taken_in_any_order_and_none_is_empty(rows: list[list[int]], data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(-1, len(rows) - 1)))
    assert names(lists_of(rows).take(np.array(at, np.int64))) == [rows[n] if n >= 0 else [] for n in at]


@given(ROWS, st.data())
def test_slices_come_back_from_their_columns(rows: list[list[int]], data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, len(rows)))) if rows else ())
    columns = []
    for low, high, part in zip([0, *ends], ends, lists_of(rows).slices(ends), strict=False):
        few = part.distinct()
        assert names(part) == names(few) == rows[low:high]
        assert len(few.values) == len({n for row in rows[low:high] for n in row if n >= len(KEPT)})
        columns.append(few.columns())
    if columns:
        found = Lists.of_columns(*(pa.concat_arrays(column) for column in zip(*columns, strict=True)))
        assert names(found) == rows[: ends[-1]]
