"""Nested Arrow arrays from flat Python lists: plans and pantries. No dict per value, so wide rows stay cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts import schema
from planner.dataset.values import Item, Meals

Reduceat = Callable[[np.ndarray, np.ndarray], np.ndarray]


def plans(rows: Sequence[Meals | None]) -> pa.StructArray:
    """`struct<meals>` per row; None is a null struct."""
    meals = _list_of(schema.MEAL, [row or () for row in rows])
    mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.StructArray.from_arrays([meals], fields=list(schema.PLAN), mask=mask)


def items(rows: Sequence[Sequence[Item]]) -> pa.ListArray:
    """`list<item>` per row."""
    return _list_of(schema.ITEM, rows)


def offsets_of(lists: pa.ListArray) -> pa.Int32Array:
    """Where each list begins in `lists.flatten()`, and where the last one ends; null is as long as an empty list."""
    lengths = pc.fill_null(pc.cast(pc.list_value_length(lists), pa.int32()), 0)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])


def per_list(lists: pa.ListArray, numbers: np.ndarray, reduceat: Reduceat) -> np.ndarray:
    """What is made of the numbers of a list's elements, of which each has one; 0 where a list has none."""
    lengths = np.diff(offsets_of(lists).to_numpy())
    found = np.zeros(len(lists), numbers.dtype)
    if len(numbers):
        found[lengths > 0] = reduceat(numbers, np.concatenate([[0], np.cumsum(lengths[lengths > 0])[:-1]]))
    return found


def _list_of(element: pa.StructType, rows: Sequence[Sequence[tuple[Any, ...]]]) -> pa.ListArray:
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    flat = list(chain.from_iterable(rows))
    columns = zip(*flat, strict=True) if flat else [()] * element.num_fields
    members = [pa.array(column, field.type) for column, field in zip(columns, element, strict=True)]
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(members, fields=list(element))
    )
