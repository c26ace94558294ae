"""Connections to the PostgreSQL that holds the events, and what to say when there is none or it is the wrong one.

In: a URL. Out: a psycopg2 connection whose session does not depend on the server's settings (UTC, UTF-8, ISO times).
No message holds a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn

from planner.contracts.errors import DatabaseError

CONNECT_TIMEOUT_S = 15
_SCHEMA = Path(__file__).with_name("schema.sql")
_ADVICE = "Check PLANNER_DATABASE_URL and that the server runs."

# Of every session. While others read its snapshot, the connection that holds it is idle.
SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET DateStyle = 'ISO, YMD'",
    "SET extra_float_digits = 1",
    "SET idle_in_transaction_session_timeout = 0",
)

_TEXT = ("text", "character varying", "character", "citext")
_WHOLE = ("integer", "smallint", "bigint")
_TEXTS = ("text[]", "character varying[]")
_TIME = ("timestamp with time zone",)
# Columns that a build reads, with the types that it understands.
TABLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "exp.events": {
        "id": ("uuid",), "event_type": _TEXT, "unit_type": _TEXT, "unit_id": _TEXT,
        "context": ("jsonb",), "payload": ("jsonb",), "timestamp": _TIME,
    },
    "public.households": {
        "id": _TEXT, "size": _WHOLE, "preferences": _TEXTS, "dietary_restrictions": _TEXTS, "region": _TEXT,
    },
    "public.pantry_snapshots": {
        "id": _WHOLE, "household_id": _TEXT, "snapshot_time": _TIME, "items": ("jsonb",),
    },
    "public.household_constraints": {
        "household_id": _TEXT, "valid_from": _TIME, "budget": ("numeric", *_WHOLE), "max_prep_time": _WHOLE,
        "excluded_ingredients": _TEXTS,
    },
    "public.recipes": {
        "id": _TEXT, "title": _TEXT, "ingredients": ("jsonb",), "prep_time": _WHOLE,
        "cost_per_serving": ("numeric", *_WHOLE), "tags": _TEXTS, "allergens": _TEXTS, "active": ("boolean",),
    },
}  # fmt: skip


def connect(url: str, *, read_only: bool = False) -> Connection:
    """Open a connection whose session is in UTC; with `read_only` the server refuses every write on it.

    Args:
        url: `postgresql://user@host:port/database` or libpq's `key=value` form.

    Raises:
        DatabaseError: no such server or database, or it does not let us in; never shows the password.
    """
    parts = connection_parts(url)
    options: dict[str, Any] = {**parts}
    try:
        connection: Connection = psycopg2.connect(**options)
        with connection.cursor() as cursor:
            cursor.execute("; ".join(SETTINGS))
        connection.commit()
        if read_only:
            connection.set_session(readonly=True)
    except psycopg2.Error as error:
        raise connect_error(url, str(error) or type(error).__name__) from None
    return connection


def connection_parts(url: str) -> dict[str, str]:
    """What libpq is told of a server, by its own names.

    Raises:
        DatabaseError: the URL cannot be read; never shows the password.
    """
    parts = _parts(url)
    parts.setdefault("connect_timeout", str(CONNECT_TIMEOUT_S))
    parts.setdefault("application_name", "planner")
    return {**parts, "client_encoding": "UTF8"}


def create_schema(connection: Connection) -> None:
    """Create the tables and views of `schema.sql` where they are missing, and commit."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(_SCHEMA.read_text(encoding="utf-8"))
        connection.commit()
        del connection.notices[:]
    except psycopg2.Error as error:
        connection.rollback()
        raise query_error(error, "creating the tables") from None


def masked(url: str) -> str:
    """The address without anything secret: `postgresql://user@host:port/database`."""
    parts = _read(url)
    if parts is None:
        return "(a database URL that cannot be read)"
    user = f"{parts['user']}@" if parts.get("user") else ""
    place = parts.get("host") or parts.get("hostaddr") or ""
    port = f":{parts['port']}" if parts.get("port") else ""
    if place.startswith(("/", "@")):
        return f"postgresql://{user}{port}/{parts.get('dbname', '')}?host={place}"
    return f"postgresql://{user}{place}{port}/{parts.get('dbname', '')}"


def require_tables(connection: Connection) -> None:
    """Check that every table and column that a build reads is there, has its type and may be read.

    Raises:
        DatabaseError: names what is missing, and the view or grant that a site would write.
    """
    found = _columns(connection)
    for table, wanted in TABLES.items():
        columns = found.get(table)
        if columns is None:
            selected = ", ".join(f'… AS "{column}"' for column in wanted)
            raise DatabaseError(
                f"The database has no table {table}. Map your own with a view: CREATE VIEW {table} AS SELECT "
                f"{selected} FROM …; (docs/dataset.md).",
                table=table,
            )
        _require_columns(table, wanted, columns)


def unindexed_tables(connection: Connection) -> tuple[str, ...]:
    """Of the tables that are read by id, those in which the server must look through all rows to find one.

    Raises:
        psycopg2.Error: the server went away.
    """
    found = []
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # a small table is scanned although it has an index
        for table, kind in _BY_ID.items():
            cursor.execute(f"EXPLAIN SELECT 1 FROM {table} WHERE id = ANY('{{}}'::{kind}[] || %s::{kind})", (None,))
            if any("Seq Scan on" in line for (line,) in cursor):
                found.append(table)
        cursor.execute("SET LOCAL enable_seqscan TO DEFAULT")
    return tuple(found)


