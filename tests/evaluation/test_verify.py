from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.plan import Meal, Plan
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.constraints import allowed_recipes
from planner.evaluation.verify import is_satisfiable, same_text, stands_in, violations

PLURALS = [
    ("chilli", "chillies"), ("taxi", "taxies"),
    ("tomato", "Tomatoes"), ("berry", "berries"), ("leaf", "leaves"), ("cookie", "cookies"), ("olive", "olives"),
    ("glass", "glasses"), ("egg", "Eggs"), ("radish", "radishes"), ("knife", "knives"), ("jalapeño", "JALAPENOS"),
    ("nut", "nuts"), ("box", "boxes"), ("octopus", "octopuses"), ("cheese", "cheeses"), ("asparagus", "asparagus"),
]  # fmt: skip


def dish(**options: object) -> Recipe:
    ingredients = tuple(Ingredient(name) for name in options.pop("ingredients", ()))  # type: ignore[attr-defined]
    return Recipe(**{"id": "r1", "title": "Dish", "ingredients": ingredients, **options})  # type: ignore[arg-type]


def found(
    recipe: Recipe, *, servings: int = 2, restrictions: tuple[str, ...] = (), **limits: object
) -> tuple[str, ...]:
    request = Request(Household("h", 2, (), restrictions), constraints=Constraints(**limits))  # type: ignore[arg-type]
    return violations(Plan((Meal("monday", recipe.id, servings),)), request, Catalogue.of([recipe]))


@pytest.mark.parametrize(("one", "many"), PLURALS)
def test_singular_and_plural_exclude_each_other(one: str, many: str) -> None:
    assert stands_in(one, many) and stands_in(many, one) and same_text(one, many)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("tomato", "cherry tomatoes, chopped"), ("butter", "peanut butter"),
        ("peanut-butter", "Crunchy Peanut  Butter"),
        ("creme fraiche", "Crème fraîche"), ("olive oil", "extra-virgin olive oil"), ("STRASSE", "straße"),
    ],
)  # fmt: skip
def test_a_term_matches_among_surrounding_words(term: str, text: str) -> None:
    assert stands_in(term, text)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("egg", "eggplant"), ("peanut butter", "butter"), ("nut", "nutmeg"), ("olive oil", "oil of olive"),
        ("ham", "hamburger bun"), ("", "anything"), ("--", "anything"), ("glass", "glas"),
    ],
)  # fmt: skip
def test_a_part_of_a_word_or_of_a_term_does_not_match(term: str, text: str) -> None:
    assert not stands_in(term, text)


WORD = st.text("abcdefghijklmnopqrtuvwxyz", min_size=3, max_size=8)


@given(st.lists(WORD, min_size=1, max_size=3), st.lists(WORD, max_size=2), st.lists(WORD, max_size=2), st.booleans())
def test_case_plural_and_surrounding_words_never_hide_an_excluded_ingredient(
    term: list[str], before: list[str], after: list[str], upper: bool
) -> None:
    text = " ".join([*before, *term[:-1], term[-1] + "s", *after])
    name = text.upper() if upper else text
    assert found(dish(ingredients=(f"{name}, chopped",)), excluded_ingredients=(" ".join(term),))


def test_an_excluded_term_is_looked_for_in_allergens_and_tags_too() -> None:
    assert found(dish(ingredients=("prawns",), allergens=("shellfish",)), excluded_ingredients=("Shellfish",))
    assert found(dish(tags=("contains-pork",)), excluded_ingredients=("pork",))
    assert not found(dish(ingredients=("prawns",)), excluded_ingredients=("shellfish",))


def test_an_allergy_forbids_its_allergen_alone() -> None:
    assert found(dish(allergens=("nuts",)), restrictions=("nut-allergy",))
    assert found(dish(allergens=("tree nuts",)), restrictions=("Nut Allergy",))
    assert not found(dish(allergens=("peanuts",)), restrictions=("nut-allergy",))
    assert not found(dish(ingredients=("nuts",)), restrictions=("nut-allergy",))


def test_any_other_restriction_needs_its_tag_and_an_unknown_one_never_passes() -> None:
    assert not found(dish(tags=("Gluten Free",)), restrictions=("gluten-free",))
    assert found(dish(tags=("gluten-free-ish",)), restrictions=("gluten-free",))
    assert found(dish(tags=("vegetarian",)), restrictions=("kryptonian",))
    assert found(dish(), restrictions=("",))
    assert found(dish(tags=("lactose",)), restrictions=("lactose-intolerant",))


def test_prep_time_is_inclusive_and_unknown_breaks_a_limit() -> None:
    assert not found(dish(prep_time=30), max_prep_time=30)
    assert found(dish(prep_time=31), max_prep_time=30)
    assert found(dish(prep_time=None), max_prep_time=30)
    assert not found(dish(prep_time=None))


