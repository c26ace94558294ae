"""The built-in baseline: ranked, deterministic, and within every limit."""

from __future__ import annotations

import json

import pytest

from planner.contracts.catalogue import Catalogue, Recipe, cents
from planner.contracts.errors import ModelError
from planner.contracts.plan import Meal, Plan
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.popular import PopularPlanner, fit_popular
from tests.tiny import tiny_catalogue, tiny_examples, tiny_requests

MENU = Catalogue.of(
    [
        Recipe("a", "Ant", cost_per_serving=1.0),
        Recipe("b", "Bee", cost_per_serving=5.0),
        Recipe("c", "Cod", cost_per_serving=2.0, allergens=("fish",)),
        Recipe("d", "Dal", cost_per_serving=2.0, active=False),
    ]
)
RANKING = (("d", 9), ("b", 7), ("c", 7), ("gone", 3))


def planned(planner: PopularPlanner, request: Request) -> list[tuple[str, str, int]]:
    return [(m.day, m.recipe_id, m.servings) for m in planner.plan([request])[0].plan.meals]


def test_best_ranked_allowed_dishes_come_first_and_unranked_ones_last():
    planner = PopularPlanner(RANKING, ("wednesday", "monday", "friday"), MENU)
    assert planned(planner, Request(Household("h", 2))) == [
        ("monday", "b", 2),
        ("wednesday", "c", 2),
        ("friday", "a", 2),
    ]
    fishless = Request(Household("h", 2, (), ("fish-allergy",)))
    assert planned(planner, fishless) == [("monday", "b", 2), ("wednesday", "a", 2)]


def test_a_dish_over_the_budget_is_passed_over():
    planner = PopularPlanner(RANKING, ("monday", "friday"), MENU)
    request = Request(Household("h", 2), constraints=Constraints(budget=6.0))
    assert planned(planner, request) == [("monday", "c", 2), ("friday", "a", 2)]


def test_where_no_dish_feeds_the_household_the_cheapest_one_is_planned_smaller():
    planner = PopularPlanner(RANKING, ("monday",), MENU)
    request = Request(Household("h", 4), constraints=Constraints(budget=3.5))
    assert planned(planner, request) == [("monday", "a", 3)]


def test_impossible_request_gets_the_reason_and_an_empty_plan():
    planner = PopularPlanner(RANKING, ("monday",), MENU)
    result = planner.plan([Request(Household("h", 4), constraints=Constraints(budget=0.5))])[0]
    assert not result.feasible and not result.plan.meals and result.reason.startswith("budget_below_minimum")


def test_fit_takes_the_median_number_of_meals_on_the_most_used_days():
    examples = tiny_examples(3)
    plans = [("monday", "a"), ("monday", "b"), ("friday", "b")]
    week = [Plan((Meal("monday", "b", 2), Meal("friday", "c", 2)))]
    week += [Plan((Meal(day, dish, 2),)) for day, dish in plans[:1]]
    week += [Plan(tuple(Meal(day, dish, 2) for day, dish in (("friday", "b"), ("sunday", "a"), ("monday", "gone"))))]
    from dataclasses import replace

    examples = [replace(e, accepted_plan=plan) for e, plan in zip(examples, week, strict=True)]
    planner = fit_popular(examples, MENU)
    assert planner.days == ("monday", "friday")
    assert planner.ranking == (("a", 2), ("b", 2), ("c", 1))


def test_every_plan_of_the_fitted_planner_is_within_its_budget_and_without_repeats():
    catalogue = tiny_catalogue(60)
    planner = fit_popular(tiny_examples(80, catalogue=catalogue), catalogue)
    for request, result in zip(
        requests := tiny_requests(200, 3, catalogue=catalogue), planner.plan(requests), strict=True
    ):
        meals, budget = result.plan.meals, cents(request.constraints.budget)
        assert result.feasible == bool(meals)
        assert len({meal.recipe_id for meal in meals}) == len(meals)
        if budget is not None:
            assert sum(cents(catalogue.by_id[m.recipe_id].cost_per_serving) * m.servings for m in meals) <= budget


def test_json_form_gives_the_same_planner():
    planner = fit_popular(tiny_examples(40), tiny_catalogue())
    again = PopularPlanner.from_dict(json.loads(json.dumps(planner.to_dict())), tiny_catalogue())
    assert again.plan(tiny_requests(20)) == planner.plan(tiny_requests(20))
    with pytest.raises(ModelError, match="not a ranking with days"):
        PopularPlanner.from_dict({"ranking": [["a"]], "days": ["someday"]}, MENU)


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ModelError, match="training split has no rows"):
        fit_popular([], MENU)
