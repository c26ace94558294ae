"""Random scores in place of a model over thousands of fuzzed requests, judged by the independent verifier.

No violation, ever; feasible exactly where brute force finds a plan; on small instances every plan of a whole universe
is tried, and the walk writes those that break nothing and no others.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe, text_title
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.prompt import default_servings, encode_target, parse_plan_text, render_plan
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.day_limits import limits_of_week
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import build_trie, servings_bound
from planner.evaluation.verify import is_satisfiable, violations
from tests.decoding.fuzz import Truth, fuzz_catalogue, fuzz_limits, fuzz_request

VOCABULARY = 1024  # the tiny tokenizer has fewer


class Scores:
    """Three kinds of nonsense that a broken model may say: noise, one fixed opinion, and never enough."""

    def __init__(self, kind: str, numbers: np.random.Generator) -> None:
        self.kind, self.numbers = kind, numbers
        self.fixed = numbers.normal(size=VOCABULARY)

    def choose(self, legal: np.ndarray, moves: PlanMoves) -> int:
        if self.kind == "noise":
            return int(legal[int(self.numbers.normal(size=len(legal)).argmax())])
        if self.kind == "opinion":
            return int(legal[int(self.fixed[legal].argmax())])
        place = moves.place()
        if place.kind == "day" and place.day + 1 < len(WEEKDAYS):  # the next day, as long as there is one
            best = [token for token in legal.tolist() if token != moves._trie.end]
            return best[0]
        return int(legal[-1])


def walk(moves: PlanMoves, scores: Scores) -> int:
    """Write a plan; how many decisions it took."""
    num_decisions = 0
    while len(legal := moves.run_forced()):
        assert np.all(np.diff(legal) > 0)
        moves.take(scores.choose(legal, moves))
        num_decisions += 1
    return num_decisions


def fuzz(base, seed: int, *, num_recipes: int, num_requests: int, brute: bool, limited: bool = False) -> Counter[str]:
    """Plan fuzzed requests and count what came of them; any difference from the truth fails at once.

    `limited` draws limits of single days for each request: those of a version would be the same for all.
    """
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    catalogue, words = fuzz_catalogue(rng, num_recipes)
    truth, trie, index = Truth.of(catalogue, words), build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    found: Counter[str] = Counter(requests=0, feasible=0, infeasible=0, unwritable=0, meals=0, decisions=0)
    for number in range(num_requests):
        request, excluded = fuzz_request(rng)
        limits = fuzz_limits(rng) if limited else {}
        index._limits = limits_of_week(limits)
        exists = truth.has_a_plan(request, excluded, limits)
        if brute:
            satisfiable = is_satisfiable(request, catalogue)
            assert (exists <= satisfiable) if limits else (exists == satisfiable), request
        allowed = index.allowed(request)
        mask = truth.allowed(request, excluded)
        by_day = [truth.allowed_on(mask, limits.get(day)) for day in WEEKDAYS]
        assert np.array_equal(allowed.mask, np.logical_or.reduce(by_day)), request
        assert len(allowed.by_day) == (7 if limits else 0)
        assert all(map(np.array_equal, allowed.by_day, by_day))
        assert (index.infeasible_reason(allowed) is None) == exists, request
        found["requests"] += 1
        if not exists:
            found["infeasible"] += 1
            continue
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, default_servings(request))
        if moves.finished:
            assert not can_be_written(request, allowed.mask, catalogue), request
            found["unwritable"] += 1
            continue
        found["decisions"] += walk(moves, Scores(("noise", "opinion", "never enough")[number % 3], numbers))
        assert not over_day_limits(moves.plan, limits, catalogue), (request, limits)
        check_plan(moves, request, catalogue, base.tokenizer, text=num_recipes < 1000 or number % 10 == 0)
        found["feasible"] += 1
        found["meals"] += len(moves.plan.meals)
    return found


def over_day_limits(plan: Plan, limits: dict[str, int], catalogue: Catalogue) -> list[Meal]:
    """The meals that take longer than their day has, or nobody knows how long."""
    found = []
    for meal in plan.meals:
        minutes = catalogue.by_id[meal.recipe_id].prep_time
        if meal.day in limits and (limits[meal.day] == 0 or minutes is None or minutes > limits[meal.day]):
            found.append(meal)
    return found


def check_plan(moves: PlanMoves, request: Request, catalogue: Catalogue, tokenizer, *, text: bool) -> None:
    plan, usual = moves.plan, default_servings(request)
    assert plan.meals and violations(plan, request, catalogue) == ()
    assert len(plan.recipe_ids) == len(plan.meals) and plan == plan.in_week_order()
    assert all(meal.servings == usual or meal.servings <= servings_bound(usual) for meal in plan.meals)
    if text:  # the tokens are those that training would see, and they read back as the plan
        written = render_plan(plan, request, catalogue)
        assert moves.tokens == encode_target(tokenizer, written)
        assert tokenizer.decode(moves.tokens[:-1]) == written
        assert parse_plan_text(written, request, catalogue) == plan


def can_be_written(request: Request, mask: np.ndarray, catalogue: Catalogue) -> bool:
    """Whether some allowed dish within the budget has a line that does not read like another dish's title."""
    usual, limit = default_servings(request), request.constraints.budget
    for row in np.flatnonzero(mask):
        recipe = catalogue.recipes[row]
        for servings in (usual, *range(1, servings_bound(usual) + 1)):
            line = f"{text_title(recipe.title)} x{servings}"
            plan = Plan((Meal("monday", recipe.id, servings),))
            if (servings == usual or line not in catalogue.by_title) and not violations(plan, request, catalogue):
                return True
    assert limit is not None
    return False


