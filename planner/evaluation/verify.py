"""The independent verifier: does a plan keep what its request asks, by the words of the spec alone.

In: a plan, the request and the catalogue. Out: every violation as a sentence. Shares no code with the decoder and
none with the scores, so that neither's mistake can hide here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.plan import Meal, Plan
from planner.contracts.request import Request

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONEY = Context(prec=400, rounding=ROUND_HALF_UP)  # every double times a plan's servings, to the cent
ES_ENDINGS = ("s", "x", "z", "ch", "sh", "o")  # take `es` in the plural: glasses, boxes, radishes, tomatoes


def violations(plan: Plan, request: Request, catalogue: Catalogue) -> tuple[str, ...]:
    """Everything in which the plan breaks its form or a constraint, as sentences; empty when it breaks nothing.

    An empty plan breaks nothing: whether one was due is the replay's question. A dish twice is no violation.
    """
    found = list(_form(plan, catalogue))
    known = [(meal, catalogue.by_id[meal.recipe_id]) for meal in plan.meals if meal.recipe_id in catalogue.by_id]
    for recipe in {recipe.id: recipe for _, recipe in known}.values():
        found += _broken_by_recipe(recipe, request)
    if plan.meals:
        found += _over_budget(known, request.constraints.budget)
    return tuple(found)


def is_satisfiable(request: Request, catalogue: Catalogue) -> bool:
    """Whether one serving of some recipe is a plan that breaks nothing; checks a claim that no plan exists."""
    return any(
        not violations(Plan((Meal("monday", recipe.id, 1),)), request, catalogue) for recipe in catalogue.recipes
    )


def stands_in(term: str, text: str) -> bool:
    """Whether the term's words stand in the text one after the other; case, accents and plural do not matter.

    `tomato` stands in `Cherry tomatoes, chopped`, `butter` in `peanut butter`; `egg` does not stand in `eggplant`.
    """
    wanted, there = _words(term), _words(text)
    if not wanted:
        return False
    starts = range(len(there) - len(wanted) + 1)
    return any(all(_same(w, there[start + i]) for i, w in enumerate(wanted)) for start in starts)


def same_text(one: str, other: str) -> bool:
    """Whether two texts have the same words; case, accents and plural do not matter. Texts without a word never do."""
    a, b = _words(one), _words(other)
    return bool(a) and len(a) == len(b) and all(map(_same, a, b))


def _form(plan: Plan, catalogue: Catalogue) -> Iterator[str]:
    seen = set()
    for meal in plan.meals:
        if meal.day not in DAYS:
            yield f"{meal.day!r} is no day of the week."
        if meal.day in seen:
            yield f"{meal.day} is planned twice."
        seen.add(meal.day)
        if isinstance(meal.servings, bool) or not isinstance(meal.servings, int) or meal.servings < 1:
            yield f"{meal.day} has {meal.servings!r} servings, not a whole number of at least 1."
        recipe = catalogue.by_id.get(meal.recipe_id)
        if recipe is None:
            yield f"{meal.day} names the recipe {meal.recipe_id!r}, which the catalogue does not have."
        elif not recipe.active:
            yield f"{meal.day} names {recipe.title!r}, which is no longer active."


def _broken_by_recipe(recipe: Recipe, request: Request) -> Iterator[str]:
    for term in request.constraints.excluded_ingredients:
        for kind, text in _described(recipe):
            if stands_in(term, text):
                yield f"{recipe.title!r} has the {kind} {text!r}, but {term!r} is excluded."
    limit = request.constraints.max_prep_time
    if limit is not None and recipe.prep_time is None:
        yield f"{recipe.title!r} has no known prep time, but the limit is {limit} minutes."
    elif limit is not None and recipe.prep_time is not None and recipe.prep_time > limit:
        yield f"{recipe.title!r} takes {recipe.prep_time} minutes, but the limit is {limit}."
    for restriction in request.household.restrictions:
        yield from _broken_restriction(recipe, restriction)


def _described(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield from (("ingredient", ingredient.name) for ingredient in recipe.ingredients)
    yield from (("allergen", allergen) for allergen in recipe.allergens)
    for tag in recipe.tags:
        words = _words(tag)
        if len(words) < 2 or words[-1] != "free":  # `gluten-free` says that there is none
            yield "tag", tag


def _broken_restriction(recipe: Recipe, restriction: str) -> Iterator[str]:
    words = _words(restriction)
    if len(words) > 1 and words[-1] in ("allergy", "allergies"):
        for allergen in recipe.allergens:
            if stands_in(" ".join(words[:-1]), allergen):
                yield f"{recipe.title!r} has the allergen {allergen!r}, against the restriction {restriction!r}."
    elif not any(same_text(tag, restriction) for tag in recipe.tags):
        yield f"{recipe.title!r} does not carry the tag of the restriction {restriction!r}."


def _over_budget(meals: Iterable[tuple[Meal, Recipe]], budget: float | None) -> Iterator[str]:
    if budget is None:
        return
    limit = _money(budget)
    if limit is None:
        yield f"The budget {budget!r} is no amount of money."
        return
    total = Decimal(0)
    for meal, recipe in meals:
        cost = _money(recipe.cost_per_serving)
        if cost is None:
            yield f"{recipe.title!r} has no known cost, but the budget is {limit}."
        elif isinstance(meal.servings, int):
            total = MONEY.add(total, MONEY.multiply(cost, Decimal(meal.servings)))
    if total > limit:
        yield f"The plan costs {total}, but the budget is {limit}."


def _money(amount: float | None) -> Decimal | None:
    """An amount with two decimals, half a cent up; None when it is unknown or no finite number."""
    value = Decimal("NaN") if amount is None else Decimal(str(amount))
    return MONEY.quantize(value, Decimal("0.01")) if value.is_finite() else None


@lru_cache(maxsize=65536)
def _words(text: str) -> tuple[str, ...]:
    letters = []
    for c in unicodedata.normalize("NFKD", text.casefold()).casefold():
        if c.isalnum():
            letters.append(c)
        elif not unicodedata.combining(c) and c not in "'’`´":  # baker's = bakers
            letters.append(" ")
    return tuple("".join(letters).split())


def _same(one: str, other: str) -> bool:
    return one == other or not _readings(one).isdisjoint(_readings(other))


@lru_cache(maxsize=65536)
def _readings(word: str) -> frozenset[str]:
    """The word and every singular that it can be the plural of: leaves -> leaves, leave, leaf, leafe."""
    found = {word}
    if len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        found.add(word[:-1])
        if word.endswith("ies"):
            found |= {word[:-3] + "y", word[:-2]}
        if word.endswith("ves"):
            found |= {word[:-3] + "f", word[:-3] + "fe"}
        if word.endswith("es") and word[:-2].endswith(ES_ENDINGS):
            found.add(word[:-2])
    return frozenset(found)
