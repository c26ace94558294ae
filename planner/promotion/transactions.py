"""One serialised transaction on an open psycopg2 connection, also when the answer to COMMIT is lost.

In: a connection, the name of a lock, and work that finds or creates. Out: what the work returns, committed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from planner.contracts.errors import DatabaseError

LOCK_TIMEOUT_S = 60
_NAMESPACE = uuid.UUID("3d7f2a0e-6a4b-5c1d-9e38-70616e6e6572")

T = TypeVar("T")


def run_serialised(connection: Connection, lock: str, work: Callable[[Cursor], T], *, what: str) -> T:
    """Run `work` in one transaction that holds the advisory lock named `lock`.

    When the connection is lost at COMMIT, nobody can tell whether the work stands; it is then run once more on a
    connection of its own, which waits for the lock, and so for the end of the lost transaction. Hence `work` must
    find what is there before it creates anything. The caller's connection stays closed in that case.

    Args:
        connection: idle, that is outside of a transaction; autocommit or not.
        lock: callers with the same text run one after the other; others do not wait.
        work: gets a cursor; what it raises rolls everything back.
        what: names the work in messages ("the policy version").

    Raises:
        DatabaseError: the database refused, the lock was not free within `LOCK_TIMEOUT_S`, or it went away.
    """
    _check_idle(connection)
    # Read before the work: a connection that is lost no longer knows where it came from.
    parameters: dict[str, Any] = {**connection.info.dsn_parameters, "password": connection.info.password}
    try:
        return _run(connection, lock, work)
    except _UnknownCommitError:
        return _run_again(parameters, lock, work, what)
    except psycopg2.Error as error:
        raise explain(error, what) from error


def read_rows(connection: Connection, query: str, parameters: Sequence[object], *, what: str) -> list[tuple[Any, ...]]:
    """Rows of one query; leaves no transaction open, unless the caller had one.

    Raises:
        DatabaseError: the database refused or went away.
    """
    try:
        if connection.closed or connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
            return _fetch(connection, query, parameters)
        with connection:
            return _fetch(connection, query, parameters)
    except psycopg2.Error as error:
        raise explain(error, what) from error


def stable_id(kind: str, *parts: str) -> str:
    """The id of a row that stands for these parts: the primary key alone then refuses a second one."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join((kind, *parts))))


def explain(error: BaseException, what: str) -> DatabaseError:
    """The one-line error for a failure of the database while it wrote or read `what`."""
    if isinstance(error, errors.LockNotAvailable):
        return DatabaseError(
            f"Another promotion has held the lock on {what} for {LOCK_TIMEOUT_S} s. "
            "Find it in pg_stat_activity, let it end, and run the command again."
        )
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return DatabaseError(
            f"The database lacks what {what} needs: {_first_line(error)}. "
            "Create the tables of planner/dataset/schema.sql, or map your own to them with views."
        )
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return DatabaseError(
            f"The database takes no writes, so {what} cannot be written: {_first_line(error)}. It is a standby, or "
            "default_transaction_read_only is set. Let PLANNER_DATABASE_URL name the primary."
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return DatabaseError(
            f"The database user may not write {what}: {_first_line(error)}. "
            "Grant it SELECT, INSERT and UPDATE on the tables of schema exp."
        )
    return DatabaseError(
        f"The database failed at {what}: {_first_line(error)}. Nothing of it was written; run the command again."
    )


class _UnknownCommitError(Exception):
    """The connection went away at COMMIT."""


def _run_again(parameters: dict[str, Any], lock: str, work: Callable[[Cursor], T], what: str) -> T:
    try:
        again = psycopg2.connect(**parameters)
        try:
            return _run(again, lock, work)
        finally:
            again.close()
    except (_UnknownCommitError, psycopg2.Error) as error:
        raise DatabaseError(
            f"The connection was lost at COMMIT of {what} and a second try failed ({_first_line(error)}), so it is "
            "unknown whether it stands. Run the command again when the database is back: it goes on from there."
        ) from error


def _run(connection: Connection, lock: str, work: Callable[[Cursor], T]) -> T:
    worked = False
    try:
        with connection:
            with connection.cursor() as cursor:
                # Under a stricter level the snapshot would be older than the lock, and the work would not see what
                # the last holder of the lock wrote.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT_S}s",))
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_key(lock),))
                result = work(cursor)
            worked = True
        return result
    except psycopg2.Error as error:
        if worked and connection.closed:
            raise _UnknownCommitError(_first_line(error)) from error
        raise


def _fetch(connection: Connection, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def _check_idle(connection: Connection) -> None:
    if connection.closed:
        raise DatabaseError("The connection to the database is closed. Run the command again: it goes on from there.")
    if connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
        raise DatabaseError(
            "The connection has an open transaction, which a promotion would commit. Commit or roll it back first."
        )


def _lock_key(lock: str) -> int:
    return int.from_bytes(hashlib.sha256(f"planner-promotion:{lock}".encode()).digest()[:8], "big", signed=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
