"""Wide values from the database to the rows that take them: plans, edits, contexts and pantries, by way of the disk.

In: the database's snapshot and the keys of the rows (`keys.py`). Out: `WideValues`, which are read back a range of rows
at a time. Each value is read once, whichever rows take it, and memory holds some megabytes of values at a time.

Where a good share of the events is asked for, they are read as they are stored, in one more scan: the n-th event of it
is the n-th event of the scan of the keys. Only plain tables keep such an order (`stored_order`), and 32 bits of each
event's id are compared all the same. Otherwise events come by id.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.errors import DatabaseError
from planner.dataset.columns import Lists, column_of, edit_column, item_column, plan_column, unknown_recipes
from planner.dataset.database import query_error, unindexed_tables
from planner.dataset.joins import ACCEPTED, CHECK_SQL, EDIT, GENERATED, HOMES, LIMITS, PANTRIES, PLACES, PREVIOUS
from planner.dataset.keys import Keys
from planner.dataset.spool import Spool
from planner.dataset.stream import copy_tables, stored_order
from planner.dataset.values import Notes

# By id an event costs the server 7 to 9 µs, in a scan 2 to 3, and one of another shard 0.3 (docs/log.md).
SCAN_SHARE, SCAN_SHARE_PER_SHARD = 0.25, 0.04
_IDS = 4096
_PANTRY_IDS = 100_000
_BATCH_ROWS = 30_000
_MEALS = pa.list_(schema.MEAL)
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class WideValues:
    """What was read, by kind; `row` is the number of the row that takes a value.

    `homes` and `limits` (as the keys brought them), `generated` (meals, workflow, mode, policy), `accepted` (meals,
    policy, plan_id), `previous` (meals) and `pantries` (items) have at most one value a row, `edits` (rank, edit) any
    number.
    """

    homes: Spool
    limits: Spool
    generated: Spool
    accepted: Spool
    previous: Spool
    edits: Spool
    pantries: Spool


@contextlib.contextmanager
def wide_values(
    connection: Connection,
    beside: Callable[[], Connection],
    keys: Keys,
    known: pa.StringArray,
    notes: Notes,
    progress: Progress,
) -> Iterator[WideValues]:
    """Read all values that the rows of `keys` take; the files go when the block ends.

    Args:
        connection: in the snapshot that the whole build reads.
        beside: opens another one in that snapshot, for the pantries; where it cannot, they are read behind the rest.
        keys: joined.
        known: ids of the catalogue; a generated or accepted plan with another one is null.
        notes: where what did not fit is counted.
        progress: told values read and to read.

    Raises:
        DatabaseError: the server refused or went away.
    """
    keys.engine.execute(PLACES)
    keys.engine.execute(PANTRIES)
    (total, events), *_ = keys.engine.execute("SELECT count(*), count(DISTINCT place) FROM places").fetchall()
    share = SCAN_SHARE + SCAN_SHARE_PER_SHARD * (keys.num_shards - 1)
    scan = _is_plain(connection) and (events >= keys.num_events * share or "exp.events" in unindexed_tables(connection))
    with _spools(keys.folder) as values:
        _spool_of_keys(keys, HOMES, values.homes)
        _spool_of_keys(keys, LIMITS, values.limits)
        keys.engine.execute("DROP TABLE homes; DROP TABLE limits")
        keys.rest()
        with _pantries_beside(connection, beside, keys, values.pantries, notes, progress):
            if scan:
                found = Notes()
                try:
                    _spool_events(_scanned(connection, keys), values, known, found, _told(progress, total))
                    notes.update(found)
                except OrderError:
                    for spool in (values.generated, values.accepted, values.previous, values.edits):
                        spool.clear()
                    scan = False
            if not scan:
                _spool_events(_by_id(connection, keys), values, known, notes, _told(progress, total))
        yield values


def fetch_plans(connection: Connection, ids: pa.StringArray) -> tuple[pa.StringArray, pa.ListArray]:
    """Distinct events by id: their ids, and the meals of their plans, null where one breaks the contract."""
    found, meals = [pa.array([], pa.string())], [pa.array([], _MEALS)]
    columns = {"id": pa.string(), "plan": pa.string()}
    for part in _batches(ids.unique().drop_null(), _IDS):
        for table in copy_tables(connection, f"SELECT id::text, {_MEALS_TEXT} {_from_ids(part)}", columns, _BY_ID):
            found.append(column_of(table.column("id")))
            meals.append(plan_column(column_of(table.column("plan"))).take(pa.array(range(len(table)))))
    return pa.concat_arrays(found), pa.concat_arrays(meals)


class OrderError(Exception):
    """A scan did not give its rows in the order of the one before."""


@dataclass(frozen=True)
class _Part:
    """Some events, and which row takes what of which of them: columns of `places` with `index` in the table."""

    table: pa.Table
    index: np.ndarray
    role: np.ndarray
    row: np.ndarray
    rank: np.ndarray


class _Places:
    """The table `places`, read once from its beginning to its end."""

    def __init__(self, engine: duckdb.DuckDBPyConnection, columns: str) -> None:
        self._reader = engine.cursor().sql(f"SELECT {columns} FROM places").to_arrow_reader(1 << 16)
        self._rest = self._reader.schema.empty_table()

    def until(self, bound: int) -> pa.Table:
        """Those below the bound."""
        parts = []
        while True:
            places = column_of(self._rest.column("place")).to_numpy()
            count = int(np.searchsorted(places, bound))
            parts.append(self._rest.slice(0, count))
            self._rest = self._rest.slice(count)
            if self._rest.num_rows or not self._fill():
                return pa.concat_tables(parts).combine_chunks()

    @property
    def ended(self) -> bool:
        """Whether none is left."""
        return not (self._rest.num_rows or self._fill())

    def _fill(self) -> bool:
        batch = next(self._reader, None)
        if batch is not None:
            self._rest = pa.Table.from_batches([batch])
        return batch is not None


def _scanned(connection: Connection, keys: Keys) -> Iterator[_Part]:
    """All events in the order of the keys' own scan, with their places."""
    places, first = _Places(keys.engine, "place, role, ordinal, rank"), 0
    kinds = {"check": pa.int64(), **dict.fromkeys(_EVENT, pa.string())}
    select = f"SELECT {CHECK_SQL}, {', '.join(_EVENT.values())} {keys.events}"
    same = True
    with stored_order(connection):
        for table in copy_tables(connection, select, kinds, "reading the events"):
            found = places.until((first + len(table)) << 32)
            place = column_of(found.column("place")).to_numpy()
            index = (place >> 32) - first
            same = same and not np.any(column_of(table.column("check")).to_numpy()[index] != (place & 0xFFFFFFFF))
            if same:  # or else the rest is read in vain, so that the snapshot stays
                yield _part(table, index, found)
            first += len(table)
    if not same or first != keys.num_events or not places.ended:
        raise OrderError


