"""The rows of a dataset version, batch by batch: wide values fetched by id and set beside the keys.

In: the database's snapshot and the `plans` of `keys.py`. Out: record batches of `TRAINING_SCHEMA` in the order of the
file, and counts of what was left out. Memory is bounded by the batch, not by the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import psycopg2
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.split import split_of
from planner.dataset import arrays, values
from planner.dataset.database import query_error
from planner.dataset.keys import EDIT_KINDS
from planner.dataset.values import Meals, Notes

BATCH_PLANS = 4096
_FETCH_ROWS = 512
Key = dict[str, Any]
Rows = dict[Any, tuple[Any, ...]]


@dataclass
class Assembly:
    """Running counts of one build; `late_previous` and `late_pantry` break the point-in-time rule and must stay 0."""

    invalid_plans: int = 0
    late_previous: int = 0
    late_pantry: int = 0
    notes: Notes = field(default_factory=Counter)


def iter_batches(
    connection: Connection, keys: duckdb.DuckDBPyConnection, known_recipes: Collection[str], assembly: Assembly
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in the order of `plans`, without those whose accepted plan breaks the contract.

    Raises:
        DatabaseError: the server refused or went away.
    """
    (total,), *_ = keys.execute("SELECT count(*) FROM plans").fetchall()
    for start in range(0, total, BATCH_PLANS):
        result = keys.execute(
            "SELECT ordinal, h, p, t, generated_id::VARCHAR AS generated_id, accepted_us, accepted_id::VARCHAR AS "
            "accepted_id, pantry_id, pantry_us, previous_rn, previous_id::VARCHAR AS previous_id, previous_p, "
            "previous_us, edit_ids::VARCHAR[] AS edit_ids FROM plans WHERE ordinal >= ? AND ordinal < ? "
            "ORDER BY ordinal",
            [start, start + BATCH_PLANS],
        )
        names = [column[0] for column in result.description or ()]
        plans = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        yield _assemble(connection, keys, plans, known_recipes, assembly)


def _assemble(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    plans: Sequence[Key],
    known: Collection[str],
    assembly: Assembly,
) -> pa.RecordBatch:
    notes = assembly.notes
    accepted = _fetch(connection, _ACCEPTED, [plan["accepted_id"] for plan in plans])
    meals = {key: values.plan_meals(row[2], known) for key, row in accepted.items()}
    kept = [plan for plan in plans if meals[plan["accepted_id"]] is not None]
    assembly.invalid_plans += len(plans) - len(kept)
    generated = _fetch(connection, _GENERATED, [plan["generated_id"] for plan in kept])
    previous = _previous_plans(connection, keys, kept, assembly)
    assembly.late_pantry += sum(plan["pantry_us"] is not None and plan["pantry_us"] > plan["t"] for plan in kept)
    homes = [accepted[plan["accepted_id"]][0] for plan in kept]
    columns = {
        "input": pa.StructArray.from_arrays(
            [
                _households(connection, homes, notes),
                _pantries(connection, kept, notes),
                _constraints(connection, homes, kept, notes),
                *_contexts([generated[plan["generated_id"]] for plan in kept], notes),
                arrays.plans(previous),
            ],
            fields=list(schema.INPUT),
        ),
        "target": pa.StructArray.from_arrays(
            [arrays.plans([meals[plan["accepted_id"]] for plan in kept]), _edits(connection, kept, notes)],
            fields=list(schema.TARGET),
        ),
        "metadata": _metadata(connection, kept, accepted, generated, homes, known, notes),
        "split": pa.array([split_of(home) for home in homes], pa.string()),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema.TRAINING_SCHEMA)


