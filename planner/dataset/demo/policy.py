"""What the logged policy proposed: a simple planner that knows only the weeks before.

In: accepted plans of earlier weeks, households. Out: one proposed plan per row, within the household's limits.
It scores a dish by how often the household accepted it lately and by how often everybody did, with some chance.
"""

from __future__ import annotations

import numpy as np

from planner.dataset.demo.catalogue import DemoCatalogue
from planner.dataset.demo.households import Households, plan_limits
from planner.dataset.demo.plans import MAX_MEALS, Plans, assign_days, preferred_days, within_budget
from planner.dataset.demo.purchases import NUM_WEEKS, Bools, Floats, Ints
from planner.dataset.demo.support import unit_hash

MEMORY = 0.8  # what is left of an accepted dish's count a week later
OWN_WEIGHT, CHANCE = 0.4, 0.25  # of the household's favourites against everybody's, and of a dish nobody asked for
FIRST_MEALS = 5  # proposed to a household without a plan so far

MODES = ("autopilot", "exploratory", "constrained")
WORKFLOWS = ("plan-first", "meal-first", "pantry-first")


def modes_of(households: Households) -> tuple[str, ...]:
    """Each household's mode: `constrained` with restrictions or exclusions, else one in four exploratory."""
    return tuple(
        "constrained" if needs or terms else "exploratory" if unit_hash("mode", name) < 0.25 else "autopilot"
        for name, needs, terms in zip(households.ids, households.restrictions, households.excluded, strict=True)
    )


def workflows_of(households: Households) -> tuple[str, ...]:
    """Each household's workflow, by a stable hash: 60, 25 and 15 per cent."""
    chances = (unit_hash("workflow", name) for name in households.ids)
    return tuple(WORKFLOWS[0 if c < 0.6 else 1 if c < 0.85 else 2] for c in chances)


def propose(
    catalogue: DemoCatalogue, households: Households, accepted: Plans, rows: tuple[Ints, Ints], cost_D: Floats
) -> Plans:
    """Propose a plan for each (household, week) of `rows`, which are sorted by household and week.

    `cost_D` is the cost of one serving of each dish, in whole cents.
    """
    household, week = rows
    num_homes, num_dishes = households.allowed.shape
    own_HD, popular_D = np.zeros((num_homes, num_dishes)), np.zeros(num_dishes)
    meals_H = np.full(num_homes, FIRST_MEALS, dtype=np.int64)
    chosen = np.full((len(household), MAX_MEALS), -1, dtype=np.int64)
    known = np.zeros((len(household), MAX_MEALS), dtype=bool)
    fits = _fits(catalogue, households, household, week)
    bold_H = np.array([2.0 if mode == "exploratory" else 1.0 for mode in modes_of(households)])
    chance = _chance(catalogue, households)
    for now in range(NUM_WEEKS):
        at = np.flatnonzero(week == now)
        homes = household[at]
        score = OWN_WEIGHT * own_HD[homes] + popular_D / max(1.0, popular_D.max())
        noise = np.modf((chance[homes] + now * 0.6180339887) * 9973.0)[0]
        score = np.where(fits[at], score + CHANCE * bold_H[homes, None] * noise, -1.0)
        order = np.argsort(-np.round(score, 9), axis=1, kind="stable")[:, :MAX_MEALS]
        good = (np.take_along_axis(score, order, 1) > 0) & (np.arange(MAX_MEALS) < meals_H[homes, None])
        chosen[at] = np.where(good, order, -1)
        known[at] = own_HD[homes[:, None], order] > 0
        _remember(accepted, now, own_HD, popular_D, meals_H)
    budget, _ = plan_limits(households, household, week)
    servings = np.repeat(households.size[household][:, None], MAX_MEALS, 1)
    chosen = within_budget(chosen, servings, cost_D, budget * 100)
    dish, served = assign_days(chosen, servings, _days(catalogue, households, household, chosen, known))
    return Plans(household, week, dish, served)


def _fits(catalogue: DemoCatalogue, households: Households, household: Ints, week: Ints) -> Bools:
    _, max_prep = plan_limits(households, household, week)
    minutes = np.array([dish.prep_time for dish in catalogue.dishes])
    return np.asarray(households.allowed[household] & (minutes[None, :] <= max_prep[:, None]))


def _chance(catalogue: DemoCatalogue, households: Households) -> Floats:
    homes = np.array([unit_hash("chance", name) for name in households.ids])
    dishes = np.array([unit_hash("chance", dish.id) for dish in catalogue.dishes])
    return np.asarray(np.modf(homes[:, None] * 6151.0 + dishes[None, :] * 49157.0)[0])


def _remember(accepted: Plans, now: int, own_HD: Floats, popular_D: Floats, meals_H: Ints) -> None:
    own_HD *= MEMORY
    at = np.flatnonzero(accepted.week == now)
    dish = accepted.dish[at]
    plan, day = np.nonzero(dish >= 0)
    own_HD[accepted.household[at][plan], dish[plan, day]] += 1.0
    np.add.at(popular_D, dish[plan, day], 1.0)
    meals_H[accepted.household[at]] = (dish >= 0).sum(1)


def _days(catalogue: DemoCatalogue, households: Households, household: Ints, chosen: Ints, known: Bools) -> Ints:
    """Day wishes by (row, dish): the household's own where it accepted the dish lately, else one for everybody."""
    own = preferred_days(catalogue, households.ids)
    days = np.array([int(unit_hash("policy day", dish.id) * 7) for dish in catalogue.dishes])
    wish = np.repeat(days[None, :], len(chosen), 0)
    row, column = np.nonzero(known & (chosen >= 0))
    wish[row, chosen[row, column]] = own[household[row], chosen[row, column]]
    return wish
