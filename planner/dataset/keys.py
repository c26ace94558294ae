"""Which plans become rows, and which other rows belong to each: ids and times only, joined as of plan time.

In: one read-only snapshot of the database. Out: a DuckDB connection with the table `plans`, one row per accepted plan
that may become a row, in the order of the file; the wide values are fetched by these ids later (`values.py`).

The narrow columns come by COPY and are joined in DuckDB: on 300,000 plans this took half the CPU of one SQL statement
(docs/dataset.md). Texts of any length enter the keys as themselves up to 200 bytes and as their SHA-256 beyond.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO

import duckdb
import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg2.extensions import connection as Connection

from planner.dataset.config import DatasetConfig
from planner.dataset.database import query_error

REASONS = ("not_generated", "accepted_before_generated", "unknown_household", "invalid_plan")
EDIT_KINDS = {
    "meal_swapped": "swap_meal",
    "servings_adjusted": "adjust_servings",
    "meal_added": "add_meal",
    "meal_removed": "remove_meal",
}
DUCKDB_MEMORY = "250MB"
_BLOCK_BYTES = 4 << 20
_TIME = '"timestamp"'


@dataclass(frozen=True)
class Window:
    """The build's window in microseconds since 1970, UTC."""

    start_us: int
    end_us: int

    @classmethod
    def of(cls, config: DatasetConfig) -> Window:
        """From the midnights of the config's days."""
        return cls(_midnight_us(config.start_date), _midnight_us(config.end_date))

    @classmethod
    def between(cls, start_date: str, end_date: str) -> Window:
        """From two days as `YYYY-MM-DD`, as manifests hold them."""
        return cls(_midnight_us(date.fromisoformat(start_date)), _midnight_us(date.fromisoformat(end_date)))

    def __str__(self) -> str:
        start, end = (datetime.fromtimestamp(us // 1_000_000, UTC) for us in (self.start_us, self.end_us))
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"


@dataclass(frozen=True)
class KeyCounts:
    """What the keys alone tell: `exclusions` lacks `invalid_plan`, which needs the plans themselves."""

    num_plans_seen: int
    num_candidates: int
    exclusions: dict[str, int]
    events_without_plan_id: int
    events_without_time: int


def load_keys(connection: Connection, window: Window, folder: Path) -> tuple[duckdb.DuckDBPyConnection, KeyCounts]:
    """Copy the narrow columns and join them.

    Args:
        connection: in the snapshot that the whole build reads.
        window: acceptances to take.
        folder: where DuckDB may spill.

    Raises:
        DatabaseError: the server refused or went away.
    """
    keys = duckdb.connect(":memory:")
    keys.execute(f"SET memory_limit = '{DUCKDB_MEMORY}'")
    keys.execute("SET temp_directory = ?", [str(folder)])
    keys.execute("SET autoinstall_known_extensions = false")
    keys.execute("SET autoload_known_extensions = false")
    for table, columns, query in _sources(window):
        _copy(connection, keys, table, columns, query)
    (no_plan_id, no_time), *_ = keys.execute(
        "SELECT count(*) FILTER (p IS NULL AND us >= $1), count(*) FILTER (us IS NULL) FROM events", [window.start_us]
    ).fetchall()
    keys.execute(_JOIN.replace("$start", str(window.start_us)))
    found = dict(keys.execute("SELECT reason, count(*) FROM seen GROUP BY reason").fetchall())
    exclusions = {reason: int(found.get(reason, 0)) for reason in REASONS}
    return keys, KeyCounts(sum(found.values()), int(found.get(None, 0)), exclusions, int(no_plan_id), int(no_time))


def event_range(connection: Connection) -> tuple[datetime | None, datetime | None]:
    """Times of the first and the last acceptance of any household plan, for the message about an empty window."""
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT min("timestamp"), max("timestamp") FROM exp.events WHERE unit_type = \'household\' '
            "AND event_type = 'plan_accepted' AND \"timestamp\" >= '0001-01-01' AND \"timestamp\" < '9999-12-31'"
        )
        row = cursor.fetchone()
    return row if row is not None else (None, None)


def _midnight_us(day: date) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return (midnight - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)


def _key(text: str) -> str:
    return (
        f"CASE WHEN octet_length({text}) <= 200 THEN 't' || ({text}) "
        f"ELSE 's' || encode(sha256(convert_to({text}, 'UTF8')), 'hex') END"
    )


def _us(column: str, beyond: str) -> str:
    """Microseconds since 1970; `beyond` for what lies before year 1, minus infinity included."""
    return (
        f"CASE WHEN {column} >= '0001-01-01 00:00:00+00' THEN (extract(epoch FROM {column}) * 1000000)::bigint "
        f"ELSE {beyond} END"
    )


def _sources(window: Window) -> Iterator[tuple[str, Sequence[tuple[str, str]], str]]:
    end = f"to_timestamp({window.end_us // 1_000_000})"
    kinds = {"plan_generated": 0, "plan_accepted": 1} | dict.fromkeys(EDIT_KINDS, 2)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in kinds.items())
    names = ", ".join(f"'{name}'" for name in kinds)
    plan_key = _key("(payload->>'plan_id')")
    yield (
        "events",
        (("id", "UUID"), ("h", "VARCHAR"), ("p", "VARCHAR"), ("us", "BIGINT"), ("kind", "TINYINT")),
        f"SELECT id, {_key('unit_id::text')}, CASE WHEN jsonb_typeof(payload->'plan_id') = 'string' THEN {plan_key} "
        f"END, {_us(_TIME, 'NULL')}, CASE event_type {codes} END FROM exp.events WHERE unit_type = 'household' "
        f"AND event_type IN ({names}) AND {_TIME} < {end}",
    )
    yield (
        "pantry",
        (("id", "BIGINT"), ("h", "VARCHAR"), ("us", "BIGINT")),
        f"SELECT id, {_key('household_id::text')}, {_us('snapshot_time', str(-(2**63)))} "
        f"FROM public.pantry_snapshots WHERE snapshot_time < {end}",
    )
    yield "households", (("h", "VARCHAR"),), f"SELECT {_key('id::text')} FROM public.households"


