"""The five scores of one replayed request, by `spec/evaluation.md`; pure functions.

In: the predicted and the accepted plan, the request and the catalogue. Out: a `RowScores`, each in [0, 1].

Where the spec is silent: an empty plan scores 0 on diversity and leftovers, as it does on alignment and edits, so that
planning nothing never pays; a plan whose dishes have no known ingredient scores 0 on leftovers; two dishes without
ingredients have a Jaccard of 0, the spec's own rule for two empty sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from itertools import combinations

from planner.contracts.catalogue import Catalogue, Ingredient
from planner.contracts.plan import DAY_INDEX, Edit, Plan
from planner.evaluation.words import ingredient_key


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of one plan, named as everywhere; `edits` is the number of operations behind the edit distance."""

    plan_alignment_score: float
    constraint_respect_score: float
    edit_distance_score: float
    diversity_score: float
    leftovers_score: float
    edits: int


def score_plan(
    predicted: Plan,
    accepted: Plan,
    pantry: Iterable[Ingredient],
    catalogue: Catalogue,
    *,
    respected: bool = True,
    feasible: bool = True,
) -> RowScores:
    """Score one predicted plan.

    Args:
        predicted: empty for a request that no plan can satisfy.
        accepted: what the household accepted.
        pantry: its items at plan time.
        catalogue: where the ingredients stand; a dish that it lacks has none.
        respected: whether the verifier found no violation.
        feasible: False scores 0 on alignment and edit distance whatever the plans.
    """
    edits = edit_operations(predicted, accepted)
    dishes = [_ingredient_keys(meal.recipe_id, catalogue) for meal in predicted.meals]
    return RowScores(
        plan_alignment_score=jaccard(predicted.recipe_ids, accepted.recipe_ids) if feasible else 0.0,
        constraint_respect_score=1.0 if respected else 0.0,
        edit_distance_score=edit_distance_score(edits, len(predicted.meals)) if feasible else 0.0,
        diversity_score=diversity_score(dishes),
        leftovers_score=leftovers_score(dishes, frozenset(ingredient_key(item.name) for item in pantry)),
        edits=edits,
    )


def jaccard(one: Set[str], other: Set[str]) -> float:
    """Shared elements over all elements; both empty gives 0."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def edit_operations(predicted: Plan, accepted: Plan) -> int:
    """The fewest swap_meal, adjust_servings, add_meal and remove_meal that turn one plan into the other, day by day."""
    return len(edits_between(predicted, accepted))


def edits_between(predicted: Plan, accepted: Plan) -> tuple[Edit, ...]:
    """One shortest list of those operations, Monday first.

    A swap keeps the servings, so a day with another dish and other servings costs two, as removing and adding would.
    """
    before = {meal.day: meal for meal in predicted.meals}
    after = {meal.day: meal for meal in accepted.meals}
    edits: list[Edit] = []
    for day in sorted(before.keys() | after.keys(), key=lambda day: DAY_INDEX[day]):
        old, new = before.get(day), after.get(day)
        if new is None:
            edits.append(Edit("remove_meal", day))
        elif old is None:
            edits.append(Edit("add_meal", day, recipe_id=new.recipe_id, servings=new.servings))
        else:
            if old.recipe_id != new.recipe_id:
                edits.append(Edit("swap_meal", day, from_recipe=old.recipe_id, to_recipe=new.recipe_id))
            if old.servings != new.servings:
                edits.append(Edit("adjust_servings", day, servings=new.servings))
    return tuple(edits)


def edit_distance_score(num_edits: int, num_meals: int) -> float:
    """1 minus edits per predicted meal, at least 0."""
    return 1.0 - min(1.0, num_edits / max(1, num_meals))


def diversity_score(dishes: list[frozenset[str]]) -> float:
    """1 minus the mean pairwise Jaccard of the meals' ingredient sets; one meal gives 1, none gives 0."""
    if len(dishes) < 2:
        return float(len(dishes))
    pairs = [jaccard(one, other) for one, other in combinations(dishes, 2)]
    return 1 - sum(pairs) / len(pairs)


def leftovers_score(dishes: list[frozenset[str]], pantry: frozenset[str]) -> float:
    """Share of the plan's distinct ingredients that the pantry holds or two meals use; no ingredient gives 0."""
    uses = Counter(key for dish in dishes for key in dish)
    if not uses:
        return 0.0
    return sum(1 for key, count in uses.items() if count >= 2 or key in pantry) / len(uses)


def _ingredient_keys(recipe_id: str, catalogue: Catalogue) -> frozenset[str]:
    recipe = catalogue.by_id.get(recipe_id)
    keys = (ingredient_key(ingredient.name) for ingredient in recipe.ingredients) if recipe else ()
    return frozenset(key for key in keys if key)