def index_warning(table: str) -> str:
    """What to do about a table without an index on its id."""
    return (
        f"{table} has no index on its id, so the server looks through all of it to find rows by id. Nothing is created "
        f"in your database; where builds are slow, create one: CREATE UNIQUE INDEX CONCURRENTLY ON {table} (id)."
    )


def query_error(error: psycopg2.Error, what: str) -> DatabaseError:
    """One line for an error of the server while `what` was done."""
    return server_error(error.pgcode or "", " ".join(str(error).split("\n")[0].split()), what)


def server_error(code: str, detail: str, what: str) -> DatabaseError:
    """One line for what the server said; without a code (SQLSTATE) the connection is gone."""
    if code == "42501":
        return DatabaseError(f"No permission while {what}: {detail}. Grant SELECT to the user of PLANNER_DATABASE_URL.")
    if code == "57014":
        return DatabaseError(f"The server's statement_timeout ended {what}: {detail}. Raise it for this user.")
    if code[:2] in ("08", "57") or code == CONFLICT or not code:
        return DatabaseError(
            f"The database went away while {what}: {detail}. Nothing was published; run it again. A standby that ends "
            "long queries needs hot_standby_feedback or a larger max_standby_streaming_delay."
        )
    return DatabaseError(f"The database refused {what} ({code}): {detail}.")


def connect_error(url: str, told: str) -> DatabaseError:
    """One line for a connection that could not be made; `told` is what libpq says."""
    text = " ".join(told.split())
    parts = _read(url) or {}
    secret = parts.get("password")
    text = text.replace(secret, "***") if secret else text
    where = masked(url)
    if "password authentication failed" in text or "no password supplied" in text:
        return DatabaseError(
            f"The database {where} refused the user or password. Correct the password in PLANNER_DATABASE_URL or in "
            "~/.pgpass.",
            url=where,
        )
    if "does not exist" in text and "database" in text:
        return DatabaseError(
            f"There is no database {parts.get('dbname', '')!r} at {where}. Create it, or correct PLANNER_DATABASE_URL.",
            url=where,
        )
    return DatabaseError(f"No connection to the database {where}: {text[:300]}. {_ADVICE}", url=where)


CONFLICT = "40001"  # what a standby's replaying does to a read-only query that is in its way
# Tables that are read by id, with its type.
_BY_ID = {"public.pantry_snapshots": "bigint"}


def _parts(url: str) -> dict[str, str]:
    scheme = url.partition("://")[0] if "://" in url.partition("=")[0] else None
    if not url.strip():
        raise DatabaseError("No database URL is given. Set PLANNER_DATABASE_URL=postgresql://user@host:5432/database.")
    if scheme is not None and scheme not in ("postgresql", "postgres"):
        raise DatabaseError(
            f"A database URL starts with postgresql://, not {scheme[:40]}://. Correct PLANNER_DATABASE_URL."
        )
    parts = _read(url)
    if parts is None:
        raise DatabaseError(
            "The database URL cannot be read. Write postgresql://user:password@host:5432/database with special "
            "characters of the password percent-encoded (@ is %40, / is %2F)."
        )
    return parts


def _read(url: str) -> dict[str, str] | None:
    """The URL's parts, or None: libpq's own message quotes what it could not read, and that may be the password."""
    try:
        parts = dict(parse_dsn(url))
    except psycopg2.Error:
        return None
    # A password with a bare @ or / is read as a piece of the host, the port or the database.
    ports = parts.get("port", "").replace(",", "")
    misread = (ports and not ports.isdigit()) or "@" in parts.get("host", "")[1:] or "@" in parts.get("dbname", "")
    return None if misread else parts


def _columns(connection: Connection) -> dict[str, dict[str, tuple[str, bool]]]:
    """Type and readability of the columns of our tables, from catalogs that every user may read."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT n.nspname || '.' || c.relname, a.attname, format_type(a.atttypid, NULL),
                   has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE n.nspname || '.' || c.relname = ANY(%s) AND c.relkind IN ('r', 'v', 'm', 'p', 'f')
                  AND a.attnum > 0 AND NOT a.attisdropped
            """,
            (list(TABLES),),
        )
        for table, column, kind, readable in cursor:
            found.setdefault(table, {})[column] = (kind, readable)
    return found


def _require_columns(
    table: str, wanted: Mapping[str, tuple[str, ...]], columns: Mapping[str, tuple[str, bool]]
) -> None:
    for column, kinds in wanted.items():
        if column not in columns:
            raise DatabaseError(
                f'The table {table} has no column "{column}" ({kinds[0]}). Add it, or map your table with a view: '
                f'CREATE VIEW {table} AS SELECT …, … AS "{column}" FROM …; (docs/dataset.md).',
                table=table,
                column=column,
            )
        kind, readable = columns[column]
        if kind not in kinds:
            raise DatabaseError(
                f'The column {table}."{column}" is {kind}, not {kinds[0]}. Map your table with a view that casts it '
                f'("{column}"::{kinds[0]}).',
                table=table,
                column=column,
            )
        if not readable:
            schema = table.partition(".")[0]
            raise DatabaseError(
                f'No permission to read {table}."{column}". GRANT USAGE ON SCHEMA {schema} and GRANT SELECT ON {table} '
                "to the user of PLANNER_DATABASE_URL.",
                table=table,
                column=column,
            )
