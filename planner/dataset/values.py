"""JSON values of the tables as the contract's types: plans, edits, pantry items; what does not fit is counted.

In: the text of a jsonb value. Out: plain tuples, and a `Notes` counter that names everything that was left out.
Pure functions: nothing here touches the database.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from planner.contracts.plan import MAX_INT32, plan_problem

Meals = tuple[tuple[str, str, int], ...]
Item = tuple[str, float | None, str | None]
Notes = Counter[str]

_UNREADABLE = object()
# Which payload members each edit has, in the dataset's order: day, from, to, recipe_id, servings.
EDIT_MEMBERS = {
    "swap_meal": ("day", "from", "to"),
    "adjust_servings": ("day", "servings"),
    "add_meal": ("day", "recipe_id", "servings"),
    "remove_meal": ("day",),
}


def decode(text: str | None) -> Any:
    """The value of a jsonb text; None for SQL's null; an object that is no JSON type where it nests too deep."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except RecursionError:
        return _UNREADABLE
    except ValueError:  # an integer of more than 4,300 digits
        return json.loads(text, parse_int=_integer)


def plan_meals(text: str | None, known_recipes: Collection[str] | None = None) -> Meals | None:
    """The meals of a logged plan in the order given, or None where it breaks the contract; `text` is its `meals`."""
    value = decode(text)
    if plan_problem({"meals": value}, known_recipes) is not None:
        return None
    return tuple((meal["day"], meal["recipe_id"], int(meal["servings"])) for meal in value)


def edit_members(text: str | None) -> dict[str, Any]:
    """What an edit's payload says: texts, and servings as a whole number that an int32 can hold; None for the rest."""
    value = decode(text)
    given = value if isinstance(value, dict) else {}
    members: dict[str, Any] = {name: given.get(name) for name in ("day", "from", "to", "recipe_id")}
    members = {name: member if isinstance(member, str) else None for name, member in members.items()}
    servings = _whole(given.get("servings"))
    if isinstance(servings, bool) or not isinstance(servings, int) or abs(servings) > MAX_INT32:
        servings = None
    return {**members, "servings": servings}


def pantry_items(text: str | None, notes: Notes) -> tuple[Item, ...]:
    """The items of a snapshot, as recorded; what is no item is left out and counted."""
    return _items(text, notes, "pantry")


def recipe_ingredients(text: str | None, notes: Notes) -> tuple[Item, ...]:
    """The ingredients of a recipe, read like pantry items."""
    return _items(text, notes, "recipe")


def context_text(text: str | None, notes: Notes) -> str | None:
    """A text of an event's context; null where it is absent or not a text."""
    value = _decode_short(text) if text is not None and len(text) < 200 else decode(text)
    if value is not None and not isinstance(value, str):
        notes["context values that are no text (taken as absent)"] += 1
        return None
    return value


def texts(values: Sequence[Any] | None, notes: Notes) -> list[str]:
    """A `text[]` without its nulls; null gives `[]`, more dimensions are flattened."""
    if not values:
        return []
    if all(type(value) is str for value in values):
        return list(values)
    found: list[str] = []
    for value in values:
        if isinstance(value, list):
            found += texts(value, notes)
        elif value is None:
            notes["nulls inside text arrays (left out)"] += 1
        else:
            found.append(value)
    return found


def json_texts(text: str | None, notes: Notes) -> list[str]:
    """A `text[]` that was sent as JSON; null gives `[]`."""
    return texts(decode(text), notes)


def amount(text: str | None, what: str, notes: Notes) -> float | None:
    """A `numeric` as the nearest double; None for null, and counted for NaN and what no double can hold."""
    if text is None:
        return None
    value = float(text)
    if not math.isfinite(value):
        notes[f"{what} that no finite number can hold (null)"] += 1
        return None
    return value


def int32(value: int | None, what: str, notes: Notes, *, least: int = -MAX_INT32 - 1) -> int | None:
    """A whole number from `least` to the largest int32, or None and counted."""
    if value is None or least <= value <= MAX_INT32:
        return value
    notes[f"{what} out of range (null)"] += 1
    return None


@lru_cache(maxsize=4096)
def _decode_short(text: str) -> Any:
    """Contexts are the same few texts over and over."""
    return decode(text)


def _items(text: str | None, notes: Notes, owner: str) -> tuple[Item, ...]:
    value = decode(text)
    if not isinstance(value, list):
        if value is not None:
            notes[f"{owner} lists that are no list (empty)"] += 1
        return ()
    found = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            notes[f"{owner} items without a name (left out)"] += 1
            continue
        quantity, unit = _quantity(item.get("quantity")), item.get("unit")
        if quantity is None and item.get("quantity") is not None:
            notes[f"{owner} quantities that are no finite number (null)"] += 1
        if unit is not None and not isinstance(unit, str):
            notes[f"{owner} units that are no text (null)"] += 1
            unit = None
        found.append((item["name"], quantity, unit))
    return tuple(found)


def _quantity(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else math.copysign(math.inf, -1 if digits.startswith("-") else 1)
