"""The built-in baseline: the dishes most often accepted in the training split, under the request's constraints.

In: the examples of the training split and the catalogue. Out: a `PopularPlanner`, a few numbers without a model, that
plans like any other and is kept as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any

import numpy as np

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError
from planner.contracts.example import Example
from planner.contracts.plan import DAY_INDEX, EMPTY_PLAN, WEEKDAYS, Meal, Plan
from planner.contracts.prompt import default_servings
from planner.contracts.request import Request
from planner.decoding.constraints import Allowed, ConstraintIndex
from planner.decoding.result import PlanResult


class PopularPlanner:
    """Proposes the best ranked allowed dishes that fit the budget, none twice, for the whole household.

    Args:
        ranking: recipe id and how often it was accepted, best first; recipes that are not in it come last, by id.
        days: the weekdays that are planned, one dish each.
        catalogue: the dishes that may be proposed.
    """

    kind = "popular"

    def __init__(self, ranking: Sequence[tuple[str, int]], days: Sequence[str], catalogue: Catalogue) -> None:
        self.ranking = tuple((str(recipe_id), int(count)) for recipe_id, count in ranking)
        self.days = tuple(sorted(days, key=DAY_INDEX.__getitem__))
        self.catalogue = catalogue
        self._constraints = ConstraintIndex(catalogue)
        row_of = {recipe.id: row for row, recipe in enumerate(catalogue.recipes)}
        ranked = [row_of[recipe_id] for recipe_id, _ in self.ranking if recipe_id in row_of]
        self._order = np.array([*ranked, *sorted(set(row_of.values()).difference(ranked))], dtype=np.int64)

    def plan(self, requests: Sequence[Request]) -> list[PlanResult]:
        """Plan each request; the same request always gets the same plan."""
        return [self._plan(request) for request in requests]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the catalogue."""
        return {"ranking": [list(entry) for entry in self.ranking], "days": list(self.days)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], catalogue: Catalogue) -> PopularPlanner:
        """Read the JSON form back.

        Raises:
            ModelError: it is not what `to_dict` wrote.
        """
        try:
            return cls([(entry[0], entry[1]) for entry in value["ranking"]], value["days"], catalogue)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(
                "popular.json of the model is not a ranking with days. Register the model again."
            ) from error

    def _plan(self, request: Request) -> PlanResult:
        allowed = self._constraints.allowed(request)
        reason = self._constraints.infeasible_reason(allowed)
        if reason is not None:
            return PlanResult(EMPTY_PLAN, False, reason)
        servings, left = default_servings(request), allowed.budget
        chosen: list[tuple[int, int]] = []
        costs = np.maximum(self._constraints.cost_cents, 0)
        for row in self._order[allowed.mask[self._order]]:
            if len(chosen) == len(self.days):
                break
            price = int(costs[row]) * servings
            if left is None or price <= left:
                chosen.append((int(row), servings))
                left = None if left is None else left - price
        if not chosen:
            chosen = [self._smallest(allowed)]
        meals = (
            Meal(day, self.catalogue.recipes[row].id, count)
            for day, (row, count) in zip(self.days, chosen, strict=False)
        )
        return PlanResult(Plan(tuple(meals)), True, None)

    def _smallest(self, allowed: Allowed) -> tuple[int, int]:
        """The cheapest dish with as many servings as the budget gives, where no dish feeds the whole household."""
        assert allowed.budget is not None, "without a budget every dish fits"
        rows = self._order[allowed.mask[self._order]]
        row = int(rows[int(self._constraints.cost_cents[rows].argmin())])
        return row, allowed.budget // int(self._constraints.cost_cents[row])


def fit_popular(examples: Iterable[Example], catalogue: Catalogue) -> PopularPlanner:
    """Count what was accepted: dishes, the median number of meals, and the days used most.

    Args:
        examples: the rows to learn from: pass the training split only.
        catalogue: the dishes that may be proposed; accepted ones that have left it are not ranked.

    Raises:
        ModelError: there are no examples.
    """
    dishes: Counter[str] = Counter()
    days: Counter[str] = Counter()
    sizes: list[int] = []
    for example in examples:
        meals = example.accepted_plan.meals
        sizes.append(len(meals))
        dishes.update(meal.recipe_id for meal in meals)
        days.update(meal.day for meal in meals)
    if not sizes:
        raise ModelError("The training split has no rows, so there is nothing that is popular. Widen the dataset.")
    used = sorted(WEEKDAYS, key=lambda day: (-days[day], DAY_INDEX[day]))[: median_low(sizes)]
    known = [(recipe_id, count) for recipe_id, count in dishes.items() if recipe_id in catalogue.by_id]
    return PopularPlanner(sorted(known, key=lambda entry: (-entry[1], entry[0])), used, catalogue)