# Equal times are settled by the order (time, id as text) everywhere: "latest" takes the highest, "earliest" the lowest.
_JOIN = """
DELETE FROM events WHERE p IS NULL OR us IS NULL;
CREATE TABLE generations AS
    SELECT h, p, us AS t, id FROM events WHERE kind = 0
    QUALIFY row_number() OVER (PARTITION BY h, p ORDER BY us, id) = 1;
CREATE TABLE acceptances AS
    SELECT h, p, us, id, row_number() OVER (PARTITION BY h ORDER BY us, id) AS rn FROM events WHERE kind = 1;
CREATE TABLE seen AS
    WITH accepted AS (
        SELECT a.h, a.p, g.t, g.id AS generated_id, max(g.t) IS NOT NULL AS generated,
               arg_max(a.id, (a.us, a.id)) FILTER (a.us >= g.t) AS accepted_id,
               max(a.us) FILTER (a.us >= g.t) AS accepted_us
        FROM acceptances a LEFT JOIN generations g ON g.h = a.h AND g.p = a.p
        GROUP BY a.h, a.p, g.t, g.id HAVING max(a.us) >= $start)
    SELECT accepted.*, CASE WHEN NOT generated THEN 'not_generated'
                            WHEN accepted_id IS NULL THEN 'accepted_before_generated'
                            WHEN households.h IS NULL THEN 'unknown_household' END AS reason
    FROM accepted LEFT JOIN (SELECT DISTINCT h FROM households) households ON households.h = accepted.h;
CREATE TABLE edits AS
    SELECT s.accepted_id, list(e.id ORDER BY e.us, e.id) AS ids
    FROM seen s JOIN events e ON e.kind = 2 AND e.h = s.h AND e.p = s.p AND e.us >= s.t AND e.us <= s.accepted_us
    WHERE s.reason IS NULL GROUP BY s.accepted_id;
DROP TABLE events;
DROP TABLE households;
CREATE TABLE plans AS
    SELECT row_number() OVER (ORDER BY s.accepted_us, s.accepted_id) - 1 AS ordinal, s.h, s.p, s.t, s.generated_id,
           s.accepted_us, s.accepted_id, pantry.id AS pantry_id, pantry.us AS pantry_us,
           previous.rn AS previous_rn, previous.id AS previous_id, previous.p AS previous_p, previous.us AS previous_us,
           coalesce(edits.ids, []) AS edit_ids
    FROM (SELECT * FROM seen WHERE reason IS NULL) s
    ASOF LEFT JOIN (SELECT h, us, max(id) AS id FROM pantry GROUP BY h, us) pantry
        ON pantry.h = s.h AND s.t >= pantry.us
    ASOF LEFT JOIN (SELECT h, us, max(rn) AS rn, arg_max(id, rn) AS id, arg_max(p, rn) AS p
                    FROM acceptances GROUP BY h, us) previous
        ON previous.h = s.h AND s.t > previous.us
    LEFT JOIN edits ON edits.accepted_id = s.accepted_id
    ORDER BY s.accepted_us, s.accepted_id;
DROP TABLE pantry;
DROP TABLE edits;
"""


def _copy(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    table: str,
    columns: Sequence[tuple[str, str]],
    query: str,
) -> None:
    """COPY a query's rows into a new DuckDB table, streaming; every field is quoted, so any text is safe."""
    keys.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns)})")
    arrow = {"UUID": pa.string(), "VARCHAR": pa.string(), "BIGINT": pa.int64(), "TINYINT": pa.int8()}
    names = [name for name, _ in columns]
    with _copied(connection, query) as stream:
        first = stream.peek(1)  # type: ignore[attr-defined]
        if not first:
            return
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: arrow[kind] for name, kind in columns},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            part = pa.Table.from_batches([batch])  # noqa: F841 - DuckDB reads it by its name
            keys.execute(f"INSERT INTO {table} SELECT * FROM part")


@contextmanager
def _copied(connection: Connection, query: str) -> Iterator[IO[bytes]]:
    """The CSV of a query as a readable stream: psycopg2 pushes into a pipe from a thread of its own."""
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []

    def push() -> None:
        try:
            with os.fdopen(write_end, "wb") as sink, connection.cursor() as cursor:
                cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)", sink, 1 << 16)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=push, name="copy", daemon=True)
    thread.start()
    try:
        with os.fdopen(read_end, "rb", buffering=1 << 20) as stream:
            yield stream
    finally:
        thread.join()
        if failures and isinstance(failures[0], psycopg2.Error):
            raise query_error(failures[0], "copying the keys") from None
    if failures:
        raise failures[0]