@pytest.mark.parametrize("seed", range(20))
def test_no_violation_and_feasible_where_brute_force_finds_a_plan_on_small_catalogues(base, seed):
    fuzz(base, seed, num_recipes=1 + seed % 10, num_requests=40, brute=True)


@pytest.mark.parametrize("seed", range(20))
def test_no_violation_under_limits_of_single_days_on_small_catalogues(base, seed):
    fuzz(base, seed, num_recipes=1 + seed % 10, num_requests=60, brute=True, limited=True)


@pytest.mark.parametrize("limited", [False, True])
def test_no_violation_and_feasible_where_brute_force_finds_a_plan_at_500_recipes(base, limited):
    found = fuzz(base, 500, num_recipes=500, num_requests=600, brute=True, limited=limited)
    assert found["feasible"] > 250 and found["infeasible"] > 100, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_recipes", "brute", "limited"), [(500, True, False), (500, True, True), (100_000, False, False)]
)
def test_no_violation_in_10000_requests(base, num_recipes, brute, limited, record_property, capsys):
    found = fuzz(base, num_recipes, num_recipes=num_recipes, num_requests=10_000, brute=brute, limited=limited)
    assert found["requests"] == 10_000 == found["feasible"] + found["infeasible"] + found["unwritable"]
    assert found["feasible"] > 5000 and found["infeasible"] > 500
    with capsys.disabled():
        print(
            f"\n{num_recipes:,} recipes{', limits of days' * limited}: 0 violations; "
            + ", ".join(f"{n:,} {name}" for name, n in found.items())
        )


# --- every plan of a small universe ---

DAYS = ("monday", "wednesday", "sunday")
SMALL = (
    Recipe("a", "Soup", (Ingredient("eggs"),), 10, 1.0, ("vegan",), ("eggs",)),
    Recipe("b", "Soup Pie", (Ingredient("nuts"),), 30, 2.5, ("quick", "vegan"), ("nuts",)),
    Recipe("c", "Soup x3", (Ingredient("milk"),), None, None, ("vegan",)),
)
LIMITS = [
    Request(Household("h", size, (), restrictions), constraints=Constraints(budget, minutes, excluded))
    for size in (1, 4)
    for restrictions in ((), ("nut-allergy",), ("quick",), ("nobody-knows",))
    for budget in (None, 0.0, 1.0, 3.49, 3.5, 12.0)
    for minutes in (None, 10, 29)
    for excluded in ((), ("egg",), ("milk", "nuts"))
]


WEEKS = [
    {day: minutes for day, minutes in zip(DAYS, week, strict=True) if minutes is not None}
    for week in ((10, None, None), (0, 29, None), (None, 10, 0), (30, 10, 9), (9, 9, 9), (0, 0, 0), (30, 0, 30))
]


