"""Who the households are and what limits their plans, as far as their purchases say.

In: purchases and what they support. Out: size, region, preferences, restrictions, exclusions and versioned limits
for each household. Restrictions and exclusions are given only to households that shopped a lot and never bought
the thing; see docs/demo-data.md for what that can and cannot mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.dataset.demo.catalogue import KINDS, DemoCatalogue, Dish
from planner.dataset.demo.purchases import NUM_WEEKS, Bools, Floats, Ints, Purchases
from planner.dataset.demo.support import MIN_SHARE, Support, unit_hash

LIMITS_FROM_WEEKS = (0, 14, 27, 40)  # weeks in which a version of the limits begins: the start, April, July, October
PREP_STEPS = (20, 30, 45, 60, 90, 120)  # minutes; above the last there is no limit
SIGN_UP_WEEKS = 8  # shopping weeks that stand for what a household tells when it joins
HEAVY_WEEKS, HEAVY_LINES = 26, 400  # shopping weeks and lines in the year from which "never bought" means something
MEATLESS_LINES = 100  # lines from which "never any meat" does; few households are without
# Excluded ingredient -> share of the households that never bought it which exclude it.
EXCLUSIONS = {"pork": 1.0, "beef": 1.0, "fish": 0.5, "shellfish": 0.2, "mushrooms": 0.2, "olives": 0.1}
NUT_ALLERGY_SHARE = 0.2


@dataclass(frozen=True)
class Households:
    """Arrays and tuples by household, in the order of `Purchases.household_ids`.

    `budget` (household, version) in dollars and `max_prep` (household, version) in minutes (0 = no limit) belong to
    `LIMITS_FROM_WEEKS`; `allowed` (household, dish) holds restrictions and exclusions.
    """

    ids: tuple[str, ...]
    size: Ints
    region: tuple[str, ...]
    preferences: tuple[tuple[str, ...], ...]
    restrictions: tuple[tuple[str, ...], ...]
    excluded: tuple[tuple[str, ...], ...]
    allowed: Bools
    budget: Ints
    max_prep: Ints


def derive_households(catalogue: DemoCatalogue, purchases: Purchases, support: Support) -> Households:
    """Derive everything that is known of a household before its plans."""
    num = purchases.num_households
    ids = tuple(f"cj-{number:04d}" for number in purchases.household_ids)
    weeks, lines = (purchases.lines_hw > 0).sum(1), purchases.lines_hw.sum(1)
    heavy = (weeks >= HEAVY_WEEKS) & (lines >= HEAVY_LINES)
    restrictions = _restrictions(ids, purchases, heavy)
    excluded = _exclusions(ids, catalogue, purchases, heavy, restrictions)
    size = _sizes(purchases)
    return Households(
        ids=ids,
        size=size,
        region=tuple(_region(int(store)) for store in purchases.store),
        preferences=_preferences(catalogue, support, num),
        restrictions=restrictions,
        excluded=excluded,
        allowed=_allowed(catalogue, restrictions, excluded),
        budget=_by_version(support, num, lambda rows: _budget(purchases, support, rows), 40),
        max_prep=_by_version(support, num, lambda rows: _max_prep(catalogue, support, rows), 60),
    )


def version_of_week(week: Ints) -> Ints:
    """Which version of the limits holds in a week."""
    return np.asarray(np.searchsorted(LIMITS_FROM_WEEKS, week, side="right") - 1, dtype=np.int64)


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words without their plural endings."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return tuple(re.sub(r"(?<=[a-z]{2})(?<!s)s$", "", re.sub(r"(oes|ies)$", lambda m: m[1][:1], w)) for w in words)


def matches(term: str, text: str) -> bool:
    """Whether an excluded term speaks of `text`: its words stand in it in a row, case and plural ignored."""
    wanted, found = words_of(term), words_of(text)
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def forbids(term: str, dish: Dish) -> bool:
    """Whether excluding `term` rules the dish out, by ingredient, allergen or tag."""
    texts = (*(food.name for food, _ in dish.amounts), *dish.allergens, *dish.tags)
    return any(matches(term, text) for text in texts)


def permits(restriction: str, dish: Dish) -> bool:
    """Whether a dish suits a restriction: `X-allergy` looks at the allergens, any other at the tags."""
    if restriction.endswith("-allergy"):
        return not any(matches(restriction.removesuffix("-allergy"), allergen) for allergen in dish.allergens)
    return restriction in dish.tags


def _restrictions(ids: tuple[str, ...], purchases: Purchases, heavy: Bools) -> tuple[tuple[str, ...], ...]:
    found = []
    for h, name in enumerate(ids):
        own = []
        if purchases.lines_hw[h].sum() >= MEATLESS_LINES and purchases.meat_lines[h] == 0:
            own.append("vegetarian" if purchases.fish_lines[h] == 0 else "pescatarian")
        if heavy[h] and purchases.nut_lines[h] == 0 and unit_hash("nut-allergy", name) < NUT_ALLERGY_SHARE:
            own.append("nut-allergy")
        found.append(tuple(own))
    return tuple(found)


def _exclusions(
    ids: tuple[str, ...],
    catalogue: DemoCatalogue,
    purchases: Purchases,
    heavy: Bools,
    restrictions: tuple[tuple[str, ...], ...],
) -> tuple[tuple[str, ...], ...]:
    bought = np.zeros((len(ids), len(catalogue.stocks)), dtype=bool)
    bought[purchases.household, purchases.stock] = True
    never: dict[str, Bools] = {}
    for term in EXCLUSIONS:
        speaks = [matches(term, food.name) or food.kind == term or term in food.allergens for food in catalogue.stocks]
        never[term] = np.logical_not(bought[:, np.flatnonzero(speaks)].max(axis=1, initial=False))
    meatless = {"vegetarian", "pescatarian"}
    return tuple(
        tuple(
            term
            for term, share in EXCLUSIONS.items()
            if heavy[h]
            and never[term][h]
            and not (meatless & set(restrictions[h]) and term in KINDS)
            and unit_hash("exclude", term, name) < share
        )
        for h, name in enumerate(ids)
    )


def _allowed(
    catalogue: DemoCatalogue, restrictions: tuple[tuple[str, ...], ...], excluded: tuple[tuple[str, ...], ...]
) -> Bools:
    forbidden = {term: np.array([forbids(term, dish) for dish in catalogue.dishes]) for term in EXCLUSIONS}
    names = sorted({name for own in restrictions for name in own})
    permitted = {name: np.array([permits(name, dish) for dish in catalogue.dishes]) for name in names}
    allowed = np.ones((len(restrictions), len(catalogue.dishes)), dtype=bool)
    for h, (needs, terms) in enumerate(zip(restrictions, excluded, strict=True)):
        for name in needs:
            allowed[h] &= permitted[name]
        for term in terms:
            allowed[h] &= ~forbidden[term]
    return allowed


def _sizes(purchases: Purchases) -> Ints:
    """Known sizes, else the size at the same rank of spending among the households of known size."""
    weeks = np.maximum(1, (purchases.lines_hw > 0).sum(1))
    spend = purchases.spend_hw.sum(1) / weeks
    known = purchases.size > 0
    if not known.any():
        return np.full(len(spend), 2, dtype=np.int64)
    spends, sizes = np.sort(spend[known]), np.sort(purchases.size[known])
    rank = np.minimum(np.searchsorted(spends, spend), len(sizes) - 1)
    return np.where(known, purchases.size, sizes[rank])


def _region(store: int) -> str:
    low = 100 * (store // 100)
    return f"stores {low} to {low + 99}" if store < 1000 else "stores 1000 and up"


def _preferences(catalogue: DemoCatalogue, support: Support, num: int) -> tuple[tuple[str, ...], ...]:
    """Up to three cuisines or kinds of food to which a household's first weeks lean most, above what is usual."""
    cuisines = sorted({dish.cuisine for dish in catalogue.dishes} - {"american"})
    terms = (*cuisines, "beef", "pork", "poultry", "seafood", "vegetarian", "quick")
    has_DT = np.array([[term in dish.tags for term in terms] for dish in catalogue.dishes], dtype=np.float64)
    early = _first_weeks(support, num)
    counts = np.zeros((num, len(terms)))
    np.add.at(counts, support.household[early], (support.share[early] >= MIN_SHARE) @ has_DT)
    total = counts.sum(1, keepdims=True)
    usual = counts.sum(0) / max(1.0, counts.sum())
    lean = np.where(counts >= 2, (counts + 1e-9) / (total * usual + 5 * usual + 1e-9), 0.0)
    order = np.argsort(-np.round(lean, 9), axis=1, kind="stable")
    return tuple(tuple(terms[t] for t in order[h, :3] if lean[h, t] > 1.0) for h in range(num))


