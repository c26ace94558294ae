"""The plans that households accepted: dishes that each week's purchases support, ranked by that support and by habit.

In: support, households, costs. Out: one `Plans` of arrays, a row per shopping week that supports three meals or more.
The plan of the week before plays no part in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.dataset.demo.catalogue import DemoCatalogue
from planner.dataset.demo.households import Households, plan_limits
from planner.dataset.demo.purchases import Floats, Ints
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
) -> Plans:
    """Choose each week's dishes within the household's own limits.

    `cost_D` is the cost of one serving of each dish, in whole cents. The rank of a dish is the share of its ingredients
    bought that week times the household's habit; without `by_habit`, for comparison, the share alone.
    """
    budget, max_prep = plan_limits(households, support.household, support.week)
    minutes = np.array([dish.prep_time for dish in catalogue.dishes])
    fits = households.allowed[support.household] & (minutes[None, :] <= max_prep[:, None])
    habit = support.habit if by_habit else 1.0 + support.habit * 1e-9
    score = np.where(fits & (support.share >= MIN_SHARE), support.share * habit[support.household], -1.0)
    servings = _servings(catalogue, support, households)
    chosen = _pick(score, support, _usual_meals(score, support, len(households.ids)))
    chosen = within_budget(chosen, servings, cost_D, budget * 100)
    kept = np.flatnonzero((chosen >= 0).sum(1) >= MIN_MEALS)
    days = preferred_days(catalogue, households.ids)
    dish = assign_days(chosen[kept], days, support.household[kept])
    picked = np.where(dish >= 0, servings[kept[:, None], np.maximum(dish, 0)], 0)
    return Plans(support.household[kept], support.week[kept], dish, picked)


def preferred_days(catalogue: DemoCatalogue, ids: tuple[str, ...]) -> Ints:
    """The weekday (0 is Monday) on which a household likes to cook each dish, stable over the year."""
    dishes = np.array([unit_hash("day", dish.id) for dish in catalogue.dishes])
    homes = np.array([unit_hash("day", name) for name in ids])
    mixed = np.modf(homes[:, None] * 7919.0 + dishes[None, :] * 104729.0)[0]
    slow = np.array([dish.prep_time >= LONG_MINUTES for dish in catalogue.dishes])
    return np.where(slow[None, :], 4 + (mixed * 3).astype(np.int64), (mixed * 7).astype(np.int64))


def assign_days(chosen: Ints, days: Ints, household: Ints) -> Ints:
    """Put each plan's dishes, best first, on their preferred days; a taken day gives way to the next free one."""
    rows = np.arange(len(chosen))
    plan = np.full((len(chosen), 7), -1, dtype=np.int64)
    for column in range(chosen.shape[1]):
        dish = chosen[:, column]
        open_rows = dish >= 0
        wish = days[household, np.maximum(dish, 0)]
        for step in range(7):
            day = (wish + step) % 7
            free = open_rows & (plan[rows, day] < 0)
            plan[rows[free], day[free]] = dish[free]
            open_rows &= ~free
    return plan


def _servings(catalogue: DemoCatalogue, support: Support, households: Households) -> Ints:
    """The household's size, twice that where it bought main ingredient for twice as many and at least three pieces."""
    size = households.size[support.household][:, None]
    need_D = np.array([dish.amounts[0][1] / dish.amounts[0][0].pack / 4 for dish in catalogue.dishes])
    ample = (support.main_pieces >= 3) & (support.main_pieces >= 2 * size * need_D[None, :])
    return np.where(ample, np.minimum(2 * size, MAX_SERVINGS), size)


def _usual_meals(score: Floats, support: Support, num: int) -> Ints:
    """Most meals that a household plans a week: two thirds of what its middle week supports, three to seven."""
    supported = (score > 0).sum(1)
    most = np.full(num, MIN_MEALS, dtype=np.int64)
    bounds = np.searchsorted(support.household, np.arange(num + 1))
    for h in range(num):
        counts = supported[bounds[h] : bounds[h + 1]]
        counts = np.sort(counts[counts >= MIN_MEALS])
        if len(counts):
            most[h] = round(2 / 3 * int(counts[len(counts) // 2]))
    return np.clip(most, MIN_MEALS, MAX_MEALS)


def _pick(score: Floats, support: Support, most: Ints) -> Ints:
    """Take each row's best dishes out of `score`; a main ingredient serves as often as it was bought, at most twice."""
    rows = np.arange(len(score))
    left = np.minimum(support.main_pieces, 2)
    work = score  # used up on the way
    chosen = np.full((len(score), MAX_MEALS), -1, dtype=np.int64)
    same_DD = support.main[:, None] == support.main[None, :]
    for column in range(MAX_MEALS):
        best = work.argmax(1)
        taken = (work[rows, best] > 0) & (column < most[support.household])
        chosen[taken, column] = best[taken]
        left[taken] -= same_DD[best[taken]]
        work[rows, best] = -1.0
        work[left <= 0] = -1.0
    return chosen


def within_budget(chosen: Ints, servings: Ints, cost_D: Floats, budget: Floats) -> Ints:
    """Leave out the dishes, best first, that the budget (cents) no longer pays for."""
    rows = np.arange(len(chosen))
    spent = np.zeros(len(chosen))
    kept = chosen.copy()
    for column in range(chosen.shape[1]):
        dish = np.maximum(chosen[:, column], 0)
        cost = cost_D[dish] * servings[rows, dish]
        pays = (chosen[:, column] >= 0) & (spent + cost <= budget)
        spent += np.where(pays, cost, 0.0)
        kept[~pays, column] = -1
    return kept
