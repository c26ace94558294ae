"""How well a household's kitchen supports each dish in a week, and how its habits rank the dishes.

In: purchases by household, week and stock. Out: arrays over (row, dish), a row being one shopping week of a household.
In the kitchen is what is bought in that week, and what was bought before and has not gone off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from planner.dataset.demo.catalogue import DemoCatalogue
from planner.dataset.demo.purchases import Bools, Counts, Floats, Ints, Purchases

MIN_SHARE = 0.4  # of a dish's ingredients by weight of rarity, the main one in the kitchen in any case


@dataclass(frozen=True)
class Support:
    """What each shopping week supports; rows sorted by household, then week.

    `share` (row, dish) is the share of the dish's ingredients in the kitchen, 0 without the main one; `habit`
    (household, dish) is how much the household's year of shopping leans to the dish's ingredients; `main` the stock of
    each dish's main ingredient. `pieces` and `keeping` (household, week, stock) are what is bought in a week, and
    whether what was bought before it is still good when it begins.
    """

    household: Ints
    week: Ints
    share: Floats
    habit: Floats
    main: Ints
    pieces: Counts
    keeping: Bools


def compute_support(catalogue: DemoCatalogue, purchases: Purchases) -> Support:
    """Score every dish for every shopping week."""
    num_stocks = len(catalogue.stocks)
    pieces = purchases.by_week(num_stocks)
    bought = pieces > 0
    active = purchases.lines_hw > 0
    active[:, 0] = False
    weight_SD, main = _weights(catalogue, bought, int(active.sum()))
    household, week = np.nonzero(active)
    keeping = purchases.keeping(np.array([food.shelf_days for food in catalogue.stocks]))
    kitchen = bought[household, week] | keeping[household, week]
    share = kitchen.astype(np.float64) @ weight_SD
    share[~kitchen[:, main]] = 0.0
    share = np.round(share, 9)  # sums may differ in the last bit from machine to machine
    return Support(
        household=household,
        week=week,
        share=share,
        habit=_habit(catalogue, bought, active, weight_SD),
        main=main,
        pieces=pieces,
        keeping=keeping,
    )


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the text of its parts alone."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _weights(catalogue: DemoCatalogue, bought: Bools, num_weeks: int) -> tuple[Floats, Ints]:
    """Weight of each stock in each dish, columns summing to 1; rare ingredients say more (inverse frequency)."""
    index = {food.name: position for position, food in enumerate(catalogue.stocks)}
    rarity = np.log((num_weeks + 1) / (bought.sum((0, 1)) + 1))
    weight_SD = np.zeros((len(catalogue.stocks), len(catalogue.dishes)))
    for column, dish in enumerate(catalogue.dishes):
        rows = [index[food.stock] for food in dish.keys]
        weight_SD[rows, column] = rarity[rows] / rarity[sorted(set(rows))].sum()
    main = np.array([index[dish.main.stock] for dish in catalogue.dishes], dtype=np.int64)
    return weight_SD, main


def _habit(catalogue: DemoCatalogue, bought: Bools, active: Bools, weight_SD: Floats) -> Floats:
    """How often a household buys a dish's ingredients, times how much more than others; ties by a hash."""
    weeks = active.sum(1)
    often_HS = bought.sum(1) / (weeks[:, None] + 4.0)
    usual_S = bought.sum((0, 1)) / max(1, int(weeks.sum()))
    lean_HS = np.log((often_HS + 0.02) / (usual_S + 0.02))
    habit: Floats = (often_HS @ weight_SD) * np.exp(lean_HS @ weight_SD)
    tie = np.array([unit_hash("taste", dish.id) for dish in catalogue.dishes])
    return np.asarray(np.round(habit, 9) + 1e-9 * (1 + tie[None, :]))
