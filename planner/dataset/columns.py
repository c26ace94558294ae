"""Whole columns of jsonb texts as Arrow values: the usual form by its distinct objects, the rest by `values.py`.

In: texts of jsonb values as PostgreSQL prints them. Out: the items and edits of the contract, equal to those of
`values.py`, value by value (`meals.py` has the plans). Members that the contract does not know are passed over, where
they are flat.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from planner.contracts import schema
from planner.contracts.plan import WEEKDAYS
from planner.dataset import arrays, values
from planner.dataset.lists import Lists
from planner.dataset.pieces import Objects, in_place
from planner.dataset.queries import EDIT, EDIT_KINDS
from planner.dataset.values import Notes

_TEXT = r'"(?:[^"\\]|\\["\\bfnrt]|\\u00[01][0-9a-f])*"'
# Up to 15 digits each: exact as whole numbers, and rounded to the same double by every correct reader.
_NUMBER = r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?"
_WHOLE = r"-?\d{1,9}"
_SCALAR = rf"(?:{_TEXT}|-?\d+(?:\.\d+)?|true|false|null)"
_FLAT = rf"(?:{_SCALAR}|\[(?:{_SCALAR}(?:, {_SCALAR})*)?\])"


def _others(names: str) -> tuple[str, str]:
    """Patterns of any number of members whose names match: in front of a known one, and behind it."""
    other = rf'"(?:{names})": {_FLAT}'
    return rf"(?:{other}, )*", rf"(?:, {other})*"


# What stands between the braces of one object (`pieces.py`). A name that the contract knows must not
# pass for another one, so the others have other lengths or begin with other letters.
_ON, _O = _others(r'[^"\\]{0,3}|[^nu"\\][^"\\]{3}|[^"\\]{5,7}|[^q"\\][^"\\]{7}|[^"\\]{9,}')
_ITEM = rf'{_ON}"name": {_TEXT}{_O}(?:, "unit": (?:null|{_TEXT}))?{_O}(?:, "quantity": (?:null|{_NUMBER}))?{_O}'
_ON, _O = _others(r'[^"\\]{0,2}|[^d"\\][^"\\]{2}|[^"\\]{4,7}|[^s"\\][^"\\]{7}|[^r"\\][^"\\]{8}|[^"\\]{10,}')
MEAL_PATTERN = rf'{_ON}"day": "(?:{"|".join(WEEKDAYS)})"{_O}, "servings": [1-9]\d{{0,8}}{_O}, "recipe_id": {_TEXT}{_O}'
_, _O = _others(
    r'[^"\\]{0,1}|[^t"\\][^"\\]|[^d"\\][^"\\]{2}|[^f"\\][^"\\]{3}|[^"\\]{5,7}|[^s"\\][^"\\]{7}|'
    r'[^r"\\][^"\\]{8}|[^"\\]{10,}'
)
# An edit's payload, with a comma in front of each of its members, the first one too.
_EDIT = _O + "".join(
    rf'(?:, "{name}": (?:null|{_WHOLE if name == "servings" else _TEXT}))?{_O}'
    for name in ("to", "day", "from", "servings", "recipe_id")
)
_EDIT_MEMBERS = pa.struct(
    [*((name, pa.string()) for name in ("to", "day", "from", "recipe_id")), ("servings", pa.int32())]
)


def item_objects() -> Objects:
    """The items that a build reads."""
    return Objects(_items)


def item_column(texts: pa.StringArray, objects: Objects, notes: Notes) -> Lists:
    """The items of the texts in their order, empty where a text is no list; what did not fit is counted in `notes`."""
    found = objects.find(pc.fill_null(texts, ""))
    own = found.values.slice(found.num_kept)
    numbers = np.where(found.codes < found.num_kept, ~found.codes, found.codes - np.int32(found.num_kept))
    lists = pa.ListArray.from_arrays(pa.array(found.starts), pa.array(numbers))
    if found.usual.all():
        return Lists.of(lists, own)
    odd = texts.filter(pa.array(~found.usual)).to_pylist()
    rest = arrays.items([values.pantry_items(text, notes) for text in odd])
    numbers = np.arange(len(own), len(own) + len(rest.flatten()), dtype=np.int32)
    more = pa.ListArray.from_arrays(arrays.offsets_of(rest), pa.array(numbers))
    return Lists.of(in_place(found.usual, lists, more), pa.concat_arrays([own, rest.flatten()]))


def _items(insides: pa.StringArray) -> pa.StructArray:
    usual = pc.match_substring_regex(insides, f"^(?:{_ITEM})$")
    items = parsed(pc.if_else(usual, insides, None), schema.ITEM)
    mask = pc.invert(usual) if len(usual) else None
    return pa.StructArray.from_arrays(items.flatten(), fields=list(schema.ITEM), mask=mask)


def edit_column(kinds: pa.Int16Array, payloads: pa.StringArray, notes: Notes) -> pa.StructArray:
    """Edits of the contract from the events' payloads; what an edit must have and lacks is null and counted.

    Args:
        kinds: numbers of the edits' kinds, as `queries.py` gives them.
        payloads: as jsonb prints them.
        notes: where a member that is absent or malformed is counted.
    """
    coded = payloads.dictionary_encode(null_encoding="encode")
    inside = pc.binary_slice(coded.dictionary.cast(pa.binary()), 1, -1).cast(pa.string())
    members = pc.binary_join_element_wise(pa.scalar(""), inside, pa.scalar(", "))
    is_object = pc.starts_with(coded.dictionary, "{")
    matches = pc.fill_null(pc.and_(is_object, pc.match_substring_regex(members, f"^(?:{_EDIT})$")), False)
    usual = matches.to_numpy(zero_copy_only=False)
    given = parsed(inside.filter(matches), _EDIT_MEMBERS)
    if not usual.all():
        odd = coded.dictionary.filter(pc.invert(matches)).to_pylist()
        read = [values.edit_members(text) for text in odd]
        given = in_place(usual, given, pa.array(read, _EDIT_MEMBERS))
    given = given.take(coded.indices)
    names = pa.array(list(EDIT_KINDS.values()), pa.string()).take(pc.subtract(kinds, pa.scalar(EDIT, pa.int16())))
    columns = [names]
    for name in ("day", "from", "to", "recipe_id", "servings"):
        has = pc.is_in(names, pa.array([kind for kind, wanted in values.EDIT_MEMBERS.items() if name in wanted]))
        columns.append(pc.if_else(has, given.field(name), None))
        missing = pc.sum(pc.and_(has, given.field(name).is_null())).as_py()
        if missing:
            notes["edit values that are missing or malformed (null)"] += missing
    return pa.StructArray.from_arrays(columns, fields=list(schema.EDIT))


def text_column(texts: pa.StringArray) -> pa.StringArray:
    """The texts that jsonb texts stand for; each is one."""
    found = pc.binary_slice(texts.cast(pa.binary()), 1, -1).cast(pa.string())
    escaped = pc.match_substring(texts, "\\")
    if pc.any(escaped).as_py():
        read = [json.loads(text) for text in texts.filter(escaped).to_pylist()]
        found = pc.replace_with_mask(found, escaped, pa.array(read, pa.string()))
    return found


def column_of(column: pa.ChunkedArray) -> pa.Array:
    """The one array of a table's column, whatever its chunks."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def parsed(pieces: pa.StringArray, kind: pa.StructType) -> pa.StructArray:
    """The objects whose insides the pieces are; null gives an object of nulls."""
    if not len(pieces):
        return pa.array([], kind)
    lines = pc.binary_join_element_wise(
        pa.scalar('{"v": {'), pc.fill_null(pieces, ""), pa.scalar("}}\n"), pa.scalar("")
    )
    content = lines.buffers()[2]
    table = pajson.read_json(
        pa.BufferReader(content),
        read_options=pajson.ReadOptions(use_threads=False, block_size=content.size + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=pa.schema([("v", kind)]), unexpected_field_behavior="ignore", newlines_in_values=False
        ),
    )
    return column_of(table.column("v"))
