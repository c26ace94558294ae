"""The plans that households accepted: dishes that each week's kitchen supports, ranked by that support and by habit.

In: support, households, costs. Out: one `Plans` of arrays, a row per shopping week that supports three meals or more.
The plan of the week before plays no part in the choice, except that what it used up is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.dataset.demo.catalogue import DemoCatalogue
from planner.dataset.demo.households import Households, plan_limits
from planner.dataset.demo.purchases import NUM_WEEKS, Bools, Floats, Ints
from planner.dataset.demo.support import MIN_SHARE, Support, unit_hash

MIN_MEALS, MAX_MEALS = 3, 7
LONG_MINUTES = 90  # dishes that take as long or longer are cooked from Friday to Sunday
MAX_SERVINGS = 12


@dataclass(frozen=True)
class Plans:
    """Plans as arrays; `dish` and `servings` have shape (plan, 7), Monday first, dish -1 where nothing is cooked."""

    household: Ints
    week: Ints
    dish: Ints
    servings: Ints

    def __len__(self) -> int:
        return len(self.household)


def choose_accepted(
    catalogue: DemoCatalogue, support: Support, households: Households, cost_D: Floats, *, by_habit: bool = True
) -> tuple[Plans, Bools]:
    """Choose each week's dishes within the household's own limits, week after week.

    Args:
        catalogue: the dishes.
        support: what each week's kitchen supports.
        households: their limits.
        cost_D: the cost of one serving of each dish, in whole cents.
        by_habit: rank a dish by the share of its ingredients in the kitchen times the household's habit; for
            comparison by the share alone.

    Returns:
        The plans, and by (household, week, stock) what is used up when the week begins: a piece of a main ingredient
        serves one dish.
    """
    score = _scores(catalogue, support, households, by_habit=by_habit)
    most_H = _usual_meals(score, support, len(households.ids))
    budget, _ = plan_limits(households, support.household, support.week)
    chosen = np.full((len(score), MAX_MEALS), -1, dtype=np.int64)
    servings = np.zeros((len(score), MAX_MEALS), dtype=np.int64)
    left_HS = np.zeros(support.keeping.shape[::2], dtype=np.int64)
    used_up = np.zeros(support.keeping.shape, dtype=bool)
    for week in range(NUM_WEEKS):
        left_HS[~support.keeping[:, week]] = 0
        used_up[:, week] = support.keeping[:, week] & (left_HS == 0)
        left_HS += support.pieces[:, week]
        rows = np.flatnonzero(support.week == week)
        homes = support.household[rows]
        picked = _pick(score[rows], left_HS[homes], support.main, most_H[homes])
        served = _servings(catalogue, picked, left_HS[homes][:, support.main], households.size[homes])
        picked = within_budget(picked, served, cost_D, budget[rows] * 100)
        picked[(picked >= 0).sum(1) < MIN_MEALS] = -1
        chosen[rows], servings[rows] = picked, served
        row, column = np.nonzero(picked >= 0)
        np.subtract.at(left_HS, (homes[row], support.main[picked[row, column]]), 1)
    kept = np.flatnonzero((chosen >= 0).any(1))
    days = preferred_days(catalogue, households.ids)
    dish, picked = assign_days(chosen[kept], servings[kept], days[support.household[kept]])
    return Plans(support.household[kept], support.week[kept], dish, picked), used_up


def preferred_days(catalogue: DemoCatalogue, ids: tuple[str, ...]) -> Ints:
    """The weekday (0 is Monday) on which a household likes to cook each dish, stable over the year."""
    dishes = np.array([unit_hash("day", dish.id) for dish in catalogue.dishes])
    homes = np.array([unit_hash("day", name) for name in ids])
    mixed = np.modf(homes[:, None] * 7919.0 + dishes[None, :] * 104729.0)[0]
    slow = np.array([dish.prep_time >= LONG_MINUTES for dish in catalogue.dishes])
    return np.where(slow[None, :], 4 + (mixed * 3).astype(np.int64), (mixed * 7).astype(np.int64))


def assign_days(chosen: Ints, servings: Ints, days: Ints) -> tuple[Ints, Ints]:
    """Put each plan's dishes, best first, on their preferred days; a taken day gives way to the next free one.

    Args:
        chosen: dishes by (plan, rank), -1 for none.
        servings: of each.
        days: the wished day of each dish, by (plan, dish).

    Returns:
        Dishes and servings by (plan, day), -1 and 0 where nothing is cooked.
    """
    rows = np.arange(len(chosen))
    plan = np.full((len(chosen), 7), -1, dtype=np.int64)
    served = np.zeros((len(chosen), 7), dtype=np.int64)
    for column in range(chosen.shape[1]):
        dish = chosen[:, column]
        open_rows = dish >= 0
        wish = days[rows, np.maximum(dish, 0)]
        for step in range(7):
            day = (wish + step) % 7
            free = open_rows & (plan[rows, day] < 0)
            plan[rows[free], day[free]] = dish[free]
            served[rows[free], day[free]] = servings[rows[free], column]
            open_rows &= ~free
    return plan, served


def _scores(catalogue: DemoCatalogue, support: Support, households: Households, *, by_habit: bool) -> Floats:
    """Rank of each dish by (row, dish), -1 where the kitchen or the household's limits rule it out."""
    _, max_prep = plan_limits(households, support.household, support.week)
    minutes = np.array([dish.prep_time for dish in catalogue.dishes])
    fits = households.allowed[support.household] & (minutes[None, :] <= max_prep[:, None])
    habit = support.habit if by_habit else 1.0 + support.habit * 1e-9
    return np.where(fits & (support.share >= MIN_SHARE), support.share * habit[support.household], -1.0)


