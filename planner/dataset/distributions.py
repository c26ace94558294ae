"""How the rows of a version are distributed: for the profile card, and for the shifts between two versions.

In: `training.parquet` and `recipes.parquet`. Out: counts by name and label, as a stream over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from planner.dataset.scan import scan

# How much of its limit the accepted plan uses; the last two are no measure of tightness but must not be dropped.
_TIGHTNESS = ("up to 50 %", "50 to 80 %", "80 to 100 %", "over the limit", "unknown", "no limit")
# The largest number of each bin; one more bin holds what is over the last.
_ITEMS, _EDITS, _EXCLUDED = (0, 5, 10, 20, 40), (0, 2, 5, 9), (0, 1, 2, 3)


@dataclass(frozen=True)
class Distribution:
    """Counts by label, in the order to show them; `of` says what is counted: `rows` or `meals`."""

    name: str
    of: str
    counts: Mapping[str, int]

    def share(self, label: str) -> float:
        """Share in [0, 1] of a label; 0 where it does not occur."""
        total = sum(self.counts.values())
        return self.counts.get(label, 0) / total if total else 0.0


def distributions_of(training: Path, recipes: Path) -> Mapping[str, Distribution]:
    """Count over the files; texts that a site chose (workflow types, dishes) by falling count, bins in their order.

    Keys: `workflow type`, `mode`, `split`, `meals a plan`, `edits a plan`, `pantry items`, `dish`, `budget used`,
    `minutes used`, `excluded ingredients`, `day`. `budget used` is the accepted plan's cost (cents, by the version's
    catalogue) against the budget, `minutes used` its longest dish against the limit; `unknown` where a dish has no
    cost or time, or has left the catalogue.

    Raises:
        DatasetError: a file cannot be read.
    """
    with scan(training=training, recipes=recipes) as engine:
        found = [
            _by_count(engine, "workflow type", "input.workflow_type"),
            _by_count(engine, "mode", "input.mode"),
            _by_count(engine, "split", "split"),
            _binned(engine, "meals a plan", "len(target.accepted_plan.meals)", tuple("1234567")),
            _ranged(engine, "edits a plan", "len(target.user_edits)", _EDITS),
            _ranged(engine, "pantry items", "len(input.pantry.items)", _ITEMS),
            _ranged(engine, "excluded ingredients", "len(input.constraints.excluded_ingredients)", _EXCLUDED),
            _dishes(engine),
            *_tightness(engine),
            _binned(engine, "day", "(metadata.\"timestamp\" AT TIME ZONE 'UTC')::DATE", ()),
        ]
    return {distribution.name: distribution for distribution in found}


def _by_count(engine: duckdb.DuckDBPyConnection, name: str, column: str) -> Distribution:
    rows = engine.execute(f"SELECT {column}, count(*) AS n FROM training GROUP BY 1 ORDER BY n DESC, 1").fetchall()
    return Distribution(name, "rows", dict(rows))


def _binned(engine: duckdb.DuckDBPyConnection, name: str, label: str, order: tuple[str, ...]) -> Distribution:
    """Counts in the order of the bins; labels of no bin follow in their own order."""
    counted = f"SELECT {label} AS label, count(*) AS n FROM training GROUP BY 1"
    counts = dict(engine.execute(f"SELECT label::VARCHAR AS label, n FROM ({counted}) ORDER BY 1").fetchall())
    return Distribution(name, "rows", {bin_: counts.get(bin_, 0) for bin_ in order} | counts)


def _ranged(engine: duckdb.DuckDBPyConnection, name: str, number: str, tops: tuple[int, ...]) -> Distribution:
    lows = (0, *(top + 1 for top in tops))
    bins = [str(top) if low == top else f"{low} to {top}" for low, top in zip(lows, tops, strict=False)]
    bins.append(f"{lows[-1]} or more")
    cases = " ".join(f"WHEN {number} <= {top} THEN '{label}'" for top, label in zip(tops, bins, strict=False))
    return _binned(engine, name, f"CASE {cases} ELSE '{bins[-1]}' END", tuple(bins))


def _dishes(engine: duckdb.DuckDBPyConnection) -> Distribution:
    rows = engine.execute(
        """
        WITH meals AS (SELECT unnest(target.accepted_plan.meals).recipe_id AS id FROM training)
        SELECT coalesce(any_value(recipes.title), meals.id) AS title, count(*) AS n
        FROM meals LEFT JOIN recipes ON recipes.id = meals.id GROUP BY meals.id ORDER BY n DESC, meals.id
        """
    ).fetchall()
    return Distribution("dish", "meals", dict(rows))


def _tightness(engine: duckdb.DuckDBPyConnection) -> list[Distribution]:
    """One pass over the meals; money in whole cents, so that a plan that costs its budget is not over it."""
    engine.execute(
        f"""
        CREATE TABLE used AS
        WITH meals AS (
            SELECT metadata.event_id AS id, input.constraints.budget AS budget,
                   input.constraints.max_prep_time AS minutes,
                   unnest(target.accepted_plan.meals) AS meal
            FROM training),
        plans AS (
            SELECT any_value(budget) AS budget, any_value(minutes) AS minutes,
                   sum({_cents("recipes.cost_per_serving")} * meal.servings) AS cost,
                   bool_or(recipes.cost_per_serving IS NULL) AS no_cost,
                   max(recipes.prep_time) AS longest, bool_or(recipes.prep_time IS NULL) AS no_time
            FROM meals LEFT JOIN recipes ON recipes.id = meals.meal.recipe_id GROUP BY meals.id)
        SELECT {_use(_cents("budget"), "cost", "no_cost")} AS budget, {_use("minutes", "longest", "no_time")} AS
               minutes, count(*) AS n FROM plans GROUP BY 1, 2
        """
    )
    found = []
    for name in ("budget", "minutes"):
        counts = dict(engine.execute(f"SELECT {name}, sum(n)::BIGINT FROM used GROUP BY 1").fetchall())
        found.append(Distribution(f"{name} used", "rows", {bin_: counts.get(bin_, 0) for bin_ in _TIGHTNESS}))
    return found


def _cents(amount: str) -> str:
    """A double as whole cents by its shortest decimal text, half a cent up; beyond what a decimal holds, as it is."""
    exact = f"round(TRY_CAST({amount}::VARCHAR AS DECIMAL(38, 12)), 2) * 100"
    return f"coalesce(({exact})::DOUBLE, round({amount} * 100))"


def _use(limit: str, used: str, unknown: str) -> str:
    half, most, full, over, not_known, none = (f"'{bin_}'" for bin_ in _TIGHTNESS)
    return (
        f"CASE WHEN {limit} IS NULL THEN {none} WHEN {unknown} THEN {not_known} WHEN {used} > {limit} THEN {over} "
        f"WHEN {used} > 0.8 * {limit} THEN {full} WHEN {used} > 0.5 * {limit} THEN {most} ELSE {half} END"
    )
