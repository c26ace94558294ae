"""A short text that changes whenever a table that a build reads has changed, so that a finished step can be reused.

In: the database and the window. Out: a text. Cheap: for ordinary tables the number of rows and the ids of the
transactions that wrote them (`xmin`, which every insert and update renews), without reading a payload. Views and
foreign tables have none; there the whole content is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib

import psycopg2
from psycopg2.extensions import connection as Connection

from planner.dataset.config import DatasetConfig
from planner.dataset.database import TABLES, connect, query_error, require_tables

# Rows at or after the end do not exist for a build, so they do not count here either.
_TIMES = {"exp.events": '"timestamp"', "public.pantry_snapshots": "snapshot_time"}


def database_fingerprint(url: str, config: DatasetConfig) -> str:
    """Give 32 hex digits that change when rows before `end_date` are added, changed or removed.

    A dump loaded into another server counts as changed. Takes one pass over the tables without their wide values.

    Raises:
        DatabaseError: the database cannot be read.
    """
    parts = []
    with contextlib.closing(connect(url, read_only=True)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        try:
            require_tables(connection)
            parts.append(_value(connection, "SELECT system_identifier FROM pg_control_system()", guard=True))
            parts.append(_value(connection, "SELECT oid FROM pg_database WHERE datname = current_database()"))
            parts += [f"{table} {_table(connection, table, config)}" for table in TABLES]
        except psycopg2.Error as error:
            raise query_error(error, "fingerprinting the tables") from None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _table(connection: Connection, table: str, config: DatasetConfig) -> str:
    kind = _value(connection, f"SELECT relkind::text || ' ' || oid::text FROM pg_class WHERE oid = '{table}'::regclass")
    has_xmin = kind[0] in "rp"
    # Sums and not hashes over sorted rows: the order in which the server gives rows does not matter.
    content = "sum(xmin::text::bigint), max(xmin::text::bigint)" if has_xmin else "sum(hashtextextended(t::text, 0)), 0"
    time = _TIMES.get(table)
    where = f" WHERE {time} < '{config.end_date.isoformat()} 00:00:00+00'" if time else ""
    return kind + " " + _value(connection, f"SELECT (count(*), {content})::text FROM {table} t{where}")


def _value(connection: Connection, query: str, *, guard: bool = False) -> str:
    with connection.cursor() as cursor:
        if guard:
            cursor.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
            allowed = cursor.fetchone()
            if not allowed or not allowed[0]:
                return "unknown"
        cursor.execute(query)
        row = cursor.fetchone()
    return str(row[0]) if row else ""
