"""The rows of a dataset version, batch by batch: wide values fetched by id and set beside the keys.

In: the database's snapshot and the `plans` of `keys.py`. Out: record batches of `ROW_SCHEMA` in the order of the file,
and counts of what was left out. Memory is bounded by the batch, not by the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.split import split_of
from planner.dataset import arrays, values
from planner.dataset.columns import column_of, edit_column, item_column
from planner.dataset.fetch import fetch_columns, fetch_rows, query
from planner.dataset.plans import fetch_events, previous_plans
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
        plans = keys.sql(
            "SELECT ordinal, h, p, t, generated_id::VARCHAR AS generated_id, accepted_us, accepted_id::VARCHAR AS "
            "accepted_id, pantry_id, pantry_us, previous_rn, previous_id::VARCHAR AS previous_id, previous_p, "
            "previous_us, limit_us, edit_ids::VARCHAR[] AS edit_ids, source FROM plans "
            f"WHERE ordinal >= {start} AND ordinal < {start + BATCH_PLANS} ORDER BY ordinal"
        ).to_arrow_table()
        yield _assemble(connection, keys, plans, known, assembly)


def _assemble(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    plans: pa.Table,
    known: pa.StringArray,
    assembly: Assembly,
) -> pa.RecordBatch:
    notes = assembly.notes
    ids = column_of(plans.column("accepted_id"))
    accepted = fetch_events(connection, _ACCEPTED, ids, known).at(ids)
    valid = accepted.plans.is_valid()
    kept, accepted = plans.filter(valid), accepted.filter(valid)
    key = {name: column_of(kept.column(name)) for name in kept.column_names}
    assembly.invalid_plans += len(plans) - len(kept)
    generated = fetch_events(connection, _GENERATED, key["generated_id"], known).at(key["generated_id"])
    previous = previous_plans(connection, keys, kept)
    assembly.late_previous += previous.late
    assembly.late_pantry += pc.sum(pc.greater(key["pantry_us"], key["t"])).as_py() or 0
    homes, plan_ids, last_policy = accepted.members
    workflow, mode, policy = (_context(member, notes) for member in generated.members)
    # The acceptance's policy counts only where the generation names none.
    last_policy = _context(pc.if_else(policy.is_valid(), None, last_policy), notes)
    household, region = _households(connection, homes, notes)
    splits = homes.dictionary_encode()
    columns = {
        "input": [
            household,
            _pantries(connection, key["pantry_id"], notes),
            _constraints(connection, homes, key["limit_us"], notes),
            pc.fill_null(workflow, "plan-first"),
            pc.fill_null(mode, "autopilot"),
            previous.plans,
        ],
        "target": [accepted.plans, _edits(connection, key["edit_ids"], notes)],
        "metadata": [
            key["accepted_us"].cast(schema.TIME),
            key["t"].cast(schema.TIME),
            pc.coalesce(policy, last_policy),
            key["accepted_id"],
            plan_ids,
            region,
            generated.plans,
        ],
    }
    structs = [
        pa.StructArray.from_arrays(members, fields=list(schema.TRAINING_SCHEMA.field(name).type))
        for name, members in columns.items()
    ]
    split = pa.array([split_of(home) for home in splits.dictionary.to_pylist()], pa.string()).take(splits.indices)
    source = pc.if_else(previous.other, None, key["source"]).cast(pa.binary(16))
    return pa.RecordBatch.from_arrays([*structs, split, source], schema=ROW_SCHEMA)


def _households(connection: Connection, homes: pa.StringArray, notes: Notes) -> tuple[pa.StructArray, pa.StringArray]:
    rows = fetch_rows(connection, _HOUSEHOLDS, homes.unique().to_pylist())
    places = pc.index_in(homes, pa.array(list(rows), pa.string()))
    sizes, preferences, restrictions, regions = zip(*rows.values(), strict=True) if rows else ((), (), (), ())
    members = [
        pa.array([values.int32(size, "household sizes", notes, least=0) for size in sizes], pa.int32()),
        pa.array([values.texts(texts, notes) for texts in preferences], schema.TEXTS),
        pa.array([values.texts(texts, notes) for texts in restrictions], schema.TEXTS),
    ]
    household = pa.StructArray.from_arrays(
        [homes, *(member.take(places) for member in members)], fields=list(schema.HOUSEHOLD)
    )
    return household, pa.array(regions, pa.string()).take(places)


def _pantries(connection: Connection, ids: pa.Int64Array, notes: Notes) -> pa.StructArray:
    table = fetch_columns(connection, _PANTRIES, "FROM public.pantry_snapshots", "items", ids)
    snapshots = pa.concat_arrays([item_column(column_of(table.column(1)), notes), arrays.items([()])])
    places = pc.index_in(ids, column_of(table.column(0)).cast(pa.int64()), skip_nulls=True)
    return pa.StructArray.from_arrays(
        [snapshots.take(pc.fill_null(places, len(snapshots) - 1))], fields=list(schema.INPUT.field("pantry").type)
    )


def _constraints(connection: Connection, homes: pa.StringArray, times: pa.Int64Array, notes: Notes) -> pa.StructArray:
    wanted = list(zip(homes.to_pylist(), times.to_pylist(), strict=True))
    asked = sorted({home for home, us in wanted if us is not None})
    rows = query(connection, _CONSTRAINTS, (asked,)) if asked else ()
    known = {(home, us): limits for home, us, *limits in rows}
    places = {key: place for place, key in enumerate(dict.fromkeys(wanted))}
    limits = [known[key] if key[1] is not None else (None, None, None) for key in places]
    members = [
        pa.array([values.amount(budget, "budgets", notes) for budget, _, _ in limits], pa.float64()),
        pa.array([values.int32(minutes, "preparation times", notes) for _, minutes, _ in limits], pa.int32()),
        pa.array([values.texts(excluded, notes) for _, _, excluded in limits], schema.TEXTS),
    ]
    chosen = pa.array([places[key] for key in wanted], pa.int64())
    return pa.StructArray.from_arrays([member.take(chosen) for member in members], fields=list(schema.CONSTRAINTS))


def _context(texts: pa.StringArray, notes: Notes) -> pa.StringArray:
    """The texts that jsonb values hold, null for others: each distinct value is read once, and counted as it stands."""
    coded = texts.dictionary_encode()
    counts = dict(zip(*(coded.indices.value_counts().field(n).to_pylist() for n in (0, 1)), strict=True))
    found = []
    for number, text in enumerate(coded.dictionary.to_pylist()):
        odd: Notes = Counter()
        found.append(values.context_text(text, odd))
        notes.update({what: count * counts[number] for what, count in odd.items()})
    return pa.array(found, pa.string()).take(coded.indices)


def _edits(connection: Connection, ids: pa.ListArray, notes: Notes) -> pa.ListArray:
    table = fetch_columns(connection, _EDITS, "FROM exp.events", "payload", ids.flatten())
    edits = edit_column(*(column_of(column) for column in table.columns[1:]), notes=notes)
    places = pc.index_in(ids.flatten(), column_of(table.column(0)))
    return pa.ListArray.from_arrays(arrays.offsets_of(ids), edits.take(places))


_PLAN, _POLICY = "(payload->'plan')::text", "(context->'policy_version_id')::text"
# The id, the plan, and what `members` hold.
_ACCEPTED = ("id::text", _PLAN, "unit_id::text", "payload->>'plan_id'", _POLICY)
_GENERATED = ("id::text", _PLAN, "(context->'workflow_type')::text", "(context->'mode')::text", _POLICY)
_PANTRIES = ("id::text", "items::text")
_EDITS = (
    "id::text",
    "event_type::text",
    *(f"CASE WHEN jsonb_typeof(payload->'{name}') = 'string' THEN payload->>'{name}' END"
      for name in ("day", "from", "to", "recipe_id")),
    "(payload->'servings')::text",
)  # fmt: skip
_HOUSEHOLDS = (
    "SELECT id::text, size, preferences::text[], dietary_restrictions::text[], region::text FROM public.households "
    "WHERE id = ANY(%s::text[])"
)
_CONSTRAINTS = (
    "SELECT household_id::text, CASE WHEN isfinite(valid_from) THEN (extract(epoch FROM valid_from) * 1000000)::bigint "
    f"ELSE {-(2**63)} END, budget::text, max_prep_time, excluded_ingredients::text[] "
    "FROM public.household_constraints WHERE household_id = ANY(%s::text[]) AND valid_from < '290000-01-01'"
)
