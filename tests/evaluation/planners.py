"""Small real planners, and a small world of households and dishes to plan for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.example import Example
from planner.contracts.plan import EMPTY_PLAN, WEEKDAYS, Edit, Meal, Plan
from planner.contracts.request import Constraints, Household, Request
from planner.contracts.split import stable_order
from planner.decoding.result import PlanResult
from planner.evaluation.verify import violations

FOODS = ("tomatoes", "rice", "eggs", "onions", "beef mince", "prawns", "peanut butter", "olives", "spinach", "cheese")


def catalogue_of(num_recipes: int = 24) -> Catalogue:
    return Catalogue.of(
        Recipe(
            id=f"r{i:03d}",
            title=f"Dish number {i} & <sauce>",
            ingredients=tuple(Ingredient(FOODS[(i * k + k) % len(FOODS)], 1.0, "piece") for k in range(1, 4)),
            prep_time=10 + i,
            cost_per_serving=1.5 + i / 10,
            tags=("vegetarian",) if i % 3 else (),
            allergens=("shellfish",) if i % 5 == 0 else (),
        )
        for i in range(num_recipes)
    )


def plan_of(*meals: tuple[str, str, int]) -> Plan:
    return Plan(tuple(Meal(*meal) for meal in meals))


def example_of(index: int, household: str, catalogue: Catalogue, *, split: str = "test", **options: object) -> Example:
    ids = [recipe.id for recipe in catalogue.recipes]

    def week(salt: str) -> Plan:
        order = sorted(ids, key=lambda id: stable_order(f"{household}-{index}-{salt}-{id}"))
        return Plan(tuple(Meal(day, id, 2) for day, id in zip(WEEKDAYS[:4], order, strict=False)))

    request = Request(
        household=Household(household, 1 + index % 4, (), tuple(options.get("restrictions", ()))),  # type: ignore
        pantry=(Ingredient("Tomato"), Ingredient("rice")),
        constraints=options.get("constraints", Constraints()),  # type: ignore[arg-type]
        workflow_type=("plan-first", "meal-first")[index % 2],
        previous_plan=None if index % 7 == 0 else week("before"),
    )
    time = datetime(2024, 5, 1, tzinfo=UTC)
    return Example(
        f"e{index:05d}", f"p{index}", request, week("accepted"), (Edit("remove_meal", "sunday"),),
        None if index % 5 == 0 else week("logged"), time, time, None, ("north", None)[index % 2], split,
    )  # fmt: skip


def examples_of(
    num_rows: int, catalogue: Catalogue, *, rows_per_household: int = 2, **options: object
) -> list[Example]:
    return [example_of(i, f"h{i // rows_per_household:04d}", catalogue, **options) for i in range(num_rows)]  # type: ignore


@dataclass
class GreedyPlanner:
    """Plans its preferred dishes in order, those that fit the request; nothing fits gives an empty plan."""

    catalogue: Catalogue
    order: Sequence[str]
    num_meals: int = 4
    kind: str = "popular"
    num_calls: int = 0

    def plan(self, requests: Sequence[Request]) -> list[PlanResult]:
        self.num_calls += 1
        return [self._plan(request) for request in requests]

    def _plan(self, request: Request) -> PlanResult:
        plan = EMPTY_PLAN
        for id in self.order:
            more = Plan((*plan.meals, Meal(WEEKDAYS[len(plan.meals)], id, 2)))
            if len(plan.meals) < self.num_meals and not violations(more, request, self.catalogue):
                plan = more
        return PlanResult(plan, bool(plan.meals), None if plan.meals else "no_recipe_allowed: none", 9, 3)


@dataclass
class RecallPlanner:
    """Plans what it was told for a household's previous plan; the oracle of a test."""

    catalogue: Catalogue
    answers: Mapping[Request, Plan]
    kind: str = "lora"

    def plan(self, requests: Sequence[Request]) -> list[PlanResult]:
        return [PlanResult(self.answers[request], True, None, 30, 12) for request in requests]


def oracle(examples: Sequence[Example], catalogue: Catalogue) -> RecallPlanner:
    return RecallPlanner(catalogue, {example.request: example.accepted_plan for example in examples})


def popular(catalogue: Catalogue) -> GreedyPlanner:
    return GreedyPlanner(catalogue, [recipe.id for recipe in catalogue.recipes])
