"""The demo's dishes: diets and allergens right for their ingredients, costs from real prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import CatalogueError
from planner.contracts.prompt import title_collisions
from planner.dataset.demo.catalogue import ALLERGENS, MEAT, DemoCatalogue, Dish, load_catalogue
from planner.dataset.demo.purchases import read_purchases


@pytest.fixture(scope="module")
def catalogue() -> DemoCatalogue:
    return load_catalogue()


def dish(catalogue: DemoCatalogue, title: str) -> Dish:
    return next(dish for dish in catalogue.dishes if dish.title == title)


def test_at_least_150_dishes_with_distinct_titles(catalogue: DemoCatalogue) -> None:
    assert len(catalogue.dishes) >= 150
    prices = {food.name: 1.0 for food in catalogue.stocks}
    contract = Catalogue.of(catalogue.recipes(prices))  # raises on a title or id that stands twice
    assert len(contract.recipes) == len(catalogue.dishes)
    assert not title_collisions(contract)


def test_allergens_are_the_union_over_the_ingredients(catalogue: DemoCatalogue) -> None:
    for each in catalogue.dishes:
        wanted = {allergen for food, _ in each.amounts for allergen in food.allergens}
        assert set(each.allergens) == wanted, each.title
        assert len(each.allergens) == len(wanted)


def test_diet_tags_hold_for_every_ingredient(catalogue: DemoCatalogue) -> None:
    for each in catalogue.dishes:
        kinds = {food.kind for food, _ in each.amounts}
        assert ("vegetarian" in each.tags) == (not kinds & {*MEAT, "fish", "shellfish"}), each.title
        assert ("vegan" in each.tags) == (kinds == {"plant"}), each.title
        assert ("pescatarian" in each.tags) == (not kinds & set(MEAT)), each.title
        assert ("gluten-free" in each.tags) == ("gluten" not in each.allergens), each.title
        assert ("dairy-free" in each.tags) == ("dairy" not in each.allergens), each.title


def test_kind_and_allergens_of_an_ingredient_agree(catalogue: DemoCatalogue) -> None:
    implied = {"dairy": "dairy", "egg": "eggs", "fish": "fish", "shellfish": "shellfish"}
    animal = {"dairy", "eggs", "fish", "shellfish"}
    for food in catalogue.foods.values():
        if food.kind in implied:
            assert implied[food.kind] in food.allergens, food.name
        if food.kind == "plant" and food.name != "margarine":
            assert not food.allergens & animal or food.name == "mayonnaise", food.name


# What a person knows about these dishes, written down without looking at the ingredient table.
@pytest.mark.parametrize(
    ("title", "allergens", "diets"),
    [
        ("Shrimp Scampi", {"gluten", "dairy", "shellfish"}, {"pescatarian"}),
        ("Spaghetti Carbonara", {"gluten", "dairy", "eggs"}, set()),
        ("Chickpea Curry", set(), {"vegan", "vegetarian", "pescatarian", "gluten-free", "dairy-free"}),
        ("Cashew Chicken", {"gluten", "soy", "nuts"}, {"dairy-free"}),
        ("Peanut Noodles", {"gluten", "soy", "peanuts"}, {"vegan", "vegetarian", "pescatarian", "dairy-free"}),
        ("Teriyaki Salmon", {"gluten", "soy", "sesame", "fish"}, {"pescatarian", "dairy-free"}),
        ("Tofu Stir-Fry", {"gluten", "soy"}, {"vegan", "vegetarian", "pescatarian", "dairy-free"}),
        ("Greek Salad with Pita", {"gluten", "dairy"}, {"vegetarian", "pescatarian"}),
        ("Kielbasa and Sauerkraut", set(), {"gluten-free", "dairy-free"}),
        ("Pesto Penne", {"gluten", "dairy", "nuts"}, {"vegetarian", "pescatarian"}),
    ],
)
def test_known_dishes_have_the_allergens_and_diets_that_a_cook_expects(
    catalogue: DemoCatalogue, title: str, allergens: set[str], diets: set[str]
) -> None:
    found = dish(catalogue, title)
    assert set(found.allergens) == allergens
    all_diets = {"vegan", "vegetarian", "pescatarian", "gluten-free", "dairy-free"}
    assert set(found.tags) & all_diets == diets


def test_amounts_and_times_are_plausible(catalogue: DemoCatalogue) -> None:
    assert set(ALLERGENS) >= {name for each in catalogue.dishes for name in each.allergens}
    for each in catalogue.dishes:
        assert 5 <= each.prep_time <= 300, each.title
        names = [food.name for food, _ in each.amounts]
        assert 2 <= len(names) == len(set(names)), each.title
        grams = sum(amount for food, amount in each.amounts if food.unit in ("g", "ml"))
        assert grams <= 7_000, each.title


def test_costs_per_serving_come_out_positive_and_plausible(catalogue: DemoCatalogue) -> None:
    recipes = catalogue.recipes(read_purchases(catalogue, households=1).prices)
    costs = sorted(recipe.cost_per_serving or 0.0 for recipe in recipes)
    assert 0.2 <= costs[0] and costs[-1] <= 6.0
    assert 0.8 <= costs[len(costs) // 2] <= 2.5


@pytest.mark.parametrize(
    ("row", "message"),
    [("ground beef 100ml", "unknown ingredient or unit"), ("unicorn 100g", "unknown ingredient or unit")],
)
def test_a_dish_that_cannot_be_read_is_refused_by_name(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "ingredients.yaml").write_text("ground beef: {match: [BEEF|LEAN], pack: 450 g, days: 5, kind: beef}\n")
    (tmp_path / "dishes.yaml").write_text(f"american:\n  Odd Dish: {{minutes: 10, for4: [{row}]}}\n")
    with pytest.raises(CatalogueError, match=f"'Odd Dish'.*{message}"):
        load_catalogue(tmp_path)