def _metadata(
    connection: Connection,
    kept: Sequence[Key],
    accepted: Rows,
    generated: Rows,
    homes: Sequence[str],
    known: Collection[str],
    notes: Notes,
) -> pa.StructArray:
    regions = _fetch(connection, _REGIONS, homes)
    policies, proposals = [], []
    for plan in kept:
        row = generated[plan["generated_id"]]
        policy = values.context_text(row[3], notes)
        policies.append(policy if policy is not None else values.context_text(accepted[plan["accepted_id"]][3], notes))
        proposals.append(values.plan_meals(row[0], known))
    return pa.StructArray.from_arrays(
        [
            pa.array([plan["accepted_us"] for plan in kept], pa.int64()).cast(schema.TIME),
            pa.array([plan["t"] for plan in kept], pa.int64()).cast(schema.TIME),
            pa.array(policies, pa.string()),
            pa.array([plan["accepted_id"] for plan in kept], pa.string()),
            pa.array([accepted[plan["accepted_id"]][1] for plan in kept], pa.string()),
            pa.array([regions[home][0] for home in homes], pa.string()),
            arrays.plans(proposals),
        ],
        fields=list(schema.METADATA),
    )


def _previous_plans(
    connection: Connection, keys: duckdb.DuckDBPyConnection, kept: Sequence[Key], assembly: Assembly
) -> list[Meals | None]:
    """Step back from the latest acceptance before plan time until one of another plan meets the contract.

    The first step came with the keys; the others look twice as far back each round, so that a household with a long
    row of broken plans costs a few rounds and not one query per plan.
    """
    found: dict[int, tuple[Meals, int]] = {}
    checked: dict[str, Meals | None] = {}
    open_plans = {plan["ordinal"]: plan for plan in kept if plan["previous_rn"] is not None}
    steps: list[tuple[int, str, str, int, int]] = [
        (number, plan["previous_id"], plan["previous_p"], plan["previous_us"], plan["previous_rn"])
        for number, plan in open_plans.items()
    ]
    reach = 1
    while steps:
        wanted = {id_ for number, id_, p, *_ in steps if p != open_plans[number]["p"] and id_ not in checked}
        checked |= {key: values.plan_meals(row[0]) for key, row in _fetch(connection, _PREVIOUS, wanted).items()}
        lowest: dict[int, int] = {}
        for number, id_, p, us, rn in steps:
            lowest[number] = min(rn, lowest.get(number, rn))
            meals = checked.get(id_) if p != open_plans[number]["p"] else None
            if meals is not None and number not in found:
                found[number] = (meals, us)
        missing = [(number, open_plans[number]["h"], rn) for number, rn in lowest.items() if number not in found]
        steps, reach = _step_back(keys, missing, reach), reach * 2
    assembly.late_previous += sum(us >= open_plans[number]["t"] for number, (_, us) in found.items())
    return [found[plan["ordinal"]][0] if plan["ordinal"] in found else None for plan in kept]


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


def _households(connection: Connection, homes: Sequence[str], notes: Notes) -> pa.StructArray:
    rows = _fetch(connection, _HOUSEHOLDS, homes)
    clean = {
        home: (
            values.int32(size, "household sizes", notes, least=0),
            values.texts(preferences, notes),
            values.texts(restrictions, notes),
        )
        for home, (size, preferences, restrictions) in rows.items()
    }
    return pa.StructArray.from_arrays(
        [
            pa.array(homes, pa.string()),
            pa.array([clean[home][0] for home in homes], pa.int32()),
            pa.array([clean[home][1] for home in homes], schema.TEXTS),
            pa.array([clean[home][2] for home in homes], schema.TEXTS),
        ],
        fields=list(schema.HOUSEHOLD),
    )


def _pantries(connection: Connection, kept: Sequence[Key], notes: Notes) -> pa.StructArray:
    rows = _fetch(connection, _PANTRIES, {plan["pantry_id"] for plan in kept} - {None})
    items = {key: values.pantry_items(text, notes) for key, (text,) in rows.items()}
    return arrays.pantries(items, [plan["pantry_id"] for plan in kept])


