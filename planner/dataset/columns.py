"""Whole columns of jsonb texts as Arrow values: the usual form by its distinct objects, the rest by `values.py`.

In: texts of jsonb values as PostgreSQL prints them. Out: the plans and pantries of the contract, equal to those of
`values.py`, value by value. PostgreSQL prints jsonb in one way (members by length, then name; one space behind `:` and
`,`; no exponents), so a pattern tells the usual form for certain. The same meals and items come again and again: a
text is cut between its objects, and each distinct one is read once (100,000 pantries of 20 items: 0.4 CPU s for 1.8).
Members that the contract does not know are passed over, where they are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from planner.contracts import schema
from planner.contracts.plan import DAY_INDEX, WEEKDAYS
from planner.dataset import arrays, values
from planner.dataset.joins import EDIT_KINDS
from planner.dataset.values import Notes

_TEXT = r'"(?:[^"\\]|\\["\\bfnrt]|\\u00[01][0-9a-f])*"'
# Up to 15 digits each: exact as whole numbers, and rounded to the same double by every correct reader.
_NUMBER = r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?"
_SCALAR = rf"(?:{_TEXT}|-?\d+(?:\.\d+)?|true|false|null)"
_FLAT = rf"(?:{_SCALAR}|\[(?:{_SCALAR}(?:, {_SCALAR})*)?\])"


def _others(names: str) -> tuple[str, str]:
    """Patterns of any number of members whose names match: in front of a known one, and behind it."""
    other = rf'"(?:{names})": {_FLAT}'
    return rf"(?:{other}, )*", rf"(?:, {other})*"


# What stands between the braces of one object; `_BETWEEN` stands between two. A name that the contract knows must not
# pass for another one, so the others have other lengths or begin with other letters.
_ON, _O = _others(r'[^"\\]{0,3}|[^nu"\\][^"\\]{3}|[^"\\]{5,7}|[^q"\\][^"\\]{7}|[^"\\]{9,}')
_ITEM = rf'{_ON}"name": {_TEXT}{_O}(?:, "unit": (?:null|{_TEXT}))?{_O}(?:, "quantity": (?:null|{_NUMBER}))?{_O}'
_ON, _O = _others(r'[^"\\]{0,2}|[^d"\\][^"\\]{2}|[^"\\]{4,7}|[^s"\\][^"\\]{7}|[^r"\\][^"\\]{8}|[^"\\]{10,}')
_MEAL = rf'{_ON}"day": "(?:{"|".join(WEEKDAYS)})"{_O}, "servings": [1-9]\d{{0,8}}{_O}, "recipe_id": {_TEXT}{_O}'
_BETWEEN = "}, {"


@dataclass(frozen=True)
class Lists:
    """Lists of structs in which each distinct struct stands once: `codes` say which of `values`; null is no list."""

    codes: pa.ListArray
    values: pa.StructArray

    def take(self, places: pa.Array) -> pa.ListArray:
        """The lists at the places, with the structs themselves."""
        codes = self.codes.take(places)
        mask = codes.is_null() if codes.null_count else None
        flat = self.values.take(codes.flatten())
        return pa.ListArray.from_arrays(arrays.offsets_of(codes), flat, mask=mask)

    def any_of(self, flags: np.ndarray) -> np.ndarray:
        """Per list whether one of its structs is flagged; `flags` has a flag for each of `values`."""
        return self.per_list(flags, np.logical_or.reduceat)

    def per_list(self, numbers: np.ndarray, reduceat: arrays.Reduceat) -> np.ndarray:
        """What is made of the numbers of a list's structs, of which each of `values` has one; 0 without structs."""
        return arrays.per_list(self.codes, numbers[self.codes.flatten().to_numpy()], reduceat)

    def without(self, mask: np.ndarray) -> Lists:
        """The same with null where the mask is true."""
        if not mask.any():
            return self
        return Lists(pc.if_else(pa.array(mask), None, self.codes), self.values)


def plan_column(texts: pa.StringArray) -> Lists:
    """The meals of the plans in their order; null where a plan breaks the contract.

    Args:
        texts: the plans' members `meals` as jsonb prints them; null where there is none. Recipes may be any.
    """

    def other(chosen: Sequence[str | None]) -> pa.ListArray:
        plans = arrays.plans([values.plan_meals(text) for text in chosen])
        return pc.if_else(plans.is_valid(), plans.field("meals"), None)

    found = _by_form(texts, _MEAL, schema.MEAL, other)
    return found.without(_day_twice(found))


