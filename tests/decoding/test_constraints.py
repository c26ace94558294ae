"""Matching of texts, the filters of a request, and what is called impossible."""

from __future__ import annotations

import pytest

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.constraints import allowed_recipes, infeasible_reason


def recipe(recipe_id: str = "r", *ingredients: str, **members: object) -> Recipe:
    values = {"prep_time": 20, "cost_per_serving": 2.0, **members}
    return Recipe(recipe_id, f"Dish {recipe_id}", tuple(Ingredient(name) for name in ingredients), **values)


def request(*, restrictions: tuple[str, ...] = (), **limits: object) -> Request:
    return Request(Household("h", 2, (), restrictions), constraints=Constraints(**limits))


def allowed(dish: Recipe, asked: Request) -> bool:
    return bool(allowed_recipes(asked, Catalogue.of([dish])).mask[0])


@pytest.mark.parametrize(
    ("term", "ingredient"),
    [
        ("tomato", "Tomatoes"),
        ("TOMATOES", "tomato"),
        ("tomato", "cherry tomatoes, chopped"),
        ("berry", "berries"),
        ("leaf", "bay leaves"),
        ("cookie", "cookies"),
        ("olive", "black olives"),
        ("glass", "glasses"),
        ("cheese", "cheeses"),
        ("octopus", "octopuses"),
        ("butter", "peanut butter"),
        ("soy sauce", "soy-sauce"),
        ("soy_sauce", "dark soy sauce"),
        ("soysauce", "soy sauce"),
        ("jalapeno", "Jalapeños"),
        ("crème fraîche", "creme fraiche"),
        ("shepherds pie", "shepherd's pie"),
        ("tofu", "tofus"),
        ("gas", "gases"),
        ("one two three four five six seven eight nine ten", "zero one two three four five six seven eight nine tens"),
    ],
)
def test_excluded_term_matches_case_plural_accents_and_surrounding_words(term, ingredient):
    assert not allowed(recipe("r", ingredient), request(excluded_ingredients=(term,)))


@pytest.mark.parametrize(
    ("term", "ingredient"),
    [
        ("peanut butter", "butter"),
        ("egg", "eggplant"),
        ("nut", "coconut"),
        ("fish", "shellfish"),
        ("sauce soy", "soy sauce"),
        ("", "anything"),
        ("  - ", "anything"),
    ],
)
def test_excluded_term_does_not_match_parts_of_words_or_other_orders(term, ingredient):
    assert allowed(recipe("r", ingredient), request(excluded_ingredients=(term,)))


def test_excluded_term_matches_allergens_and_tags_though_the_ingredient_has_another_name():
    asked = request(excluded_ingredients=("shellfish",))
    assert not allowed(recipe("r", "prawns", allergens=("Shellfish",)), asked)
    assert not allowed(recipe("r", "prawns", tags=("shellfish dishes",)), asked)
    assert allowed(recipe("r", "prawns"), asked)


@pytest.mark.parametrize("text", ["nut-allergy", "Nut Allergy", "nut_allergy", "nuts-allergy", "NUT  allergies"])
def test_allergy_forbids_the_allergen_in_any_spelling(text):
    asked = request(restrictions=(text,))
    assert not allowed(recipe("r", allergens=("nuts",)), asked)
    assert not allowed(recipe("r", allergens=("tree nuts",)), asked)
    assert allowed(recipe("r", "coconut", allergens=("coconut",)), asked)


@pytest.mark.parametrize("text", ["vegetarian", "Vegetarian ", "VEGETARIANS"])
def test_other_restriction_needs_the_whole_tag(text):
    asked = request(restrictions=(text,))
    assert allowed(recipe("r", tags=("vegetarian",)), asked)
    assert not allowed(recipe("r", tags=("not vegetarian",)), asked)
    assert not allowed(recipe("r", tags=()), asked)


@pytest.mark.parametrize(
    ("restriction", "tag"),
    [("vegane", "vegan"), ("chilli", "chilly"), ("nut-allergie", "x"), ("nut-allergys", "x"), ("gase", "gas")],
)
def test_restriction_that_is_merely_like_a_tag_is_not_the_tag(restriction, tag):
    assert not allowed(recipe("r", tags=(tag,)), request(restrictions=(restriction,)))
    assert not allowed(recipe("r", tags=(restriction,)), request(restrictions=(tag,)))


@pytest.mark.parametrize("text", ["moonlight-only", "allergy", "", "?"])
def test_restriction_that_nobody_knows_allows_nothing(text):
    asked = request(restrictions=(text,))
    assert not allowed(recipe("r", tags=("vegetarian",)), asked)
    assert infeasible_reason(asked, Catalogue.of([recipe("r")])).startswith("no_recipe_allowed: of 1 recipes 1 after")


def test_unknown_prep_time_or_cost_never_passes_under_its_limit():
    assert allowed(recipe("r", prep_time=30), request(max_prep_time=30))
    assert not allowed(recipe("r", prep_time=31), request(max_prep_time=30))
    assert not allowed(recipe("r", prep_time=None), request(max_prep_time=30))
    assert allowed(recipe("r", prep_time=None, cost_per_serving=None), request())
    assert not allowed(recipe("r", cost_per_serving=None), request(budget=100.0))
    assert not allowed(recipe("r", cost_per_serving=float("nan")), request(budget=100.0))


def test_inactive_recipe_is_never_allowed():
    assert not allowed(recipe("r", active=False), request())


@pytest.mark.parametrize(
    ("budget", "feasible"), [(2.0, True), (1.996, True), (1.99, False), (0.0, False), (-5.0, False), (None, True)]
)
def test_budget_below_one_serving_of_the_cheapest_recipe_is_infeasible(budget, feasible):
    catalogue = Catalogue.of([recipe("a", cost_per_serving=2.0), recipe("b", cost_per_serving=3.0)])
    reason = infeasible_reason(request(budget=budget), catalogue)
    assert (reason is None) == feasible
    assert feasible or reason.startswith("budget_below_minimum: one serving of the cheapest allowed recipe costs 2.00")


def test_reason_counts_what_each_filter_leaves():
    catalogue = Catalogue.of(
        [
            recipe("a", "prawns", tags=("vegan",)),
            recipe("b", tags=("vegan",), prep_time=90),
            recipe("c"),
            recipe("d", active=False),
        ]
    )
    asked = request(restrictions=("vegan",), excluded_ingredients=("prawn",), max_prep_time=30)
    assert infeasible_reason(asked, catalogue) == (
        "no_recipe_allowed: of 4 recipes 3 after active, 2 after excluded_ingredients, 1 after restrictions, "
        "0 after max_prep_time"
    )


@pytest.mark.parametrize("tag", ["gluten-free", "Gluten Free"])
def test_a_tag_of_absence_is_not_the_thing_itself(tag):
    without = recipe("r", "rice", tags=(tag,))
    assert allowed(without, request(excluded_ingredients=("gluten",)))
    with_it = recipe("r", "rice", tags=(tag,), allergens=("gluten",))
    assert not allowed(with_it, request(excluded_ingredients=("gluten",)))
    assert allowed(without, request(restrictions=("gluten-free",)))


def test_a_name_of_thousands_of_words_is_indexed_and_found():
    name = " ".join(f"word{index}" for index in range(3000)) + " peanuts"
    assert not allowed(recipe("r", name), request(excluded_ingredients=("peanut",)))
    assert allowed(recipe("r", name), request(excluded_ingredients=("walnut",)))
