"""The walk of legal tokens under random scores: no violation, ever, and feasible where brute force finds a plan."""

from __future__ import annotations

import random

import numpy as np
import pytest

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe, cents
from planner.contracts.plan import DAY_INDEX
from planner.contracts.prompt import default_servings, encode_target, parse_plan_text, render_plan
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import build_trie, servings_bound

# Canonical word, and the forms in which recipes and requests write it.
WORDS = {
    "tomato": ("tomato", "Tomatoes", "chopped tomatoes"),
    "egg": ("eggs", "egg", "Free-range eggs"),
    "milk": ("milk", "whole milk"),
    "prawn": ("prawns", "king prawn"),
    "nut": ("nuts", "mixed nuts"),
}
TAGS = ("vegan", "quick", "family")


def fuzz_catalogue(rng: random.Random, n: int) -> tuple[Catalogue, dict[str, set[str]]]:
    recipes, words = [], {}
    for index in range(n):
        held = set(rng.sample(sorted(WORDS), rng.randrange(0, 3)))
        allergens = {word for word in held if word in ("nut", "prawn", "egg")}
        recipe = Recipe(
            id=f"r{index}",
            title=" ".join(rng.choice(("Soup", "Pie", "Stew", "Bake", "No.", "Hot")) for _ in range(3)) + f" {index}",
            ingredients=tuple(Ingredient(rng.choice(WORDS[word])) for word in sorted(held)),
            prep_time=rng.choice((None, 10, 20, 40, 60)),
            cost_per_serving=rng.choice((None, 0.0, 0.5, 1.25, 2.675, 4.0, 9.99)),
            tags=tuple(rng.sample(TAGS, rng.randrange(0, 3))),
            allergens=tuple(rng.choice(WORDS[word][:1]) for word in sorted(allergens)),
            active=rng.random() < 0.9,
        )
        words[recipe.id] = held
        recipes.append(recipe)
    if not any(recipe.active for recipe in recipes):
        recipes[0] = Recipe("r0", "Soup 0")
        words["r0"] = set()
    return Catalogue.of(recipes), words


def fuzz_request(rng: random.Random) -> tuple[Request, set[str]]:
    excluded = rng.sample(sorted(WORDS), rng.choice((0, 0, 1, 2)))
    restrictions = rng.sample(("nut-allergy", "prawn-allergy", *TAGS), rng.choice((0, 0, 0, 1, 2)))
    request = Request(
        Household("h", rng.choice((None, 0, 1, 2, 4, 7, 30)), (), tuple(restrictions)),
        constraints=Constraints(
            budget=rng.choice((None, -1.0, 0.0, 0.5, 1.0, 3.0, 10.0, 40.0, 200.0)),
            max_prep_time=rng.choice((None, 5, 15, 30, 45)),
            excluded_ingredients=tuple(rng.choice(WORDS[word]).split()[-1] for word in excluded),
        ),
    )
    return request, set(excluded)


def recipe_is_fine(recipe: Recipe, words: set[str], request: Request, excluded: set[str]) -> bool:
    """The rules once more, over canonical words: nothing of the decoder's matching."""
    limits = request.constraints
    for restriction in request.household.restrictions:
        if restriction.endswith("-allergy"):
            if restriction.removesuffix("-allergy") in words & {"nut", "prawn", "egg"}:
                return False
        elif restriction not in recipe.tags:
            return False
    slow = limits.max_prep_time is not None and not (recipe.prep_time or 10**9) <= limits.max_prep_time
    unpriced = limits.budget is not None and recipe.cost_per_serving is None
    return recipe.active and not (words & excluded) and not slow and not unpriced


def random_walk(rng: np.random.Generator, moves: PlanMoves) -> None:
    while len(legal := moves.run_forced()):
        assert list(legal) == sorted(set(legal))
        moves.take(int(legal[int(rng.integers(len(legal)))]))


def check_walks(base, seed: int, num_recipes: int, num_requests: int) -> int:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    catalogue, words = fuzz_catalogue(rng, num_recipes)
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    num_feasible = 0
    for _ in range(num_requests):
        request, excluded = fuzz_request(rng)
        budget, usual = cents(request.constraints.budget), default_servings(request)
        fine = {r.id: r for r in catalogue.recipes if recipe_is_fine(r, words[r.id], request, excluded)}
        exists = any(budget is None or cents(r.cost_per_serving) <= budget for r in fine.values())
        allowed = index.allowed(request)
        assert (index.infeasible_reason(allowed) is None) == exists
        if not exists:
            continue
        num_feasible += 1
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, usual)
        random_walk(numbers, moves)
        meals = moves.plan.meals
        assert meals and len(moves.plan.recipe_ids) == len(meals)
        days = [DAY_INDEX[meal.day] for meal in meals]
        assert days == sorted(set(days))
        assert all(meal.recipe_id in fine for meal in meals)
        assert all(meal.servings == usual or 1 <= meal.servings <= servings_bound(usual) for meal in meals)
        if budget is not None:
            assert sum(cents(fine[m.recipe_id].cost_per_serving) * m.servings for m in meals) <= budget
        # The tokens are those that training would see for this plan, to the last one.
        text = render_plan(moves.plan, request, catalogue)
        assert moves.tokens == encode_target(base.tokenizer, text)
        assert parse_plan_text(text, request, catalogue) == moves.plan
    return num_feasible


@pytest.mark.parametrize("seed", range(25))
def test_random_choices_never_violate_a_constraint_on_small_catalogues(base, seed):
    check_walks(base, seed, num_recipes=1 + seed % 9, num_requests=12)


def test_random_choices_never_violate_a_constraint_at_500_recipes(base):
    assert check_walks(base, 1000, num_recipes=500, num_requests=500) > 200


@pytest.mark.slow
def test_random_choices_never_violate_a_constraint_at_20000_recipes(base):
    assert check_walks(base, 1001, num_recipes=20_000, num_requests=100) > 40


def test_every_plan_within_the_rules_can_be_reached(base):
    catalogue = Catalogue.of([Recipe("a", "Soup", cost_per_serving=1.0), Recipe("b", "Soup Pie", cost_per_serving=2.0)])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 1), constraints=Constraints(budget=3.0))
    allowed = index.allowed(request)
    reached = set()

    def explore(path: tuple[int, ...]) -> None:
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, 1)
        for token in path:
            moves.run_forced()
            moves.take(token)
        legal = moves.run_forced()
        if not len(legal):
            reached.add(tuple((m.day, m.recipe_id, m.servings) for m in moves.plan.meals))
        for token in legal:
            explore((*path, int(token)))

    explore(())
    days = list(DAY_INDEX)
    single = {((day, dish, n),) for day in days for dish, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1))}
    pairs = {
        ((one, x, 1), (two, y, 1))
        for index, one in enumerate(days)
        for two in days[index + 1 :]
        for x, y in (("a", "b"), ("b", "a"))
    }
    assert reached == single | pairs


@pytest.mark.parametrize("size", [2**31 - 1, 100_000, 0])
def test_implausible_household_size_gets_a_plan_of_plausible_or_usual_servings(base, size):
    catalogue = Catalogue.of([Recipe("a", "Soup", cost_per_serving=1.0)])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", size), constraints=Constraints(budget=50.0))
    moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(request), default_servings(request))
    random_walk(np.random.default_rng(0), moves)
    assert 1 <= moves.plan.meals[0].servings <= 50
