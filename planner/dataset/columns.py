"""Whole columns of jsonb texts as Arrow values: the usual form in one pass, everything else by `values.py`.

In: texts of jsonb values as PostgreSQL prints them. Out: the plans and pantries of the contract, equal to those of
`values.py`, value by value. PostgreSQL prints jsonb in one way (members by length, then name; one space behind `:` and
`,`; no exponents), so a pattern tells the usual form for certain. A build of 30,000 plans took a third less CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from planner.contracts import schema
from planner.contracts.plan import DAY_INDEX, WEEKDAYS
from planner.dataset import arrays, values
from planner.dataset.joins import EDIT_KINDS
from planner.dataset.values import Notes

_TEXT = r'"[^"\\]*"'
# Up to 15 digits each: exact as whole numbers, and rounded to the same double by every correct reader.
_NUMBER = r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?"
_ITEM = rf'\{{"name": {_TEXT}(?:, "unit": (?:null|{_TEXT}))?(?:, "quantity": (?:null|{_NUMBER}))?\}}'
_MEAL = rf'\{{"day": "(?:{"|".join(WEEKDAYS)})", "servings": [1-9]\d{{0,8}}, "recipe_id": {_TEXT}\}}'
_USUAL_ITEMS = rf"^\[(?:{_ITEM}(?:, {_ITEM})*)?\]$"
_USUAL_PLAN = rf'^\{{"meals": \[{_MEAL}(?:, {_MEAL})*\]\}}$'


def plan_column(texts: pa.StringArray, known: pa.StringArray | None = None) -> pa.StructArray:
    """The plans of the texts in their order; null where a plan breaks the contract.

    Args:
        texts: plans as jsonb prints them; null is no plan.
        known: recipe ids that a meal may name; None for any.
    """
    ids = None if known is None else set(known.to_pylist())

    def usual(chosen: pa.StringArray) -> pa.StructArray:
        plans = _parsed(chosen, schema.PLAN)
        meals = plans.field("meals")
        return pa.StructArray.from_arrays([meals], fields=list(schema.PLAN), mask=pa.array(_broken(meals, known)))

    def other(chosen: Sequence[str | None]) -> pa.StructArray:
        return arrays.plans([values.plan_meals(text, ids) for text in chosen])

    return _by_form(texts, _USUAL_PLAN, usual, other)


def item_column(texts: pa.StringArray, notes: Notes) -> pa.ListArray:
    """The items of the texts in their order, empty where a text is no list; what did not fit is counted in `notes`."""

    def usual(chosen: pa.StringArray) -> pa.ListArray:
        return _parsed(chosen, pa.list_(schema.ITEM))

    def other(chosen: Sequence[str | None]) -> pa.ListArray:
        return arrays.items([values.pantry_items(text, notes) for text in chosen])

    return _by_form(texts, _USUAL_ITEMS, usual, other)


def edit_column(
    events: pa.StringArray,
    day: pa.StringArray,
    before: pa.StringArray,
    after: pa.StringArray,
    recipe_id: pa.StringArray,
    servings: pa.StringArray,
    *,
    notes: Notes,
) -> pa.StructArray:
    """Edits of the contract from the events' members; what an edit must have and lacks is null and counted.

    Args:
        events: their types.
        day: the member where it is a text, else null; so are `before` (from), `after` (to) and `recipe_id`.
        servings: the member as jsonb prints it.
        notes: where a member that is absent or malformed is counted.
    """
    whole = pc.match_substring_regex(servings, r"^-?\d{1,9}$")
    numbers = pc.if_else(whole, servings, None).cast(pa.int32())
    odd = pc.and_(pc.invert(pc.fill_null(whole, True)), servings.is_valid())
    if pc.any(odd).as_py():
        read = [values.edit_servings(text) for text in servings.filter(odd).to_pylist()]
        numbers = pc.replace_with_mask(numbers, odd, pa.array(read, pa.int32()))
    given = {"day": day, "from": before, "to": after, "recipe_id": recipe_id, "servings": numbers}
    types = pa.array(list(EDIT_KINDS), pa.string())
    kinds = pa.array(list(EDIT_KINDS.values()), pa.string()).take(pc.index_in(events, types))
    members = [kinds]
    for name in ("day", "from", "to", "recipe_id", "servings"):
        has = pc.is_in(kinds, pa.array([kind for kind, names in values.EDIT_MEMBERS.items() if name in names]))
        members.append(pc.if_else(has, given[name], None))
        missing = pc.sum(pc.and_(has, given[name].is_null())).as_py()
        if missing:
            notes["edit values that are missing or malformed (null)"] += missing
    return pa.StructArray.from_arrays(members, fields=list(schema.EDIT))


def column_of(column: pa.ChunkedArray) -> pa.Array:
    """The one array of a table's column, whatever its chunks."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _by_form(
    texts: pa.StringArray,
    pattern: str,
    usual: Callable[[pa.StringArray], pa.Array],
    other: Callable[[Sequence[str | None]], pa.Array],
) -> pa.Array:
    """Read the texts of the usual form together, the others one by one, and put them back in order."""
    is_usual = pc.fill_null(pc.match_substring_regex(texts, pattern), False).to_numpy(zero_copy_only=False)
    first, second = np.flatnonzero(is_usual), np.flatnonzero(~is_usual)
    if not len(second):
        return usual(texts)
    parts = [usual(texts.take(pa.array(first)))] if len(first) else []
    parts.append(other(texts.take(pa.array(second)).to_pylist()))
    place = np.empty(len(texts), np.int64)
    place[np.concatenate([first, second])] = np.arange(len(texts))
    return pa.concat_arrays(parts).take(pa.array(place))


def _parsed(texts: pa.StringArray, kind: pa.DataType) -> pa.Array:
    if not len(texts):
        return pa.array([], kind)
    lines = pc.binary_join_element_wise(pa.scalar('{"v": '), texts, pa.scalar("}\n"), pa.scalar(""))
    content = _bytes_of(lines)
    table = pajson.read_json(
        pa.BufferReader(content),
        read_options=pajson.ReadOptions(use_threads=False, block_size=content.size + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=pa.schema([("v", kind)]), unexpected_field_behavior="error", newlines_in_values=False
        ),
    )
    return column_of(table.column("v"))


def _bytes_of(texts: pa.StringArray) -> pa.Buffer:
    """The texts one behind the other: what the array's own buffer holds."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return texts.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _broken(meals: pa.ListArray, known: pa.StringArray | None) -> Any:
    """Per plan of the usual form, whether it names a day twice or an unknown recipe; no plan is empty there."""
    flat, starts = meals.flatten(), meals.offsets.to_numpy()[:-1]
    if not len(meals):
        return np.zeros(0, bool)
    order = pc.index_in(flat.field("day"), pa.array(list(DAY_INDEX))).to_numpy()
    days = np.left_shift(1, order.astype(np.int64))
    broken = np.add.reduceat(days, starts) != np.bitwise_or.reduceat(days, starts)
    if known is not None:
        unknown = ~pc.is_in(flat.field("recipe_id"), known).to_numpy(zero_copy_only=False)
        broken |= np.logical_or.reduceat(unknown, starts)
    return broken
