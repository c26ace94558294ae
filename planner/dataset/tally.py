"""What is counted over the rows of a version: as they are written, or as they are read back from a finished file.

In: record batches of the training schema, and the catalogue. Out: a `Tally`, whose size hangs on what the rows hold
(days, dishes, policy versions), not on how many they are.
"""

from __future__ import annotations

import math
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planner.contracts.errors import DatasetError
from planner.dataset.arrays import per_list
from planner.dataset.coded import CODED, as_type
from planner.dataset.write import NULLABLE

_BATCH_ROWS = 4096
_DAY_US = 86_400_000_000
# How much of its limit an accepted plan uses; the last two are no measure of tightness but must not be dropped.
TIGHTNESS = ("up to 50 %", "50 to 80 %", "80 to 100 %", "over the limit", "unknown", "no limit")


class Tally:
    """Running counts over rows.

    `nulls` counts nulls by path in fields that the contract requires, `unknown_recipes` meals of accepted plans whose
    recipe is not in the catalogue. `counts` holds, by name, how many rows (or meals, for `dish`) have a value:
    `split`, `workflow type`, `mode`, `policy version`, `day` (days since 1970), `meals a plan`, `edits a plan`,
    `pantry items`, `excluded ingredients`, `dish` (recipe ids), `budget used` and `minutes used` (by `TIGHTNESS`).

    Args:
        recipes: the catalogue, of `RECIPES_SCHEMA`.
    """

    def __init__(self, recipes: pa.Table) -> None:
        ids = recipes.column("id").to_pylist()
        costs, minutes = (recipes.column(name).to_pylist() for name in ("cost_per_serving", "prep_time"))
        self._cents = {id_: math.nan if cost is None else cents(cost) for id_, cost in zip(ids, costs, strict=True)}
        self._minutes = {id_: math.nan if m is None else float(m) for id_, m in zip(ids, minutes, strict=True)}
        self.num_rows, self.unknown_recipes = 0, 0
        self.nulls: Counter[str] = Counter()
        self.counts: dict[str, Counter[Any]] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        """Count some rows more."""
        self.num_rows += rows.num_rows
        for field, column in zip(rows.schema, rows.columns, strict=True):
            _count_nulls(column, field.name, self.nulls)
        given, target, metadata = (rows.column(name) for name in ("input", "target", "metadata"))
        limits, meals = given.field("constraints"), target.field("accepted_plan").field("meals")
        self._count("split", rows.column("split"))
        self._count("workflow type", given.field("workflow_type"))
        self._count("mode", given.field("mode"))
        self._count("policy version", metadata.field("policy_version_id"))
        self._count("day", pa.array(metadata.field("timestamp").cast(pa.int64()).to_numpy() // _DAY_US))
        self._count("meals a plan", pc.list_value_length(meals))
        self._count("edits a plan", pc.list_value_length(target.field("user_edits")))
        self._count("pantry items", pc.list_value_length(given.field("pantry").field("items")))
        self._count("excluded ingredients", pc.list_value_length(limits.field("excluded_ingredients")))
        self._count_meals(meals, limits)

    def _count(self, name: str, column: pa.Array) -> None:
        found = pc.value_counts(column)
        counts = self.counts.setdefault(name, Counter())
        for value, count in zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True):
            counts[value] += count

    def _count_meals(self, meals: pa.ListArray, limits: pa.StructArray) -> None:
        """One pass over the meals; money in whole cents, so that a plan that costs its budget is not over it."""
        flat = meals.flatten()
        coded = as_type(flat.field("recipe_id"), CODED)
        names = [*coded.dictionary.to_pylist(), ""]  # null is as the empty one
        codes = pc.fill_null(coded.indices, len(names) - 1).to_numpy()
        found = np.bincount(codes, minlength=len(names)).tolist()
        dishes = {name: count for name, count in zip(names, found, strict=True) if count}
        self.counts.setdefault("dish", Counter()).update(dishes)
        self.unknown_recipes += sum(count for name, count in dishes.items() if name not in self._cents)
        servings = pc.fill_null(flat.field("servings"), 0).to_numpy()
        cost = _values_at(codes, names, self._cents) * servings
        budgets = limits.field("budget").dictionary_encode()
        limit = np.array([*map(cents, budgets.dictionary.to_pylist()), math.nan])
        self._count_use("budget used", limit[pc.fill_null(budgets.indices, -1).to_numpy()], meals, cost, np.add)
        minutes = pc.fill_null(limits.field("max_prep_time").cast(pa.float64()), math.nan).to_numpy()
        self._count_use("minutes used", minutes, meals, _values_at(codes, names, self._minutes), np.maximum)

    def _count_use(
        self, name: str, limit: np.ndarray, meals: pa.ListArray, numbers: np.ndarray, fold: np.ufunc
    ) -> None:
        """How much of its limit (NaN: none) each plan uses; a meal without a number (NaN) leaves that unknown."""
        used = per_list(meals, numbers, fold.reduceat)
        with np.errstate(invalid="ignore"):
            conditions = [np.isnan(limit), np.isnan(used), used > limit, used > 0.8 * limit, used > 0.5 * limit]
        half, most, full, over, unknown, none = range(len(TIGHTNESS))
        found = np.bincount(np.select(conditions, [none, unknown, over, full, most], half), minlength=len(TIGHTNESS))
        self.counts.setdefault(name, Counter()).update(dict(zip(TIGHTNESS, found.tolist(), strict=True)))


def tally_file(training: Path, recipes: Path) -> Tally:
    """Count over a finished file, a few thousand rows at a time.

    Raises:
        DatasetError: a file cannot be read.
    """
    try:
        tally = Tally(pq.read_table(recipes, page_checksum_verification=True))
        with pq.ParquetFile(training, page_checksum_verification=True, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                tally.add(batch)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{training}, {recipes} cannot be read: {' '.join(str(error).split())[:200]}. Fetch or build the dataset "
            "again."
        ) from None
    return tally


@lru_cache(maxsize=1 << 16)
def cents(amount: float | None) -> float:
    """A double as whole cents by its shortest decimal text, half a cent up; beyond 26 digits, and None, as a double."""
    if amount is None:
        return math.nan
    if not abs(amount) < 1e26:
        return amount * 100
    return float((_rounded(_rounded(Decimal(repr(amount)), "1e-12"), "0.01")) * 100)


def _rounded(amount: Decimal, step: str) -> Decimal:
    try:
        return amount.quantize(Decimal(step), ROUND_HALF_UP)
    except InvalidOperation:  # more digits than a decimal of 28 holds: nothing is left to round
        return amount


def _values_at(codes: np.ndarray, names: list[str], values: dict[str, float]) -> np.ndarray:
    found: np.ndarray = np.array([values.get(name, math.nan) for name in names], np.float64)[codes]
    return found


def _count_nulls(values: pa.Array, path: str, nulls: Counter[str], missing: int = 0) -> None:
    """Count nulls where the contract has none; `missing` of them are within parents that are null themselves."""
    if values.null_count > missing and path not in NULLABLE:
        nulls[path] += values.null_count - missing
    if pa.types.is_struct(values.type):
        for field, column in zip(values.type, values.flatten(), strict=True):  # null where the struct is null
            _count_nulls(column, f"{path}.{field.name}", nulls, values.null_count)
    elif pa.types.is_list(values.type):
        _count_nulls(values.flatten(), f"{path}.element", nulls)