def unknown_recipes(meals: Lists, known: pa.StringArray) -> np.ndarray:
    """Per plan whether it names a recipe that is not among the known."""
    return meals.any_of(~pc.is_in(meals.values.field("recipe_id"), known).to_numpy(zero_copy_only=False))


def plan_structs(meals: pa.ListArray) -> pa.StructArray:
    """Plans of the contract from lists of meals, null where a list is."""
    return pa.StructArray.from_arrays([meals], fields=list(schema.PLAN), mask=meals.is_null())


def item_column(texts: pa.StringArray, notes: Notes) -> Lists:
    """The items of the texts in their order, empty where a text is no list; what did not fit is counted in `notes`."""

    def other(chosen: Sequence[str | None]) -> pa.ListArray:
        return arrays.items([values.pantry_items(text, notes) for text in chosen])

    return _by_form(texts, _ITEM, schema.ITEM, other)


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
    kind: pa.StructType,
    other: Callable[[Sequence[str | None]], pa.ListArray],
) -> Lists:
    """Read the texts of the usual form by their distinct objects, the others one by one, and put them back in order.

    A text of the usual form is a list of objects that each match the pattern. What stands between two objects cannot
    stand within a text of one: the first object matches up to it, so it is outside of texts, and so on behind it.
    """
    is_usual = pc.fill_null(pc.and_(pc.starts_with(texts, "[{"), pc.ends_with(texts, "}]")), False)
    bodies = pc.binary_slice(texts.filter(is_usual).cast(pa.binary()), 2, -2)
    pieces = pc.split_pattern(bodies.cast(pa.string()), _BETWEEN)
    coded = pieces.flatten().dictionary_encode()
    codes = pa.ListArray.from_arrays(arrays.offsets_of(pieces), coded.indices)
    usual = is_usual.to_numpy(zero_copy_only=False).copy()
    matches = pc.match_substring_regex(coded.dictionary, f"^(?:{pattern})$").to_numpy(zero_copy_only=False)
    found = Lists(codes, _parsed(pc.if_else(pa.array(matches), coded.dictionary, None), kind))
    if not matches.all():
        odd = found.any_of(~matches)
        codes, usual[usual] = codes.filter(pa.array(~odd)), ~odd
    if usual.all():
        return found
    rest = other(texts.filter(pa.array(~usual)).to_pylist())
    more = pa.ListArray.from_arrays(
        arrays.offsets_of(rest),
        pa.array(np.arange(len(found.values), len(found.values) + len(rest.flatten())), pa.int32()),
        mask=rest.is_null() if rest.null_count else None,
    )
    place = np.empty(len(texts), np.int64)
    place[np.concatenate([np.flatnonzero(usual), np.flatnonzero(~usual)])] = np.arange(len(texts))
    return Lists(
        pa.concat_arrays([codes, more]).take(pa.array(place)), pa.concat_arrays([found.values, rest.flatten()])
    )


def _parsed(pieces: pa.StringArray, kind: pa.StructType) -> pa.StructArray:
    """The objects whose insides the pieces are; null gives an object of nulls."""
    if not len(pieces):
        return pa.array([], kind)
    lines = pc.binary_join_element_wise(
        pa.scalar('{"v": {'), pc.fill_null(pieces, ""), pa.scalar("}}\n"), pa.scalar("")
    )
    content = _bytes_of(lines)
    table = pajson.read_json(
        pa.BufferReader(content),
        read_options=pajson.ReadOptions(use_threads=False, block_size=content.size + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=pa.schema([("v", kind)]), unexpected_field_behavior="ignore", newlines_in_values=False
        ),
    )
    return column_of(table.column("v"))


def _bytes_of(texts: pa.StringArray) -> pa.Buffer:
    """The texts one behind the other: what the array's own buffer holds."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return texts.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _day_twice(meals: Lists) -> np.ndarray:
    """Per plan whether it names a day twice; where there is no plan, it does not."""
    order = pc.index_in(meals.values.field("day"), pa.array(list(DAY_INDEX)))
    days = np.left_shift(1, pc.fill_null(order, 0).to_numpy().astype(np.int64))
    twice: np.ndarray = meals.per_list(days, np.add.reduceat) != meals.per_list(days, np.bitwise_or.reduceat)
    return twice
