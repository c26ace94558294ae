"""Sessions: batches while the server sends, one snapshot, and errors that say what happened without the query."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError
from planner.dataset import session
from planner.dataset.database import connect
from planner.dataset.session import Session, open_session
from tests.databases import run_statement

# Some thousand rows of a kilobyte: more than the sockets between hold.
MANY = "SELECT n, repeat('x', 1000) AS text FROM generate_series(1, 50000) n"
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    "pg_backend_pid() AND query LIKE '%generate_series%'"
)


@pytest.fixture
def holder(database_url: str) -> Iterator[tuple[Connection, str]]:
    """A connection and the snapshot that it exports."""
    with contextlib.closing(connect(database_url, read_only=True)) as connection, connection.cursor() as cursor:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        cursor.execute("SELECT pg_export_snapshot()")
        yield connection, (cursor.fetchone() or ("",))[0]


@pytest.fixture
def opened(database_url: str, holder: tuple[Connection, str]) -> Iterator[Session]:
    with contextlib.closing(open_session(database_url, holder[1])) as found:
        yield found


def error_of(found: Session, query: str, database_url: str | None = None) -> str:
    """What reading says; with a URL the connection is cut behind the first batch."""
    with pytest.raises(DatabaseError) as caught:
        for _ in found.read(query, "reading this"):
            if database_url is not None:
                run_statement(database_url, CUT)
                database_url = None
    message = str(caught.value)
    assert "\n" not in message and "SELECT" not in message and "COPY" not in message
    return message


def test_batches_come_while_the_server_sends(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BATCH_BYTES", 1 << 20)
    sizes = [batch.num_rows for batch in opened.read(MANY, "reading this")]
    assert sum(sizes) == 50_000 and len(sizes) > 20 and max(sizes) < 3_000


def test_types_come_as_plain_arrow(opened: Session) -> None:
    query = (
        "SELECT '00000000-0000-0000-0000-00000000000a'::uuid AS id, '{\"a\": 1}'::jsonb AS j, 'x'::text AS t, 1::int2"
    )
    (batch,) = opened.read(query, "reading this")
    assert batch.schema.types == [pa.binary(16), pa.string(), pa.string(), pa.int16()]
    assert batch.column("id")[0].as_py() == bytes(15) + b"\n" and batch.column("j")[0].as_py() == '{"a": 1}'


def test_session_is_utc_read_only_and_sees_the_snapshot_alone(
    opened: Session, holder: tuple[Connection, str], database_url: str
) -> None:
    run_statement(database_url, "CREATE TABLE late (n int); INSERT INTO late VALUES (1)")
    query = (
        "SELECT current_setting('TimeZone') AS zone, current_setting('transaction_read_only') AS ro, "
        "(SELECT count(*) FROM pg_class WHERE relname = 'late') AS seen"
    )
    (batch,) = opened.read(query, "reading this")
    # A catalogue is looked at as of the snapshot too, where it is queried as a table.
    assert batch.to_pylist() == [{"zone": "UTC", "ro": "on", "seen": 0}]


def test_connection_that_is_cut_in_mid_copy_went_away(
    opened: Session, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "BATCH_BYTES", 1 << 16)
    assert "The database went away while reading this" in error_of(opened, MANY, database_url)


def test_error_of_a_row_is_told_with_the_servers_words(opened: Session) -> None:
    message = error_of(opened, "SELECT 1 / (n - 40000) FROM generate_series(1, 50000) n")
    assert "The database refused reading this" in message and "division by zero" in message


def test_error_at_the_start_is_told_with_its_code(opened: Session) -> None:
    assert "The database refused reading this (22012): division by zero" in error_of(opened, "SELECT 1 / 0")


def test_statement_timeout_in_mid_copy_is_named(database_url: str, holder: tuple[Connection, str]) -> None:
    slow = "SELECT n, pg_sleep(0.001) FROM generate_series(1, 5000) n"
    url = f"{database_url}&options=-c%20statement_timeout%3D300"
    with contextlib.closing(open_session(url, holder[1])) as found:
        assert "statement_timeout ended reading this" in error_of(found, slow)


def test_permission_is_named(database_url: str, holder: tuple[Connection, str], opened: Session) -> None:
    message = error_of(opened, "SELECT lo_create(7)")
    assert "cannot execute lo_create() in a read-only transaction" in message


def test_query_of_another_thread_is_cancelled(opened: Session) -> None:
    timer = threading.Timer(0.5, opened.cancel)
    timer.start()
    assert "The database went away while reading this: canceling statement" in error_of(opened, "SELECT pg_sleep(60)")
    timer.join()


def test_password_is_not_shown_where_nobody_answers() -> None:
    with pytest.raises(DatabaseError, match="No connection to the database postgresql://me@127.0.0.1:1/db") as caught:
        open_session("postgresql://me:s3cret@127.0.0.1:1/db", "0")
    assert "s3cret" not in str(caught.value)
