"""What was in the kitchen when a plan was generated: purchases that have neither gone off nor been used up.

In: purchases and the (household, week) rows to describe. Out: rows of `pantry_snapshots` as COPY text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.dataset.demo.catalogue import DemoCatalogue, Food
from planner.dataset.demo.purchases import Bools, Ints, Purchases, week_start

MAX_ITEMS = 60
PANTRY_COLUMNS = "id, household_id, snapshot_time, items"


def pantry_lines(
    catalogue: DemoCatalogue, purchases: Purchases, ids: tuple[str, ...], rows: tuple[Ints, Ints], used_up: Bools
) -> Iterator[str]:
    """Yield a snapshot for each (household, week) of `rows`, taken when the week begins: most recently bought first.

    `used_up` (household, week, stock) is what accepted plans have used up by then.
    """
    household, week = rows
    foods = catalogue.stocks
    shelf = np.array([food.shelf_days for food in foods])
    starts = np.searchsorted(purchases.household, np.arange(len(ids) + 1))
    row_starts = np.searchsorted(household, np.arange(len(ids) + 1))
    number = 0
    for h in range(len(ids)):
        own = slice(starts[h], starts[h + 1])
        day, stock, pieces = purchases.day[own], purchases.stock[own], purchases.pieces[own]
        for row in range(row_starts[h], row_starts[h + 1]):
            now = 7 * int(week[row])
            gone = used_up[h, int(week[row])]
            items = _items(now, day, stock, pieces, shelf, gone)
            number += 1
            listed = ", ".join(_item_json(foods[s], n, now - d) for d, s, n in items)
            yield f"{number}\t{ids[h]}\t{week_start(int(week[row])).isoformat()}\t[{listed}]\n"


def _items(now: int, day: Ints, stock: Ints, pieces: Ints, shelf: Ints, gone: Bools) -> list[tuple[int, int, int]]:
    """(day, stock, pieces) of the last purchase of each stock before day `now` that is still good, newest first."""
    end = int(np.searchsorted(day, now))
    begin = int(np.searchsorted(day, now - int(shelf.max())))
    last: dict[int, tuple[int, int]] = {}
    for d, s, n in zip(day[begin:end].tolist(), stock[begin:end].tolist(), pieces[begin:end].tolist(), strict=True):
        last[s] = (d, n)
    good = [(d, s, n) for s, (d, n) in last.items() if now - d <= shelf[s] and not gone[s]]
    good.sort(key=lambda item: (-item[0], item[1]))
    return good[:MAX_ITEMS]


def _item_json(food: Food, pieces: int, age: int) -> str:
    # Used up evenly over its shelf life, but a quarter is left while it is good.
    left = food.pack * pieces * max(0.25, 1 - age / food.shelf_days)
    quantity = max(1, round(left)) if food.unit == "ct" else max(10, round(left / 10) * 10)
    return f'{{"name": "{food.name}", "quantity": {quantity}, "unit": "{food.unit}"}}'
