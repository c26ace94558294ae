"""The previous plan of each row: the acceptance that the keys name, or one further back where that one will not do.

In: the keys of the rows and what was read for them. Out: Arrow structs, null where there is no previous plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from planner.dataset.columns import column_of, plan_structs
from planner.dataset.keys import Keys
from planner.dataset.wide import fetch_plans


@dataclass(frozen=True)
class Previous:
    """The previous plan of each row, how many are not older than plan time (must be none), and of which rows the keys
    alone did not name it.
    """

    plans: pa.StructArray
    late: int
    other: pa.BooleanArray


def previous_plans(connection: Connection, keys: Keys, kept: pa.Table, meals: pa.ListArray) -> Previous:
    """The latest acceptance before plan time that is of another plan and meets the contract, for each kept plan.

    Args:
        connection: in the snapshot that the whole build reads.
        keys: joined.
        kept: plans, as in the table `plans`.
        meals: of the acceptance that the keys name, null where it is of the same plan or breaks the contract.

    Raises:
        DatabaseError: the server refused or went away.
    """
    columns = {name: column_of(kept.column(name)) for name in ("t", "previous_us", "previous_rn")}
    late = pc.and_(meals.is_valid(), pc.fill_null(pc.greater_equal(columns["previous_us"], columns["t"]), False))
    missing = pc.and_(meals.is_null(), columns["previous_rn"].is_valid())
    num_late = pc.sum(late).as_py() or 0
    if pc.any(missing).as_py():
        more, num_more = _from_further_back(connection, keys, kept.filter(missing))
        places = pc.if_else(missing, pc.add(pc.cumulative_sum(missing.cast(pa.int64())), len(meals) - 1),
                            pa.array(range(len(meals)), pa.int64()))  # fmt: skip
        meals, num_late = pa.concat_arrays([meals, more]).take(places), num_late + num_more
    return Previous(plan_structs(meals), num_late, missing)


def _from_further_back(connection: Connection, keys: Keys, rows: pa.Table) -> tuple[pa.ListArray, int]:
    """Step back from the acceptance that the keys named until one of another plan meets the contract.

    Each round looks twice as far back, so that a household with a long row of broken plans costs a few rounds and not
    one query per plan.
    """
    open_plans = {row["ordinal"]: row["t"] for row in rows.select(["ordinal", "t"]).to_pylist()}
    missing = list(zip(open_plans, rows.column("previous_rn").to_pylist(), strict=True))
    found: dict[int, tuple[str, int]] = {}
    ids, meals = fetch_plans(connection, pa.array([], pa.string()))
    reach = 1
    while steps := _step_back(keys, missing, reach):
        wanted = pa.array([id_ for _, id_, same, *_ in steps if not same], pa.string())
        more_ids, more_meals = fetch_plans(connection, wanted)
        ids, meals = pa.concat_arrays([ids, more_ids]), pa.concat_arrays([meals, more_meals])
        valid = set(more_ids.filter(more_meals.is_valid()).to_pylist())
        lowest: dict[int, int] = {}
        for number, id_, same, us, rn in steps:
            lowest[number] = min(rn, lowest.get(number, rn))
            if number not in found and not same and id_ in valid:
                found[number] = (id_, us)
        missing = [(number, rn) for number, rn in lowest.items() if number not in found]
        reach *= 2
    late = sum(us >= open_plans[number] for number, (_, us) in found.items())
    chosen = [found[number][0] if number in found else None for number in open_plans]
    return meals.take(pc.index_in(pa.array(chosen, pa.string()), ids, skip_nulls=True)), late


def _step_back(keys: Keys, missing: Sequence[tuple[int, int]], reach: int) -> list[tuple[int, str, bool, int, int]]:
    """The acceptances before the given ones, the latest first: row, id, whether it is of the row's plan, time, rn."""
    if not missing:
        return []
    todo: Any = pa.table(list(map(pa.array, zip(*missing, strict=True))), names=["ordinal", "rn"])
    keys.engine.register("todo", todo)
    rows: list[tuple[int, str, bool, int, int]] = keys.engine.execute(
        "SELECT todo.ordinal, a.id::VARCHAR, a.p = plans.p, a.us, a.rn FROM todo JOIN plans ON plans.ordinal = "
        "todo.ordinal JOIN acceptances a ON a.h = plans.h AND a.rn < todo.rn AND a.rn >= todo.rn - ? "
        "ORDER BY todo.ordinal, a.rn DESC",
        [reach],
    ).fetchall()
    keys.engine.unregister("todo")
    return rows
