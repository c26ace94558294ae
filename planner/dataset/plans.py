"""The plans of a batch by event id: fetched and checked together, and the previous plan of each.

In: the database's snapshot and keys of plans (`keys.py`). Out: Arrow structs, null where a plan breaks the contract.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.dataset.columns import column_of, plan_column
from planner.dataset.fetch import fetch_columns

Key = dict[str, Any]
_PREVIOUS = ("id::text", "(payload->'plan')::text")


@dataclass(frozen=True)
class Events:
    """Events of a batch: `members` by id are further columns as texts, `places` where the plan of an id stands."""

    members: Mapping[str, tuple[Any, ...]]
    places: Mapping[str, int]
    plans: pa.StructArray

    @classmethod
    def empty(cls) -> Events:
        """None yet."""
        return cls({}, {}, pa.array([], schema.PLAN))

    def is_valid(self, id_: str) -> bool:
        """Whether the event's plan meets the contract."""
        return id_ in self.places and self.plans[self.places[id_]].is_valid

    def take(self, ids: Sequence[str | None]) -> pa.StructArray:
        """The plans of the ids; null for None."""
        return self.plans.take(pa.array([None if id_ is None else self.places[id_] for id_ in ids], pa.int64()))

    def joined(self, other: Events) -> Events:
        """Both."""
        places = {**self.places, **{id_: place + len(self.plans) for id_, place in other.places.items()}}
        return Events({**self.members, **other.members}, places, pa.concat_arrays([self.plans, other.plans]))


def fetch_events(
    connection: Connection, columns: Sequence[str], ids: Collection[str], known: pa.StringArray | None = None
) -> Events:
    """Events by id: the plan, and the further columns as texts."""
    table = fetch_columns(connection, columns, "FROM exp.events", "payload", ids)
    rows = list(zip(*(column.to_pylist() for column in (table.column(0), *table.columns[2:])), strict=True))
    places = {row[0]: place for place, row in enumerate(rows)}
    return Events({row[0]: row[1:] for row in rows}, places, plan_column(column_of(table.column(1)), known))


def previous_plans(
    connection: Connection, keys: duckdb.DuckDBPyConnection, kept: Sequence[Key]
) -> tuple[pa.StructArray, int, set[int]]:
    """The previous plan of each kept plan, how many of them are not older than plan time (must be none), and the
    ordinals of those for which the keys did not name it.

    Steps back from the latest acceptance before plan time until one of another plan meets the contract.

    The first step came with the keys; the others look twice as far back each round, so that a household with a long
    row of broken plans costs a few rounds and not one query per plan.
    """
    found: dict[int, tuple[str, int]] = {}
    checked = Events.empty()
    open_plans = {plan["ordinal"]: plan for plan in kept if plan["previous_rn"] is not None}
    steps: list[tuple[int, str, str, int, int]] = [
        (number, plan["previous_id"], plan["previous_p"], plan["previous_us"], plan["previous_rn"])
        for number, plan in open_plans.items()
    ]
    reach = 1
    while steps:
        wanted = {id_ for number, id_, p, *_ in steps if p != open_plans[number]["p"] and id_ not in checked.places}
        checked = checked.joined(fetch_events(connection, _PREVIOUS, wanted))
        lowest: dict[int, int] = {}
        for number, id_, p, us, rn in steps:
            lowest[number] = min(rn, lowest.get(number, rn))
            if number not in found and p != open_plans[number]["p"] and checked.is_valid(id_):
                found[number] = (id_, us)
        missing = [(number, open_plans[number]["h"], rn) for number, rn in lowest.items() if number not in found]
        steps, reach = _step_back(keys, missing, reach), reach * 2
    late = sum(us >= open_plans[number]["t"] for number, (_, us) in found.items())
    chosen = [found[plan["ordinal"]][0] if plan["ordinal"] in found else None for plan in kept]
    other = {plan["ordinal"] for plan, id_ in zip(kept, chosen, strict=True) if id_ != plan["previous_id"]}
    return checked.take(chosen), late, other


def _step_back(
    keys: duckdb.DuckDBPyConnection, missing: Sequence[tuple[int, str, int]], reach: int
) -> list[tuple[int, str, str, int, int]]:
    if not missing:
        return []
    todo = pa.table(list(map(pa.array, zip(*missing, strict=True))), names=["ordinal", "h", "rn"])
    keys.register("todo", todo)
    rows: list[tuple[int, str, str, int, int]] = keys.execute(
        "SELECT todo.ordinal, a.id::VARCHAR, a.p, a.us, a.rn FROM todo JOIN acceptances a ON a.h = todo.h "
        "AND a.rn < todo.rn AND a.rn >= todo.rn - ? ORDER BY todo.ordinal, a.rn DESC",
        [reach],
    ).fetchall()
    keys.unregister("todo")
    return rows