def _first_weeks(support: Support, num: int) -> Bools:
    """Rows that lie in a household's first `SIGN_UP_WEEKS` shopping weeks."""
    starts = np.searchsorted(support.household, np.arange(num))
    rank = np.arange(len(support.household)) - starts[support.household]
    return np.asarray(rank < SIGN_UP_WEEKS)


def _by_version(support: Support, num: int, measure: Callable[[Ints], int], default: int) -> Ints:
    """A limit per household and version: the first from the sign-up weeks, later ones from the quarter before.

    A quarter with fewer than four shopping weeks leaves the limit as it was.
    """
    values = np.full((num, len(LIMITS_FROM_WEEKS)), default, dtype=np.int64)
    first = _first_weeks(support, num)
    bounds = np.searchsorted(support.household, np.arange(num + 1))
    for h in range(num):
        rows = np.arange(bounds[h], bounds[h + 1])
        if not len(rows):
            continue
        values[h, 0] = measure(rows[first[rows]])
        for version in range(1, len(LIMITS_FROM_WEEKS)):
            low, high = LIMITS_FROM_WEEKS[version - 1 : version + 1]
            quarter = rows[(support.week[rows] >= low) & (support.week[rows] < high)]
            values[h, version] = measure(quarter) if len(quarter) >= 4 else values[h, version - 1]
    return values


