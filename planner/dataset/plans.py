"""The plans of a batch by event id: fetched and checked together, and the previous plan of each.

In: the database's snapshot and keys of plans (`keys.py`). Out: Arrow structs, null where a plan breaks the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from planner.dataset.columns import column_of, plan_column
from planner.dataset.fetch import fetch_columns

_PREVIOUS = ("id::text", "(payload->'plan')::text")


@dataclass(frozen=True)
class Events:
    """Distinct events of a batch: ids, plans (null where one breaks the contract) and further columns as texts."""

    ids: pa.StringArray
    plans: pa.StructArray
    members: tuple[pa.StringArray, ...]

    def at(self, ids: pa.StringArray) -> Events:
        """The events of the ids, in their order; all null for null."""
        places = pc.index_in(ids, self.ids)
        return Events(ids, self.plans.take(places), tuple(member.take(places) for member in self.members))

    def filter(self, mask: pa.BooleanArray) -> Events:
        """The events where the mask is true."""
        return Events(
            self.ids.filter(mask), self.plans.filter(mask), tuple(member.filter(mask) for member in self.members)
        )


@dataclass(frozen=True)
class Previous:
    """The previous plan of each row, how many are not older than plan time (must be none), and of which rows the keys
    alone did not name it.
    """

    plans: pa.StructArray
    late: int
    other: pa.BooleanArray


def fetch_events(
    connection: Connection, columns: Sequence[str], ids: pa.StringArray, known: pa.StringArray | None = None
) -> Events:
    """Events by id: the plan, and the further columns as texts."""
    table = fetch_columns(connection, columns, "FROM exp.events", "payload", ids)
    first, texts, *members = (column_of(column) for column in table.columns)
    return Events(first, plan_column(texts, known), tuple(members))


def previous_plans(connection: Connection, keys: duckdb.DuckDBPyConnection, kept: pa.Table) -> Previous:
    """The latest acceptance before plan time that is of another plan and meets the contract, for each kept plan."""
    columns = {name: column_of(kept.column(name)) for name in ("p", "t", "previous_p", "previous_us", "previous_rn")}
    ids = column_of(kept.column("previous_id"))
    ids = pc.if_else(pc.fill_null(pc.not_equal(columns["p"], columns["previous_p"]), False), ids, None)
    named = fetch_events(connection, _PREVIOUS, ids).at(ids).plans
    late = pc.and_(named.is_valid(), pc.fill_null(pc.greater_equal(columns["previous_us"], columns["t"]), False))
    missing = pc.and_(named.is_null(), columns["previous_rn"].is_valid())
    num_late = pc.sum(late).as_py() or 0
    if pc.any(missing).as_py():
        plans, num_more = _from_further_back(connection, keys, kept.filter(missing))
        places = pc.if_else(missing, pc.add(pc.cumulative_sum(missing.cast(pa.int64())), len(named) - 1),
                            pa.array(range(len(named)), pa.int64()))  # fmt: skip
        named, num_late = pa.concat_arrays([named, plans]).take(places), num_late + num_more
    return Previous(named, num_late, missing)


def _from_further_back(
    connection: Connection, keys: duckdb.DuckDBPyConnection, rows: pa.Table
) -> tuple[pa.StructArray, int]:
    """Step back from the acceptance that the keys named until one of another plan meets the contract.

    Each round looks twice as far back, so that a household with a long row of broken plans costs a few rounds and not
    one query per plan.
    """
    names = ("ordinal", "h", "p", "t", "previous_rn")
    open_plans = {row["ordinal"]: row for row in rows.select(names).to_pylist()}
    missing = [(number, row["h"], row["previous_rn"]) for number, row in open_plans.items()]
    found: dict[int, tuple[str, int]] = {}
    checked = fetch_events(connection, _PREVIOUS, pa.array([], pa.string()))
    reach = 1
    while steps := _step_back(keys, missing, reach):
        wanted = pa.array([id_ for number, id_, p, *_ in steps if p != open_plans[number]["p"]], pa.string())
        more = fetch_events(connection, _PREVIOUS, wanted)
        checked = Events(
            pa.concat_arrays([checked.ids, more.ids]), pa.concat_arrays([checked.plans, more.plans]), checked.members
        )
        valid = set(more.ids.filter(more.plans.is_valid()).to_pylist())
        lowest: dict[int, int] = {}
        for number, id_, p, us, rn in steps:
            lowest[number] = min(rn, lowest.get(number, rn))
            if number not in found and p != open_plans[number]["p"] and id_ in valid:
                found[number] = (id_, us)
        missing = [(number, open_plans[number]["h"], rn) for number, rn in lowest.items() if number not in found]
        reach *= 2
    late = sum(us >= open_plans[number]["t"] for number, (_, us) in found.items())
    chosen = [found[number][0] if number in found else None for number in open_plans]
    return checked.at(pa.array(chosen, pa.string())).plans, late


def _step_back(
    keys: duckdb.DuckDBPyConnection, missing: Sequence[tuple[int, str, int]], reach: int
) -> list[tuple[int, str, str, int, int]]:
    if not missing:
        return []
    todo: Any = pa.table(list(map(pa.array, zip(*missing, strict=True))), names=["ordinal", "h", "rn"])
    keys.register("todo", todo)
    rows: list[tuple[int, str, str, int, int]] = keys.execute(
        "SELECT todo.ordinal, a.id::VARCHAR, a.p, a.us, a.rn FROM todo JOIN acceptances a ON a.h = todo.h "
        "AND a.rn < todo.rn AND a.rn >= todo.rn - ? ORDER BY todo.ordinal, a.rn DESC",
        [reach],
    ).fetchall()
    keys.unregister("todo")
    return rows