def _constraints(connection: Connection, homes: Sequence[str], kept: Sequence[Key], notes: Notes) -> pa.StructArray:
    versions: dict[str, list[tuple[Any, ...]]] = {}
    for home, *version in _query(connection, _CONSTRAINTS, sorted(set(homes))):
        versions.setdefault(home, []).append(tuple(version))
    limits = []
    for home, plan in zip(homes, kept, strict=True):
        valid = [version for version in versions.get(home, ()) if version[0] <= plan["t"]]
        _, budget, minutes, excluded = max(valid, key=lambda version: version[0]) if valid else (0, None, None, None)
        limits.append(
            (
                values.amount(budget, "budgets", notes),
                values.int32(minutes, "preparation times", notes),
                values.texts(excluded, notes),
            )
        )
    return pa.StructArray.from_arrays(
        [
            pa.array([row[0] for row in limits], pa.float64()),
            pa.array([row[1] for row in limits], pa.int32()),
            pa.array([row[2] for row in limits], schema.TEXTS),
        ],
        fields=list(schema.CONSTRAINTS),
    )


def _contexts(rows: Sequence[tuple[Any, ...]], notes: Notes) -> tuple[pa.Array, pa.Array]:
    workflows, modes = [], []
    for _, workflow, mode, _ in rows:
        workflow, mode = values.context_text(workflow, notes), values.context_text(mode, notes)
        workflows.append("plan-first" if workflow is None else workflow)
        modes.append("autopilot" if mode is None else mode)
    return pa.array(workflows, pa.string()), pa.array(modes, pa.string())


def _edits(connection: Connection, kept: Sequence[Key], notes: Notes) -> pa.ListArray:
    rows = _fetch(connection, _EDITS, [id_ for plan in kept for id_ in plan["edit_ids"]])
    edits = {key: values.edit_row(EDIT_KINDS[kind], payload, notes) for key, (kind, payload) in rows.items()}
    return arrays.edits([[edits[id_] for id_ in plan["edit_ids"]] for plan in kept])


_EVENTS = "FROM exp.events WHERE id = ANY(%s::uuid[])"
_ACCEPTED = (
    "SELECT id::text, unit_id::text, payload->>'plan_id', (payload->'plan')::text, "
    f"(context->'policy_version_id')::text {_EVENTS}"
)
_GENERATED = (
    "SELECT id::text, (payload->'plan')::text, (context->'workflow_type')::text, (context->'mode')::text, "
    f"(context->'policy_version_id')::text {_EVENTS}"
)
_PREVIOUS = f"SELECT id::text, (payload->'plan')::text {_EVENTS}"
_EDITS = f"SELECT id::text, event_type::text, payload::text {_EVENTS}"
_PANTRIES = "SELECT id, items::text FROM public.pantry_snapshots WHERE id = ANY(%s::bigint[])"
_HOUSEHOLDS = (
    "SELECT id::text, size, preferences::text[], dietary_restrictions::text[] FROM public.households "
    "WHERE id = ANY(%s::text[])"
)
_REGIONS = "SELECT id::text, region::text FROM public.households WHERE id = ANY(%s::text[])"
_CONSTRAINTS = (
    "SELECT household_id::text, CASE WHEN valid_from >= '0001-01-01 00:00:00+00' THEN CASE WHEN isfinite(valid_from) "
    f"THEN (extract(epoch FROM valid_from) * 1000000)::bigint ELSE {2**63 - 1} END ELSE {-(2**63)} END, budget::text, "
    "max_prep_time, excluded_ingredients::text[] FROM public.household_constraints "
    "WHERE household_id = ANY(%s::text[]) ORDER BY household_id, valid_from"
)


def _fetch(connection: Connection, query: str, ids: Collection[Any]) -> Rows:
    """Rows by their first column; each distinct id is fetched once."""
    return {row[0]: row[1:] for row in _query(connection, query, sorted(set(ids)))}


def _query(connection: Connection, query: str, ids: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows for the ids through a server-side cursor: a payload of 10 MB must not meet 4,000 others in memory."""
    if not ids:
        return
    try:
        with connection.cursor(name="wide") as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute(query, (ids,))
            yield from cursor
    except psycopg2.Error as error:
        raise query_error(error, "fetching rows by id") from None