def _budget(purchases: Purchases, support: Support, rows: Ints) -> int:
    """Dollars for a week's plan: a quarter above what three of four weeks' food cost, in steps of 5."""
    spends = np.sort(purchases.spend_hw[support.household[rows], support.week[rows]])
    usual = float(spends[(3 * (len(spends) - 1)) // 4])
    return int(max(15, 5 * np.ceil(1.25 * usual / 5)))


def _max_prep(catalogue: DemoCatalogue, support: Support, rows: Ints) -> int:
    """Minutes within which nine of ten supported dishes are cooked, rounded up to a step; 0 for no limit."""
    counts = (support.share[rows] >= MIN_SHARE).sum(0)
    minutes = np.array([dish.prep_time for dish in catalogue.dishes])
    order = np.argsort(minutes, kind="stable")
    passed = np.cumsum(counts[order])
    if not len(passed) or passed[-1] < 5:
        return 60
    reach = int(minutes[order][np.searchsorted(passed, 0.9 * passed[-1])])
    return next((step for step in PREP_STEPS if reach <= step), 0)


def plan_limits(households: Households, household: Ints, week: Ints) -> tuple[Floats, Floats]:
    """Budget in dollars and preparation limit in minutes (infinite where none) for each row."""
    version = version_of_week(week)
    prep = households.max_prep[household, version].astype(np.float64)
    return households.budget[household, version].astype(np.float64), np.where(prep == 0, np.inf, prep)


assert LIMITS_FROM_WEEKS[-1] < NUM_WEEKS
