"""A week's plan and the edits that a user makes to it: typed, checked, and back to plain JSON values.

In: the `plan` and edit objects of the event payloads. Out: frozen `Plan` and `Edit`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from planner.contracts.errors import ContractError, shown

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DAY_INDEX = {day: index for index, day in enumerate(WEEKDAYS)}
EDIT_TYPES = ("swap_meal", "adjust_servings", "add_meal", "remove_meal")
MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Meal:
    """One dish on one day; `servings` is a whole number of at least 1."""

    day: str
    recipe_id: str
    servings: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Meals in the order given, at most one a day."""

    meals: tuple[Meal, ...]

    @classmethod
    def from_valid(cls, value: Mapping[str, Any]) -> Plan:
        """Type a plan object that `plan_problem` has found nothing wrong with."""
        return cls(tuple(Meal(m["day"], m["recipe_id"], int(m["servings"])) for m in value["meals"]))

    @property
    def recipe_ids(self) -> frozenset[str]:
        """The distinct dishes of the plan."""
        return frozenset(meal.recipe_id for meal in self.meals)

    def in_week_order(self) -> Plan:
        """The same meals, Monday first."""
        return Plan(tuple(sorted(self.meals, key=lambda meal: DAY_INDEX[meal.day])))

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The JSON form: `{"meals": [{"day", "recipe_id", "servings"}, …]}`."""
        return {"meals": [{"day": m.day, "recipe_id": m.recipe_id, "servings": m.servings} for m in self.meals]}


EMPTY_PLAN = Plan(())


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit operation; members that its type does not use are None."""

    type: str
    day: str
    from_recipe: str | None = None
    to_recipe: str | None = None
    recipe_id: str | None = None
    servings: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The dataset form, all members present: `{type, day, from, to, recipe_id, servings}`."""
        return {
            "type": self.type,
            "day": self.day,
            "from": self.from_recipe,
            "to": self.to_recipe,
            "recipe_id": self.recipe_id,
            "servings": self.servings,
        }


def plan_problem(value: object, known_recipes: Collection[str] | None = None) -> str | None:
    """Say why `value` is not a plan of the contract, naming the field, or None if it is one.

    JSON has one kind of number, so servings of 2.0 are 2.

    Args:
        value: a decoded JSON value.
        known_recipes: ids that a meal may name; None skips that check.
    """
    if not isinstance(value, Mapping):
        return "plan is not an object"
    meals = value.get("meals")
    if not isinstance(meals, list | tuple) or not meals:
        return "plan.meals is not a list with at least one meal"
    seen: set[str] = set()
    for index, meal in enumerate(meals):
        where = f"plan.meals[{index}]"
        if not isinstance(meal, Mapping):
            return f"{where} is not an object"
        day, recipe_id, servings = meal.get("day"), meal.get("recipe_id"), meal.get("servings")
        if not isinstance(day, str) or day not in DAY_INDEX:
            return f"{where}.day is {shown(day)}, not a lower-case English weekday"
        if day in seen:
            return f"{where}.day is {day!r} a second time"
        seen.add(day)
        if not _is_whole(servings) or not 1 <= servings <= MAX_INT32:
            return f"{where}.servings is {shown(servings)}, not a whole number of at least 1"
        if not isinstance(recipe_id, str):
            return f"{where}.recipe_id is {shown(recipe_id)}, not a text"
        if known_recipes is not None and recipe_id not in known_recipes:
            return f"{where}.recipe_id is {shown(recipe_id)}, which is not in the catalogue"
    return None


def _is_whole(value: object) -> TypeGuard[int | float]:
    return not isinstance(value, bool) and (isinstance(value, int) or isinstance(value, float) and value.is_integer())


def parse_plan(value: object, known_recipes: Collection[str] | None = None) -> Plan:
    """Type a decoded JSON plan.

    Raises:
        ContractError: the plan breaks the contract; the message names the field.
    """
    problem = plan_problem(value, known_recipes)
    if problem is not None:
        raise ContractError(f"Invalid plan: {problem}.", problem=problem)
    assert isinstance(value, Mapping)
    return Plan.from_valid(value)
