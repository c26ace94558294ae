"""Loading the demo into PostgreSQL: all or nothing, the same rows each time, only into an empty database."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError
from planner.dataset.database import connect
from planner.dataset.demo import is_empty, load_demo

TABLES = {
    "exp.policies": "id",
    "exp.policy_versions": "id",
    "exp.events": "id",
    "public.households": "id",
    "public.pantry_snapshots": "id",
    "public.household_constraints": "household_id, valid_from",
    "public.recipes": "id",
}
HOUSEHOLDS = 40


def digest(connection: Connection) -> str:
    """SHA-256 over every row of every table that the demo fills."""
    total = hashlib.sha256()
    with connection.cursor() as cursor:
        for table, order in TABLES.items():
            cursor.execute(f"SELECT t::text FROM {table} t ORDER BY {order}")
            rows = cursor.fetchall()
            assert rows, table
            total.update("\n".join(row[0] for row in rows).encode())
    connection.rollback()
    return total.hexdigest()


def count(connection: Connection, query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    connection.rollback()
    assert row is not None
    return int(row[0])


def test_loading_fills_the_tables_and_reports_what_it_loaded(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        assert is_empty(connection)
        said: list[str] = []
        report = load_demo(connection, households=HOUSEHOLDS, progress=lambda done, total, what: said.append(what))
        assert not is_empty(connection) and said[-1] == "demo loaded"
        assert report.households == HOUSEHOLDS == count(connection, "SELECT count(*) FROM households")
        assert report.events == count(connection, "SELECT count(*) FROM exp.events")
        assert report.recipes == count(connection, "SELECT count(*) FROM recipes WHERE cost_per_serving > 0 AND active")
        accepted = "SELECT count(*) FROM exp.events WHERE event_type = 'plan_accepted'"
        assert report.plans == count(connection, accepted) > 100
        logged = (
            "SELECT count(*) FROM exp.events e JOIN exp.policy_versions v "
            "ON v.id = (e.context->>'policy_version_id')::uuid JOIN exp.policies p ON p.id = v.policy_id "
            "WHERE p.name = 'logged'"
        )
        assert count(connection, logged) == report.events
        # The next snapshot of a site that goes on with this database does not collide.
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO pantry_snapshots (household_id, snapshot_time) VALUES ('cj-0001', now())")
        connection.rollback()


def test_loading_twice_gives_the_same_bytes(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        load_demo(connection, households=HOUSEHOLDS)
        first = digest(connection)
        with connection, connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(TABLES)} CASCADE")
        assert is_empty(connection)
        load_demo(connection, households=HOUSEHOLDS)
        assert digest(connection) == first


def test_a_database_with_rows_is_left_as_it_is(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO households (id) VALUES ('mine')")
        with pytest.raises(DatabaseError, match="empty database only"):
            load_demo(connection, households=HOUSEHOLDS)
        assert count(connection, "SELECT count(*) FROM households") == 1


def test_a_load_that_fails_leaves_nothing(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE exp.events ADD CONSTRAINT no_swaps CHECK (event_type <> 'meal_swapped')")
        with pytest.raises(DatabaseError, match="refused loading the demo"):
            load_demo(connection, households=HOUSEHOLDS)
        assert is_empty(connection)
        assert count(connection, "SELECT count(*) FROM exp.policies") == 0


def test_a_database_without_the_tables_is_named_as_such(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("DROP TABLE recipes")
        with pytest.raises(DatabaseError, match="recipes"):
            is_empty(connection)
