"""What is counted over rows is what looking at each of them gives."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st

from planner.dataset.build import build_dataset
from planner.dataset.tally import cents, tally_file
from tests.dataset import small


def test_file_is_counted_as_its_rows_stand_there(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO household_constraints (household_id, budget, max_prep_time, excluded_ingredients) SELECT 'home-' "
        "|| n, n * 2, n * 10, array_fill('x'::text, array[n]) FROM generate_series(1, 8) n; "
        "UPDATE recipes SET cost_per_serving = 3.335, prep_time = 30 WHERE id IN ('r0', 'r1')",
    )
    version = build_dataset(database_url, small.config(tmp_path)).version
    tally = tally_file(version.training_path, version.recipes_path)
    rows = pq.read_table(version.training_path).to_pylist()
    recipes = {row["id"]: row for row in pq.read_table(version.recipes_path).to_pylist()}
    wanted: dict[str, Counter[object]] = {name: Counter() for name in ("dish", "budget used", "minutes used", "split")}
    for row in rows:
        limits, meals = row["input"]["constraints"], row["target"]["accepted_plan"]["meals"]
        chosen = [recipes[meal["recipe_id"]] for meal in meals]
        costs, times = [r["cost_per_serving"] for r in chosen], [r["prep_time"] for r in chosen]
        cost = None if None in costs else sum(cents(c) * meal["servings"] for c, meal in zip(costs, meals, strict=True))
        wanted["dish"].update(r["id"] for r in chosen)
        wanted["budget used"][use(None if limits["budget"] is None else cents(limits["budget"]), cost)] += 1
        wanted["minutes used"][use(limits["max_prep_time"], None if None in times else max(times))] += 1
        wanted["split"][row["split"]] += 1
    assert tally.num_rows == len(rows) == small.ROWS and not tally.nulls and not tally.unknown_recipes
    for name, counts in wanted.items():
        assert {label: n for label, n in tally.counts[name].items() if n} == counts, name
    assert tally.counts["excluded ingredients"] == Counter(
        len(row["input"]["constraints"]["excluded_ingredients"]) for row in rows
    )


def use(limit: float | None, used: float | None) -> str:
    if limit is None:
        return "no limit"
    if used is None:
        return "unknown"
    share = used / limit if limit else math.inf
    return (
        "over the limit" if used > limit else "80 to 100 %" if share > 0.8 else "50 to 80 %" if share > 0.5
        else "up to 50 %"
    )  # fmt: skip


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(2.675)
@example(0.005)
@example(-0.005)
@example(1e300)
def test_money_is_rounded_to_cents_by_its_decimal_text(amount: float) -> None:
    found = cents(amount)
    if abs(amount) < 1e20:
        assert abs(Decimal(found) - Decimal(repr(amount)) * 100) <= Decimal("0.5") + abs(Decimal(found)) / 10**15
    else:
        assert found == amount * 100 or abs(found / amount - 100) < 1e-9
    assert cents(0.005) == 1 and cents(2.675) == 268 and math.isnan(cents(None))
