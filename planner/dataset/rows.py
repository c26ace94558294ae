"""The rows of a dataset version, batch by batch: wide values fetched by id and set beside the keys.

In: the database's snapshot and the `plans` of `keys.py`. Out: record batches of `ROW_SCHEMA` in the order of the file,
and counts of what was left out. Memory is bounded by the batch, not by the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.split import split_of
from planner.dataset import arrays, values
from planner.dataset.columns import column_of, item_column
from planner.dataset.fetch import Rows, fetch_columns, fetch_rows, query
from planner.dataset.joins import EDIT_KINDS
from planner.dataset.plans import Events, Key, fetch_events, previous_plans
from planner.dataset.values import Notes
from planner.dataset.write import ROW_SCHEMA

BATCH_PLANS = 4096


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
    known = pa.array(known_recipes, pa.string())
    (total,), *_ = keys.execute("SELECT count(*) FROM plans").fetchall()
    for start in range(0, total, BATCH_PLANS):
        result = keys.execute(
            "SELECT ordinal, h, p, t, generated_id::VARCHAR AS generated_id, accepted_us, accepted_id::VARCHAR AS "
            "accepted_id, pantry_id, pantry_us, previous_rn, previous_id::VARCHAR AS previous_id, previous_p, "
            "previous_us, limit_us, edit_ids::VARCHAR[] AS edit_ids, source FROM plans WHERE ordinal >= ? "
            "AND ordinal < ? ORDER BY ordinal",
            [start, start + BATCH_PLANS],
        )
        names = [column[0] for column in result.description or ()]
        plans = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        yield _assemble(connection, keys, plans, known, assembly)


def _assemble(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    plans: Sequence[Key],
    known: pa.StringArray,
    assembly: Assembly,
) -> pa.RecordBatch:
    notes = assembly.notes
    accepted = fetch_events(connection, _ACCEPTED, [plan["accepted_id"] for plan in plans], known)
    kept = [plan for plan in plans if accepted.is_valid(plan["accepted_id"])]
    assembly.invalid_plans += len(plans) - len(kept)
    generated = fetch_events(connection, _GENERATED, [plan["generated_id"] for plan in kept], known)
    previous, late, other = previous_plans(connection, keys, kept)
    assembly.late_previous += late
    assembly.late_pantry += sum(plan["pantry_us"] is not None and plan["pantry_us"] > plan["t"] for plan in kept)
    homes = [accepted.members[plan["accepted_id"]][0] for plan in kept]
    households = fetch_rows(connection, _HOUSEHOLDS, homes)
    columns = {
        "input": pa.StructArray.from_arrays(
            [
                _households(households, homes, notes),
                _pantries(connection, kept, notes),
                _constraints(connection, homes, kept, notes),
                *_contexts([generated.members[plan["generated_id"]] for plan in kept], notes),
                previous,
            ],
            fields=list(schema.INPUT),
        ),
        "target": pa.StructArray.from_arrays(
            [accepted.take([plan["accepted_id"] for plan in kept]), _edits(connection, kept, notes)],
            fields=list(schema.TARGET),
        ),
        "metadata": _metadata(kept, accepted, generated, [households[home][3] for home in homes], notes),
        "split": pa.array([split_of(home) for home in homes], pa.string()),
        "source": pa.array([None if p["ordinal"] in other else p["source"] for p in kept], pa.binary(16)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=ROW_SCHEMA)


def _metadata(
    kept: Sequence[Key], accepted: Events, generated: Events, regions: Sequence[str | None], notes: Notes
) -> pa.StructArray:
    policies = []
    for plan in kept:
        policy = values.context_text(generated.members[plan["generated_id"]][2], notes)
        last = accepted.members[plan["accepted_id"]][2]
        policies.append(policy if policy is not None else values.context_text(last, notes))
    return pa.StructArray.from_arrays(
        [
            pa.array([plan["accepted_us"] for plan in kept], pa.int64()).cast(schema.TIME),
            pa.array([plan["t"] for plan in kept], pa.int64()).cast(schema.TIME),
            pa.array(policies, pa.string()),
            pa.array([plan["accepted_id"] for plan in kept], pa.string()),
            pa.array([accepted.members[plan["accepted_id"]][1] for plan in kept], pa.string()),
            pa.array(regions, pa.string()),
            generated.take([plan["generated_id"] for plan in kept]),
        ],
        fields=list(schema.METADATA),
    )


def _households(rows: Rows, homes: Sequence[str], notes: Notes) -> pa.StructArray:
    clean = {
        home: (
            values.int32(size, "household sizes", notes, least=0),
            values.texts(preferences, notes),
            values.texts(restrictions, notes),
        )
        for home, (size, preferences, restrictions, _) in rows.items()
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
    ids = {plan["pantry_id"] for plan in kept} - {None}
    table = fetch_columns(connection, _PANTRIES, "FROM public.pantry_snapshots", "items", ids)
    places = {int(id_): place for place, id_ in enumerate(table.column(0).to_pylist())}
    return arrays.pantries(
        item_column(column_of(table.column(1)), notes),
        [None if plan["pantry_id"] is None else places[plan["pantry_id"]] for plan in kept],
    )


def _constraints(connection: Connection, homes: Sequence[str], kept: Sequence[Key], notes: Notes) -> pa.StructArray:
    versions = {(home, us): limits for home, us, *limits in query(connection, _CONSTRAINTS, (sorted(set(homes)),))}
    limits = []
    for home, plan in zip(homes, kept, strict=True):
        none = plan["limit_us"] is None
        budget, minutes, excluded = (None, None, None) if none else versions[(home, plan["limit_us"])]
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
    for workflow, mode, _ in rows:
        workflow, mode = values.context_text(workflow, notes), values.context_text(mode, notes)
        workflows.append("plan-first" if workflow is None else workflow)
        modes.append("autopilot" if mode is None else mode)
    return pa.array(workflows, pa.string()), pa.array(modes, pa.string())


def _edits(connection: Connection, kept: Sequence[Key], notes: Notes) -> pa.ListArray:
    ids = [id_ for plan in kept for id_ in plan["edit_ids"]]
    columns = (column.to_pylist() for column in fetch_columns(connection, _EDITS, "FROM exp.events", "payload", ids))
    edits = {
        key: values.edit_row(EDIT_KINDS[kind], payload, notes) for key, kind, payload in zip(*columns, strict=True)
    }
    return arrays.edits([[edits[id_] for id_ in plan["edit_ids"]] for plan in kept])


_PLAN, _POLICY = "(payload->'plan')::text", "(context->'policy_version_id')::text"
# The id, the plan, and what `members` hold.
_ACCEPTED = ("id::text", _PLAN, "unit_id::text", "payload->>'plan_id'", _POLICY)
_GENERATED = ("id::text", _PLAN, "(context->'workflow_type')::text", "(context->'mode')::text", _POLICY)
_PANTRIES = ("id::text", "items::text")
_EDITS = ("id::text", "event_type::text", "payload::text")
_HOUSEHOLDS = (
    "SELECT id::text, size, preferences::text[], dietary_restrictions::text[], region::text FROM public.households "
    "WHERE id = ANY(%s::text[])"
)
_CONSTRAINTS = (
    "SELECT household_id::text, CASE WHEN isfinite(valid_from) THEN (extract(epoch FROM valid_from) * 1000000)::bigint "
    f"ELSE {-(2**63)} END, budget::text, max_prep_time, excluded_ingredients::text[] "
    "FROM public.household_constraints WHERE household_id = ANY(%s::text[]) AND valid_from < '290000-01-01'"
)
