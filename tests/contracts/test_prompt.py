"""The prompt and its inverse. `python -m tests.contracts.test_prompt` writes the golden files again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.errors import ContractError
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.prompt import parse_plan_text, render_plan, render_prompt, title_collisions
from planner.contracts.request import parse_request

GOLDEN = Path(__file__).parent / "golden"
TITLES = ("Chicken Fajitas", "Beef Tacos", "Soup x2", "Crème Brûlée (light)", 'Grandma\'s "Best" Stew', "Chili")
CATALOGUE = Catalogue.of(Recipe(f"id-{index}", title) for index, title in enumerate(TITLES))
FULL = {
    "household": {"id": "h1", "size": 4, "preferences": ["mexican"], "restrictions": ["nut-allergy"]},
    "pantry": {"items": [{"name": f"item {i}", "quantity": 1.5, "unit": "kg"} for i in range(26)]},
    "constraints": {"budget": 150, "max_prep_time": 45, "excluded_ingredients": ["shellfish", "a\nb"]},
    "workflow_type": "plan-first",
    "mode": "autopilot",
    "previous_plan": {
        "meals": [
            {"day": "wednesday", "recipe_id": "id-1", "servings": 6},
            {"day": "monday", "recipe_id": "id-0", "servings": 4},
            {"day": "friday", "recipe_id": "left-the-catalogue", "servings": 4},
        ]
    },
}
SMALLEST = {"household": {"id": "h2"}}


def golden_prompts() -> dict[str, str]:
    requests = {"full": FULL, "smallest": SMALLEST}
    return {name: render_prompt(parse_request(request), CATALOGUE) for name, request in requests.items()}


@pytest.mark.parametrize("name", ["full", "smallest"])
def test_prompt_is_byte_for_byte_the_golden_one(name: str) -> None:
    assert golden_prompts()[name] == (GOLDEN / f"prompt_{name}.txt").read_text(encoding="utf-8")


def test_prompt_never_holds_an_id() -> None:
    prompt = golden_prompts()["full"]
    assert "id-" not in prompt and "h1" not in prompt and "left-the-catalogue" not in prompt


meals = st.lists(
    st.tuples(st.sampled_from(WEEKDAYS), st.sampled_from(CATALOGUE.recipes), st.integers(1, 40)),
    min_size=1,
    max_size=7,
    unique_by=lambda meal: meal[0],
)


@given(meals=meals, size=st.integers(0, 12))
def test_parsing_is_the_inverse_of_rendering(meals: list[tuple[str, Recipe, int]], size: int) -> None:
    request = parse_request({"household": {"id": "h", "size": size}})
    plan = Plan(tuple(Meal(day, recipe.id, servings) for day, recipe, servings in meals))
    text = render_plan(plan, request, CATALOGUE)
    assert parse_plan_text(text, request, CATALOGUE) == plan.in_week_order()


@pytest.mark.parametrize(
    "line",
    ["Mon: No Such Dish", "Monday: Chili", "Mon: Chili x0", "Mon: Chili x", "", "Chili", f"Mon: Chili x{'9' * 5000}"],
)
def test_a_line_that_is_no_meal_is_refused(line: str) -> None:
    with pytest.raises(ContractError, match="Not a line of a plan"):
        parse_plan_text(line + "\n", parse_request(SMALLEST), CATALOGUE)


def test_titles_that_read_like_servings_of_another_are_found() -> None:
    catalogue = Catalogue.of([Recipe("a", "Soup"), Recipe("b", "Soup x2"), Recipe("c", "Stew x2")])
    assert title_collisions(catalogue) == {"Soup x2": "Soup"}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for golden_name, text in golden_prompts().items():
        (GOLDEN / f"prompt_{golden_name}.txt").write_text(text, encoding="utf-8")