def _by_id(connection: Connection, keys: Keys) -> Iterator[_Part]:
    """The events that a row takes something of, with their places."""
    reader = keys.engine.cursor().sql("SELECT id::VARCHAR AS id, role, ordinal, rank FROM places")
    kinds = dict.fromkeys(["id", *_EVENT], pa.string())
    for batch in reader.to_arrow_reader(_IDS):
        found, ids = pa.Table.from_batches([batch]), batch.column("id")
        select = f"SELECT id::text, {', '.join(_EVENT.values())} {_from_ids(ids.unique())}"
        for table in copy_tables(connection, select, kinds, _BY_ID):
            index = pc.index_in(ids, column_of(table.column("id")))
            here = index.is_valid()
            yield _part(table, index.filter(here).to_numpy(), found.filter(here))


def _part(table: pa.Table, index: np.ndarray, found: pa.Table) -> _Part:
    role, row, rank = (column_of(found.column(name)).to_numpy() for name in ("role", "ordinal", "rank"))
    return _Part(table, index, role, row, rank)


def _spool_events(
    parts: Iterator[_Part], values: WideValues, known: pa.StringArray, notes: Notes, told: Callable[[int], None]
) -> None:
    for part in parts:
        _spool_plans(part, values, known)
        _spool_edits(part, values.edits, notes)
        told(len(part.index))


