from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.gate import SCORES
from planner.contracts.plan import EMPTY_PLAN, WEEKDAYS, Meal, Plan
from planner.evaluation.scores import (
    diversity_score,
    edit_distance_score,
    edit_operations,
    jaccard,
    leftovers_score,
    score_plan,
)
from planner.evaluation.words import ingredient_key
from tests.evaluation.planners import catalogue_of, plan_of

CATALOGUE = catalogue_of()


@st.composite
def plans(draw: st.DrawFn, days: int = 7, dishes: int = 6, servings: int = 3, least: int = 0) -> Plan:
    chosen = draw(st.lists(st.sampled_from(WEEKDAYS[:days]), unique=True, min_size=least))
    return Plan(
        tuple(Meal(day, f"r{draw(st.integers(0, dishes - 1)):03d}", draw(st.integers(1, servings))) for day in chosen)
    )


@given(plans(), plans(), st.booleans(), st.booleans())
def test_every_score_is_in_the_unit_interval(one: Plan, other: Plan, respected: bool, feasible: bool) -> None:
    row = score_plan(one, other, (Ingredient("rice"),), CATALOGUE, respected=respected, feasible=feasible)
    assert all(0 <= getattr(row, name) <= 1 for name in SCORES)


@given(plans(), plans())
def test_edits_and_alignment_are_symmetric(one: Plan, other: Plan) -> None:
    assert edit_operations(one, other) == edit_operations(other, one)
    assert jaccard(one.recipe_ids, other.recipe_ids) == jaccard(other.recipe_ids, one.recipe_ids)


@given(plans(), plans())
def test_no_edit_means_the_same_meals_whatever_their_order(one: Plan, other: Plan) -> None:
    assert (edit_operations(one, other) == 0) == (set(one.meals) == set(other.meals))
    assert edit_operations(one, Plan(one.meals[::-1])) == 0


def neighbours(state: tuple[tuple[int, int] | None, ...]) -> list[tuple[tuple[int, int] | None, ...]]:
    """Every plan one operation away; a plan is a (dish, servings) or None for each day."""
    found = []
    for day, meal in enumerate(state):
        options: list[tuple[int, int] | None]
        if meal is None:
            options = list(product(range(2), range(1, 3)))  # add_meal
        else:
            options = [None, (1 - meal[0], meal[1]), (meal[0], 3 - meal[1])]  # remove, swap, adjust
        found += [(*state[:day], option, *state[day + 1 :]) for option in options]
    return found


def test_edits_are_the_fewest_by_brute_force() -> None:
    meals = [None, *product(range(2), range(1, 3))]

    def plan(state: tuple[tuple[int, int] | None, ...]) -> Plan:
        return Plan(tuple(Meal(WEEKDAYS[d], f"r{m[0]}", m[1]) for d, m in enumerate(state) if m))

    for start in product(meals, repeat=2):
        distance, frontier = {start: 0}, [start]
        while frontier:
            frontier = _grow(distance, frontier)
        for end in product(meals, repeat=2):
            assert edit_operations(plan(start), plan(end)) == distance[end]


def _grow(distance: dict, frontier: list) -> list:  # type: ignore[type-arg]
    new = []
    for state in frontier:
        for other in neighbours(state):
            if other not in distance:
                distance[other] = distance[state] + 1
                new.append(other)
    return new


def test_a_swap_keeps_the_servings() -> None:
    before = plan_of(("monday", "r001", 2))
    assert edit_operations(before, plan_of(("monday", "r002", 2))) == 1
    assert edit_operations(before, plan_of(("monday", "r002", 4))) == 2
    assert edit_operations(before, plan_of(("tuesday", "r001", 2))) == 2


def test_the_scores_of_a_row_worked_out_by_hand() -> None:
    names = {"a": ["Tomatoes", "rice"], "b": ["tomato", "egg"], "c": ["beef", "Eggs", "salt"]}
    catalogue = Catalogue.of(Recipe(id, f"Dish {id}", tuple(map(Ingredient, own))) for id, own in names.items())
    predicted = plan_of(("monday", "a", 2), ("tuesday", "b", 2), ("friday", "c", 2))
    accepted = plan_of(("monday", "a", 2), ("tuesday", "b", 3), ("sunday", "d", 2))
    row = score_plan(predicted, accepted, (Ingredient("Salt"),), catalogue)
    assert row.plan_alignment_score == pytest.approx(2 / 4)
    assert row.edits == 3 and row.edit_distance_score == 0
    assert row.diversity_score == pytest.approx(1 - (1 / 3 + 0 + 1 / 4) / 3)
    assert row.leftovers_score == pytest.approx(3 / 5)  # tomato and egg twice, salt in the pantry; not rice and beef


def test_an_infeasible_request_scores_zero_but_respects_its_constraints() -> None:
    row = score_plan(EMPTY_PLAN, plan_of(("monday", "r001", 2)), (), CATALOGUE, feasible=False)
    assert (row.plan_alignment_score, row.edit_distance_score, row.constraint_respect_score) == (0, 0, 1)
    assert (row.diversity_score, row.leftovers_score, row.edits) == (0, 0, 1)


def test_the_edges_of_the_definitions() -> None:
    assert jaccard(frozenset(), frozenset()) == 0
    assert edit_distance_score(0, 3) == 1 and edit_distance_score(9, 3) == 0 and edit_distance_score(1, 0) == 0
    assert diversity_score([frozenset("ab")]) == 1 and diversity_score([frozenset("ab")] * 2) == 0
    assert (
        leftovers_score([frozenset()], frozenset("a")) == 0 and leftovers_score([frozenset("a")] * 2, frozenset()) == 1
    )


@settings(max_examples=50)
@given(plans(least=1))
def test_the_same_plan_is_perfectly_aligned(plan: Plan) -> None:
    row = score_plan(plan, plan, (), CATALOGUE)
    assert row.plan_alignment_score == row.edit_distance_score == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("Tomatoes", "tomato"), ("berries", "Berry"), ("leaves", "leaf"), ("cookies", "cookie"), ("olives", "Olive"),
     ("crème-fraîche", "Creme fraiche"), ("glasses", "glass"), ("octopuses", "octopus"), ("tofus", "Tofu")],
)  # fmt: skip
def test_an_ingredient_has_one_key_however_it_is_written(one: str, other: str) -> None:
    assert ingredient_key(one) == ingredient_key(other) != ""