def universe(catalogue: Catalogue, usual: int) -> Iterator[Plan]:
    """Every plan of up to three days with telling servings, dishes twice included, and none at all."""
    bound = servings_bound(usual)
    portions = sorted({1, 2, 3, usual, bound, bound + 1})
    dishes = [recipe.id for recipe in catalogue.recipes]
    for num_meals in range(len(DAYS) + 1):
        for days in combinations(DAYS, num_meals):
            for meals in product(product(dishes, portions), repeat=num_meals):
                yield Plan(tuple(Meal(day, dish, n) for day, (dish, n) in zip(days, meals, strict=True)))


def writes(moves: PlanMoves, tokens: list[int]) -> bool:
    """Whether the walk can write exactly these tokens."""
    for token in tokens:
        if moves.finished or token not in moves.legal_tokens():
            return False
        moves.take(token)
    return moves.finished


def check_universe(base, request: Request, num_dishes: int, days: dict[str, int] | None = None) -> tuple[int, int]:
    """Try every plan of the universe; how many there are, and how many break nothing.

    With limits of `days` those that are not in the universe are free.
    """
    catalogue = Catalogue.of(SMALL[:num_dishes])
    limits = dict.fromkeys(set(WEEKDAYS).difference(DAYS), 0) | days if days else {}
    index = ConstraintIndex(catalogue, max_prep_time_by_day=limits)
    trie, usual = build_trie(catalogue, base.tokenizer), default_servings(request)
    allowed = index.allowed(request)
    plans = [plan for plan in universe(catalogue, usual)]
    texts = [render_plan(plan, request, catalogue) for plan in plans]
    tokens = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    num_valid = 0
    for plan, text, ids in zip(plans, texts, tokens, strict=True):
        valid = bool(plan.meals) and len(plan.recipe_ids) == len(plan.meals)
        valid = valid and all(m.servings <= servings_bound(usual) for m in plan.meals)
        valid = valid and not violations(plan, request, catalogue)
        valid = valid and not over_day_limits(plan, limits, catalogue)
        num_valid += valid
        if plan.meals and parse_plan_text(text, request, catalogue) != plan:
            continue  # `Soup x3` as three servings of Soup: that text means the dish
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, usual)
        assert writes(moves, [*ids, trie.end]) is valid, (plan, request)
    assert (index.infeasible_reason(allowed) is None) == (num_valid > 0), request
    return len(plans), num_valid


@pytest.mark.parametrize("place", [2, 31, 250])
def test_the_walk_writes_every_plan_that_breaks_nothing_and_no_other(base, place):
    num_plans, _ = check_universe(base, LIMITS[place], 2)
    assert num_plans > 1000
    check_universe(base, LIMITS[place], 2, WEEKS[place % len(WEEKS)])


@pytest.mark.slow
def test_the_walk_writes_every_plan_within_the_limits_of_days_and_no_other(base, capsys):
    some = [replace(request, mode="d") for request in LIMITS[:: 432 // 18]]
    counts = np.array([check_universe(base, request, 2, week) for request in some for week in WEEKS])
    more = np.array([check_universe(base, some[0], 3, week) for week in WEEKS])
    assert (counts[:, 1] > 0).any() and (counts[:, 1] == 0).any() and (more[:, 1] > 0).any()
    total, valid = (counts.sum(0) + more.sum(0)).tolist()
    with capsys.disabled():
        print(f"\n{len(counts) + len(more)} small instances, limits of days: {total:,} plans tried, {valid:,} valid")


@pytest.mark.slow
def test_the_walk_writes_every_plan_that_breaks_nothing_and_no_other_whatever_the_limits(base, capsys):
    counts = np.array([check_universe(base, request, 2) for request in LIMITS])
    more = np.array([check_universe(base, replace(LIMITS[place], mode="m"), 3) for place in range(0, len(LIMITS), 29)])
    assert (counts[:, 1] > 0).any() and (counts[:, 1] == 0).any() and (more[:, 1] > 0).any()
    total, valid = (counts.sum(0) + more.sum(0)).tolist()
    with capsys.disabled():
        print(f"\n{len(counts) + len(more)} small instances: {total:,} plans tried, {valid:,} of them valid")