def _spool_plans(part: _Part, values: WideValues, known: pa.StringArray) -> None:
    """Parse each plan once and give it to the rows that take it: as theirs, and as their previous one."""
    used = np.unique(part.index[part.role != EDIT])
    column = {name: column_of(part.table.column(name)) for name in _EVENT}
    meals = plan_column(column["plan"].take(pa.array(used)))
    of_known = meals.without(unknown_recipes(meals, known))
    for role, spool, plans, names in (
        (GENERATED, values.generated, of_known, ("workflow", "mode", "policy")),
        (ACCEPTED, values.accepted, of_known, ("policy", "plan_id")),
        (PREVIOUS, values.previous, meals, ()),
    ):
        chosen = part.role == role
        at = part.index[chosen]
        places, events = pa.array(np.searchsorted(used, at)), pa.array(at)
        spool.put(part.row[chosen], _in_order(plans, places, [column[name].take(events) for name in names]))


def _in_order(lists: Lists, places: pa.Array, texts: Sequence[pa.Array]) -> Callable[[pa.Array], list[pa.Array]]:
    return lambda order: [lists.take(places.take(order)), *_taken(texts, order)]


def _spool_edits(part: _Part, spool: Spool, notes: Notes) -> None:
    chosen = part.role == EDIT
    taken = part.table.take(pa.array(part.index[chosen]))
    edits = edit_column(
        *(column_of(taken.column(name)) for name in ("type", "day", "from", "to", "recipe_id", "servings")), notes=notes
    )
    ranks = pa.array(part.rank[chosen], pa.int64())
    spool.put(part.row[chosen], partial(_taken, (ranks, edits)))


def _spool_of_keys(keys: Keys, query: str, spool: Spool) -> None:
    for batch in keys.engine.cursor().sql(query).to_arrow_reader(_BATCH_ROWS):
        rows, *columns = batch.columns
        spool.put(rows.to_numpy(), partial(_taken, columns))


def _taken(columns: Sequence[pa.Array], order: pa.Array) -> list[pa.Array]:
    return [column.take(order) for column in columns]


@contextlib.contextmanager
def _pantries_beside(
    connection: Connection,
    beside: Callable[[], Connection],
    keys: Keys,
    spool: Spool,
    notes: Notes,
    progress: Progress,
) -> Iterator[None]:
    """Spool the pantries in a thread of their own while the block reads something else; they are there behind it."""
    engine, found = keys.engine.cursor(), Notes()
    try:
        other: Connection | None = beside()
    except DatabaseError:  # no more connections for this user, say
        other = None
    if other is None:
        yield
        return _spool_pantries(connection, engine, spool, notes, progress)
    others_done, stopped = threading.Event(), threading.Event()

    def told(*done: Any) -> None:
        if stopped.is_set():
            raise CancelledError
        if others_done.is_set():  # one of both is told at a time
            progress(*done)

    with contextlib.closing(other), ThreadPoolExecutor(1, "pantries") as pool:
        work = pool.submit(_spool_pantries, other, engine, spool, found, told)
        try:
            yield
            others_done.set()
            work.result()
        except BaseException:
            stopped.set()  # between two queries there is nothing to cancel
            with contextlib.suppress(psycopg2.Error):  # the server may be gone
                other.cancel()
            raise
    notes.update(found)


def _spool_pantries(
    connection: Connection, engine: duckdb.DuckDBPyConnection, spool: Spool, notes: Notes, progress: Progress
) -> None:
    """Snapshots by id, in whatever order they come."""
    (total,), *_ = engine.execute("SELECT count(*) FROM pantries").fetchall()
    told = _told(progress, total, "read the pantries")
    reader = engine.sql("SELECT pantry_id, ordinal FROM pantries").to_arrow_reader(_PANTRY_IDS)
    kinds = {"id": pa.int64(), "items": pa.string()}
    for ids, rows in _whole_groups(reader):
        listed = ",".join(map(str, np.unique(ids).tolist()))
        select = f"SELECT id, items::text FROM public.pantry_snapshots WHERE id = ANY('{{{listed}}}'::bigint[])"
        for table in copy_tables(connection, select, kinds, "reading the pantries"):
            found = column_of(table.column("id")).to_numpy()
            low, high = np.searchsorted(ids, found, "left"), np.searchsorted(ids, found, "right")
            counts = high - low
            index = np.repeat(np.arange(len(found)), counts)
            at = np.arange(counts.sum()) + np.repeat(low - np.cumsum(counts) + counts, counts)
            items = item_column(column_of(table.column("items")), notes)
            spool.put(rows[at], _in_order(items, pa.array(index), ()))
            told(len(at))