def _servings(catalogue: DemoCatalogue, chosen: Ints, pieces: Ints, size: Ints) -> Ints:
    """The household's size, twice that where it has main ingredient for twice as many and at least three pieces."""
    need_D = np.array([dish.amounts[0][1] / dish.amounts[0][0].pack / 4 for dish in catalogue.dishes])
    dish = np.maximum(chosen, 0)
    pieces = np.take_along_axis(pieces, dish, 1)
    ample = (pieces >= 3) & (pieces >= 2 * size[:, None] * need_D[dish])
    return np.where(ample, np.minimum(2 * size[:, None], MAX_SERVINGS), size[:, None])


def _usual_meals(score: Floats, support: Support, num: int) -> Ints:
    """Most meals that a household plans a week: two thirds of what its middle week's purchases bring, 3 to 7."""
    fresh = support.pieces[support.household, support.week][:, support.main] > 0
    supported = ((score > 0) & fresh).sum(1)
    most = np.full(num, MIN_MEALS, dtype=np.int64)
    bounds = np.searchsorted(support.household, np.arange(num + 1))
    for h in range(num):
        counts = supported[bounds[h] : bounds[h + 1]]
        counts = np.sort(counts[counts >= MIN_MEALS])
        if len(counts):
            most[h] = round(2 / 3 * int(counts[len(counts) // 2]))
    return np.clip(most, MIN_MEALS, MAX_MEALS)


def _pick(score: Floats, pieces: Ints, main: Ints, most: Ints) -> Ints:
    """Each row's best dishes; a main ingredient serves as often as there are pieces of it, at most twice a week.

    Args:
        score: by (row, dish), not positive where it cannot be cooked; used up on the way.
        pieces: of each stock in the row's kitchen, by (row, stock).
        main: the stock of each dish's main ingredient.
        most: meals of each row.
    """
    rows = np.arange(len(score))
    left = np.minimum(pieces[:, main], 2)
    score[left <= 0] = -1.0
    chosen = np.full((len(score), MAX_MEALS), -1, dtype=np.int64)
    for column in range(MAX_MEALS):
        best = score.argmax(1)
        taken = (score[rows, best] > 0) & (column < most)
        chosen[taken, column] = best[taken]
        left[taken] -= main[best[taken], None] == main[None, :]
        score[rows, best] = -1.0
        score[left <= 0] = -1.0
    return chosen


def within_budget(chosen: Ints, servings: Ints, cost_D: Floats, budget: Floats) -> Ints:
    """Leave out the dishes, best first, that the budget (cents) no longer pays for; `servings` by (row, rank)."""
    spent = np.zeros(len(chosen))
    kept = chosen.copy()
    for column in range(chosen.shape[1]):
        cost = cost_D[np.maximum(chosen[:, column], 0)] * servings[:, column]
        pays = (chosen[:, column] >= 0) & (spent + cost <= budget)
        spent += np.where(pays, cost, 0.0)
        kept[~pays, column] = -1
    return kept
