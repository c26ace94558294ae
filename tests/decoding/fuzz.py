"""Fuzzed catalogues and requests, and the rules once more over canonical words: nothing of the decoder's matching.

In: a seeded generator. Out: a catalogue with what each dish truly holds, requests with what they truly exclude, and
`Truth`, which says by plain comparisons which dishes a request allows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe, cents
from planner.contracts.plan import WEEKDAYS
from planner.contracts.request import Constraints, Household, Request

# Canonical word, and the forms in which recipes and requests write it.
WORDS = {
    "tomato": ("tomato", "Tomatoes", "chopped tomatoes"),
    "egg": ("eggs", "egg", "Free-range eggs"),
    "milk": ("milk", "whole milk"),
    "prawn": ("prawns", "king prawn"),
    "nut": ("nuts", "mixed nuts"),
}
ALLERGENS = ("nut", "prawn", "egg")
TAGS = ("vegan", "quick", "family")
PARTS = (
    "Soup",
    "Pie",
    "Stew",
    "Bake",
    "No.",
    "Hot",
    '"Mac"',
    "(mild)",
    "Crème",
    "brûlée",
    "🍜",
    "[new]",
    "x2",
    "5-bean",
)
DEAR = 10**9
UNKNOWN = -1


def fuzz_catalogue(rng: random.Random, n: int) -> tuple[Catalogue, dict[str, set[str]]]:
    """`n` dishes, and the canonical words that each holds; a few titles read like another one with servings."""
    recipes, words = [], {}
    for index in range(n):
        held = set(rng.sample(sorted(WORDS), rng.randrange(0, 3)))
        title = " ".join(rng.choice(PARTS) for _ in range(3)) + f" {index}"
        if recipes and rng.random() < 0.03:
            title = f"{recipes[-1].title} x{rng.randrange(1, 15)}"
        recipe = Recipe(
            id=f"r{index}",
            title=title,
            ingredients=tuple(Ingredient(rng.choice(WORDS[word])) for word in sorted(held)),
            prep_time=rng.choice((None, 10, 20, 40, 60)),
            cost_per_serving=rng.choice((None, 0.0, 0.5, 1.25, 2.675, 4.0, 9.99)),
            tags=tuple(rng.sample(TAGS, rng.randrange(0, 3))),
            allergens=tuple(WORDS[word][0] for word in sorted(held.intersection(ALLERGENS))),
            active=rng.random() < 0.9,
        )
        words[recipe.id] = held
        recipes.append(recipe)
    if not any(recipe.active for recipe in recipes):
        recipes[0] = Recipe("r0", "Soup 0")
        words["r0"] = set()
    return Catalogue.of(recipes), words


def fuzz_request(rng: random.Random) -> tuple[Request, set[str]]:
    """A request, and the canonical words that it excludes."""
    excluded = rng.sample(sorted(WORDS), rng.choice((0, 0, 0, 1, 2, 5)))
    restrictions = rng.sample(("nut-allergy", "prawn-allergy", *TAGS), rng.choice((0, 0, 0, 0, 1, 2, 4)))
    budgets = (None, -1.0, 0.0, 0.004, 0.5, 1.0, 3.0, 10.0, 40.0, 200.0, round(rng.uniform(0, 60), 2))
    request = Request(
        Household("h", rng.choice((None, 0, 1, 2, 4, 7, 30)), (), tuple(restrictions)),
        constraints=Constraints(
            budget=rng.choice(budgets),
            max_prep_time=rng.choice((None, None, 5, 15, 30, 45)),
            excluded_ingredients=tuple(rng.choice(WORDS[word]).split()[-1] for word in excluded),
        ),
    )
    return request, set(excluded)


def fuzz_limits(rng: random.Random) -> dict[str, int]:
    """Minutes by weekday: none, some days, or every day."""
    days = rng.sample(WEEKDAYS, rng.choice((0, 1, 3, 6, 7, 7)))
    some = rng.choice(((0,), (0, 5), (0, 10, 20), (5, 10, 20, 40), (10, 60)))
    return {day: rng.choice(some) for day in days}


@dataclass(frozen=True)
class Truth:
    """What is true of each dish, as columns in catalogue order; `cost` is in cents, `UNKNOWN` where nobody knows."""

    active: np.ndarray
    prep_time: np.ndarray
    cost: np.ndarray
    holds: dict[str, np.ndarray]
    tagged: dict[str, np.ndarray]

    @classmethod
    def of(cls, catalogue: Catalogue, words: dict[str, set[str]]) -> Truth:
        recipes = catalogue.recipes
        costs = [cents(recipe.cost_per_serving) for recipe in recipes]
        return cls(
            active=np.array([recipe.active for recipe in recipes]),
            prep_time=np.array([DEAR if recipe.prep_time is None else recipe.prep_time for recipe in recipes]),
            cost=np.array([UNKNOWN if cost is None else cost for cost in costs]),
            holds={word: np.array([word in words[recipe.id] for recipe in recipes]) for word in WORDS},
            tagged={tag: np.array([tag in recipe.tags for recipe in recipes]) for tag in TAGS},
        )

    def allowed(self, request: Request, excluded: set[str]) -> np.ndarray:
        """Which dishes break nothing by themselves, the budget apart."""
        limits, mask = request.constraints, self.active.copy()
        for word in excluded:
            mask &= ~self.holds[word]
        for restriction in request.household.restrictions:
            allergen = restriction.removesuffix("-allergy")
            mask &= ~self.holds[allergen] if allergen != restriction else self.tagged[restriction]
        if limits.max_prep_time is not None:
            mask &= self.prep_time <= limits.max_prep_time
        if limits.budget is not None:
            mask &= self.cost != UNKNOWN
        return mask

    def allowed_on(self, mask: np.ndarray, limit: int | None) -> np.ndarray:
        """Which of some dishes may stand on a day with a limit."""
        return mask if limit is None else mask & (self.prep_time <= limit) & (limit != 0)

    def has_a_plan(self, request: Request, excluded: set[str], limits: dict[str, int] | None = None) -> bool:
        """Whether one serving of some dish on some day is a plan."""
        mask, budget = self.allowed(request, excluded), cents(request.constraints.budget)
        mask = np.logical_or.reduce([self.allowed_on(mask, (limits or {}).get(day)) for day in WEEKDAYS])
        return bool(mask.any()) and (budget is None or int(self.cost[mask].min()) <= budget)