def _whole_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two columns batch by batch, so that equal values of the first, which stand together, come together."""
    ids, rows = (np.empty(0, np.int64) for _ in range(2))
    for batch in batches:
        ids, rows = (np.concatenate([old, new.to_numpy()]) for old, new in zip((ids, rows), batch, strict=True))
        count = int(np.searchsorted(ids, ids[-1]))
        if count:
            yield ids[:count], rows[:count]
        ids, rows = ids[count:], rows[count:]
    if len(ids):
        yield ids, rows


@contextlib.contextmanager
def _spools(folder: Path) -> Iterator[WideValues]:
    meals = pa.field("meals", _MEALS)
    kinds = {
        "homes": [*_texts("id"), pa.field("size", pa.int64()), *_texts("preferences", "restrictions", "region")],
        "limits": [*_texts("budget"), pa.field("minutes", pa.int64()), *_texts("excluded")],
        "generated": [meals, *_texts("workflow", "mode", "policy")],
        "accepted": [meals, *_texts("policy", "plan_id")],
        "previous": [meals],
        "edits": [pa.field("rank", pa.int64()), pa.field("edit", schema.EDIT)],
        "pantries": [pa.field("items", pa.list_(schema.ITEM))],
    }
    with contextlib.ExitStack() as stack:
        spools = {kind: Spool(folder / f"values-{kind}", columns) for kind, columns in kinds.items()}
        for spool in spools.values():
            stack.enter_context(contextlib.closing(spool))
        yield WideValues(**spools)


def _texts(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string()) for name in names]


def _told(progress: Progress, total: int, what: str = "read plans and edits") -> Callable[[int], None]:
    done = Counter[str]()

    def told(count: int) -> None:
        done[what] += count
        progress(done[what], total, what)

    return told


def _is_plain(connection: Connection) -> bool:
    """Whether the events are a plain table, or a partitioned one of plain tables: nothing that could be shuffled."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(_STORED)
            row = cursor.fetchone()
    except psycopg2.Error as error:
        raise query_error(error, "looking at the table exp.events") from None
    return bool(row and row[0])


def _batches(ids: pa.StringArray, size: int) -> Iterator[pa.StringArray]:
    for start in range(0, len(ids), size):
        yield ids.slice(start, size)


def _from_ids(ids: pa.StringArray) -> str:
    return f"FROM exp.events WHERE id = ANY('{{{','.join(ids.to_pylist())}}}'::uuid[])"


def _text(name: str) -> str:
    text = f"CASE WHEN jsonb_typeof(payload->'{name}') = 'string' THEN payload->>'{name}' END"
    return f"CASE WHEN NOT {_HAS_PLAN} THEN {text} END"


# The table itself where it is not partitioned, else its leaves: `pg_partition_tree` knows no plain tables.
_STORED = """
SELECT bool_and(c.relkind = 'r' AND a.amname = 'heap' AND (c.relispartition OR NOT c.relhassubclass))
FROM (SELECT relid FROM pg_partition_tree('exp.events'::regclass) WHERE isleaf
      UNION SELECT oid FROM pg_class WHERE oid = 'exp.events'::regclass AND relkind <> 'p') stored
JOIN pg_class c ON c.oid = stored.relid LEFT JOIN pg_am a ON a.oid = c.relam
"""
_BY_ID = "reading events by id"
_HAS_PLAN = "event_type IN ('plan_generated', 'plan_accepted')"
_MEALS_TEXT = "(payload->'plan'->'meals')::text"  # null where the plan is no object
# What is read of an event, by name: texts, null where the event's kind has no use for them.
_EVENT = {
    "plan": f"CASE WHEN {_HAS_PLAN} THEN {_MEALS_TEXT} END",
    "policy": f"CASE WHEN {_HAS_PLAN} THEN (context->'policy_version_id')::text END",
    "workflow": "CASE WHEN event_type = 'plan_generated' THEN (context->'workflow_type')::text END",
    "mode": "CASE WHEN event_type = 'plan_generated' THEN (context->'mode')::text END",
    "plan_id": "CASE WHEN event_type = 'plan_accepted' THEN payload->>'plan_id' END",
    "type": f"CASE WHEN NOT {_HAS_PLAN} THEN event_type END",
    **{name: _text(name) for name in ("day", "from", "to", "recipe_id")},
    "servings": f"CASE WHEN NOT {_HAS_PLAN} THEN (payload->'servings')::text END",
}