@pytest.mark.parametrize(
    ("cost", "servings", "budget", "kept"),
    [
        (0.1, 3, 0.3, True), (2.675, 1, 2.68, True), (2.675, 1, 2.674, False), (2.675, 1, 2.675, True),
        (1.004, 3, 3.0, True), (10.0, 2, 19.99, False), (0.0, 5, 0.0, True), (1.0, 1, -1.0, False),
    ],
)  # fmt: skip
def test_money_compares_in_cents_half_up(cost: float, servings: int, budget: float, kept: bool) -> None:
    assert (not found(dish(cost_per_serving=cost), servings=servings, budget=budget)) is kept


def test_no_amount_of_money_is_too_large_to_compare() -> None:
    assert not found(dish(cost_per_serving=1e300), servings=7, budget=1e301)
    assert found(dish(cost_per_serving=1e300), servings=11, budget=1e301)
    assert not found(dish(cost_per_serving=2.5), servings=2_000_000_000, budget=1.7e308)
    assert found(dish(cost_per_serving=1e26 + 0.01), servings=1, budget=1e26 - 2e10)


@pytest.mark.parametrize("cost", [None, float("nan"), float("inf")])
def test_an_unknown_cost_breaks_a_budget(cost: float | None) -> None:
    assert found(dish(cost_per_serving=cost), budget=100.0)
    assert not found(dish(cost_per_serving=cost))


def test_a_plan_out_of_form_is_said_to_be() -> None:
    catalogue = Catalogue.of([dish(), dish(id="r2", title="Old", active=False)])
    plan = Plan((Meal("monday", "r1", 0), Meal("monday", "r9", 1), Meal("Tuesday", "r2", 1)))
    said = " ".join(violations(plan, Request(Household("h")), catalogue))
    for word in ("0 servings", "planned twice", "'r9'", "no longer active", "no day of the week"):
        assert word in said


def test_a_dish_twice_and_an_empty_plan_break_nothing() -> None:
    catalogue = Catalogue.of([dish()])
    assert (
        violations(Plan((Meal("monday", "r1", 1), Meal("friday", "r1", 2))), Request(Household("h")), catalogue) == ()
    )
    assert violations(Plan(()), Request(Household("h")), catalogue) == ()
    assert violations(Plan(()), Request(Household("h"), constraints=Constraints(budget=-5.0)), catalogue) == ()


def test_a_request_is_satisfiable_when_one_serving_of_one_dish_fits() -> None:
    catalogue = Catalogue.of([dish(cost_per_serving=3.0)])
    assert is_satisfiable(Request(Household("h"), constraints=Constraints(budget=3.0)), catalogue)
    assert not is_satisfiable(Request(Household("h"), constraints=Constraints(budget=2.99)), catalogue)


@pytest.mark.parametrize("tag", ["gluten-free", "Gluten Free"])
def test_a_tag_of_absence_is_not_the_thing_itself(tag: str) -> None:
    assert not found(dish(tags=(tag,)), excluded_ingredients=("gluten",))
    assert found(dish(tags=(tag,), allergens=("gluten",)), excluded_ingredients=("gluten",))
    assert found(dish(tags=("gluten",)), excluded_ingredients=("gluten",))


WORDS = "tomato berry leaf leave cookie olive glass gas tofu peanut nut pea cheese box radish egg free soy s es ss ies"
roots = st.sampled_from([*WORDS.split(), "chilli", "vegan"])
forms = st.builds(
    lambda root, ending, upper: (root + ending).upper() if upper else root + ending,
    roots,
    st.sampled_from(["", "s", "es", "ies", "'s", "ves", "e", "i", "ie", "y"]),
    st.booleans(),
)
texts = st.builds(lambda words, gap: gap.join(words), st.lists(forms, min_size=1, max_size=4), st.sampled_from(" -_,"))


@given(
    names=st.lists(texts, max_size=2),
    tags=st.lists(texts, max_size=2),
    allergens=st.lists(texts, max_size=2),
    excluded=st.lists(texts, max_size=2),
    restrictions=st.lists(
        st.one_of(texts, st.builds("{}-allerg{}".format, texts, st.sampled_from(["y", "ies", "ie", "ys", "i"]))),
        max_size=2,
    ),
)
def test_what_the_decoder_allows_is_never_a_violation(
    names: list[str], tags: list[str], allergens: list[str], excluded: list[str], restrictions: list[str]
) -> None:
    recipe = dish(ingredients=names, tags=tuple(tags), allergens=tuple(allergens))
    request = Request(
        Household("h", 2, (), tuple(restrictions)), constraints=Constraints(excluded_ingredients=tuple(excluded))
    )
    catalogue = Catalogue.of([recipe])
    if allowed_recipes(request, catalogue).mask[0]:
        assert violations(Plan((Meal("monday", "r1", 1),)), request, catalogue) == ()
