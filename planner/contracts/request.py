"""A planning request: what was known at plan time, exactly the `input` of a dataset row.

In: one decoded JSON object. Out: a frozen `Request`, or an error that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.contracts.catalogue import Ingredient
from planner.contracts.errors import ContractError, shown
from planner.contracts.plan import MAX_INT32, Plan, plan_problem

WORKFLOW_TYPES = ("plan-first", "meal-first", "pantry-first")
MODES = ("autopilot", "exploratory", "constrained")


@dataclass(frozen=True, slots=True)
class Household:
    """Who eats. `size` in persons, None when unknown."""

    id: str
    size: int | None = None
    preferences: tuple[str, ...] = ()
    restrictions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constraints:
    """Hard limits of a plan: `budget` for the whole plan, `max_prep_time` in minutes a dish; None is no limit."""

    budget: float | None = None
    max_prep_time: int | None = None
    excluded_ingredients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One household's request for a week's plan, as known at plan time."""

    household: Household
    pantry: tuple[Ingredient, ...] = ()
    constraints: Constraints = Constraints()
    workflow_type: str = "plan-first"
    mode: str = "autopilot"
    previous_plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the `input` struct of a dataset row."""
        return {
            "household": {
                "id": self.household.id,
                "size": self.household.size,
                "preferences": list(self.household.preferences),
                "restrictions": list(self.household.restrictions),
            },
            "pantry": {"items": [{"name": i.name, "quantity": i.quantity, "unit": i.unit} for i in self.pantry]},
            "constraints": {
                "budget": self.constraints.budget,
                "max_prep_time": self.constraints.max_prep_time,
                "excluded_ingredients": list(self.constraints.excluded_ingredients),
            },
            "workflow_type": self.workflow_type,
            "mode": self.mode,
            "previous_plan": self.previous_plan.to_dict() if self.previous_plan else None,
        }


def parse_request(value: object) -> Request:
    """Check and type a request; absent or null members take the contract's defaults, unknown members are refused.

    Raises:
        ContractError: names the field (`constraints.budget`, `pantry.items[3].quantity`, …) and what it must be.
    """
    root = _object(value, "request", ("household", "pantry", "constraints", "workflow_type", "mode", "previous_plan"))
    if root.get("household") is None:
        raise _error("household", None, "an object with at least an id")
    household = _object(root["household"], "household", ("id", "size", "preferences", "restrictions"))
    given = {"pantry": {}, "constraints": {}, "workflow_type": "plan-first", "mode": "autopilot"}
    given |= {name: member for name, member in root.items() if member is not None}
    pantry = _object(given["pantry"], "pantry", ("items",))
    limits = _object(given["constraints"], "constraints", ("budget", "max_prep_time", "excluded_ingredients"))
    previous = root.get("previous_plan")
    if previous is not None:
        problem = plan_problem(previous)
        if problem is not None:
            raise ContractError(f"Invalid request: previous_{problem}.", field="previous_plan")
    return Request(
        household=Household(
            id=_text(household.get("id"), "household.id"),
            size=_whole(household.get("size"), "household.size", least=0),
            preferences=_texts(household.get("preferences"), "household.preferences"),
            restrictions=_texts(household.get("restrictions"), "household.restrictions"),
        ),
        pantry=_pantry(pantry.get("items")),
        constraints=Constraints(
            budget=_number(limits.get("budget"), "constraints.budget"),
            max_prep_time=_whole(limits.get("max_prep_time"), "constraints.max_prep_time", least=None),
            excluded_ingredients=_texts(limits.get("excluded_ingredients"), "constraints.excluded_ingredients"),
        ),
        workflow_type=_text(given["workflow_type"], "workflow_type"),
        mode=_text(given["mode"], "mode"),
        previous_plan=None if previous is None else Plan.from_valid(previous),
    )


def _error(field: str, value: object, wanted: str) -> ContractError:
    return ContractError(f"Invalid request: {field} is {shown(value)}, not {wanted}.", field=field)


def _object(value: object, field: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _error(field, value, "an object")
    for key in value:
        if key not in known:
            raise ContractError(
                f"Invalid request: {field} has an unknown member {str(key)[:60]!r}; known are {', '.join(known)}.",
                field=str(key),
            )
    return value


def _list(value: object, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise _error(field, value, "a list")
    return list(value)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _error(field, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character ("\ud800")
        raise _error(field, value, "a text of whole characters") from None
    return value


def _texts(value: object, field: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{field}[{index}]") for index, item in enumerate(_list(value, field)))


def _whole(value: object, field: str, *, least: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    low = -MAX_INT32 - 1 if least is None else least
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_INT32:
        raise _error(field, value, "a whole number" if least is None else f"a whole number of at least {least}")
    return value


def _number(value: object, field: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number that no double holds
        pass
    raise _error(field, value, "a finite number or null")


def _pantry(value: object) -> tuple[Ingredient, ...]:
    items = []
    for index, item in enumerate(_list(value, "pantry.items")):
        field = f"pantry.items[{index}]"
        entry = _object(item, field, ("name", "quantity", "unit"))
        unit = entry.get("unit")
        items.append(
            Ingredient(
                name=_text(entry.get("name"), f"{field}.name"),
                quantity=_number(entry.get("quantity"), f"{field}.quantity"),
                unit=None if unit is None else _text(unit, f"{field}.unit"),
            )
        )
    return tuple(items)
