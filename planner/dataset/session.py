"""Sessions that read one snapshot of a database as Arrow: PostgreSQL's binary COPY, parsed by ADBC's driver.

In: a URL and the name of an exported snapshot. Out: the rows of queries as record batches, while the server still
sends them. No error shows a query or a password.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi
from psycopg2.extensions import make_dsn

from planner.contracts.errors import DatabaseError
from planner.dataset.database import CONFLICT, SETTINGS, connect_error, connection_parts, server_error

BATCH_BYTES = 16 << 20


class Session:
    """A read-only transaction in a snapshot; a query at a time, and none behind an error."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection
        self._running: dbapi.Cursor | None = None

    def read(self, query: str, what: str) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of about `BATCH_BYTES`; uuid comes as 16 bytes, jsonb as text.

        Args:
            query: a SELECT.
            what: is being done, for the error.

        Raises:
            DatabaseError: the server refused or went away.
        """
        with self._connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)})
            self._running = cursor
            try:
                cursor.execute(query)
                for batch in cursor.fetch_record_batch():
                    yield _plain(batch)
            except (adbc_driver_manager.Error, OSError, pa.ArrowException) as error:
                if not isinstance(error, adbc_driver_manager.Error) and "[libpq]" not in str(error):
                    raise
                raise _read_error(error, what) from None
            finally:
                self._running = None

    def cancel(self) -> None:
        """End the query that another thread reads, if there is one; it fails."""
        running = self._running
        if running is not None:
            with contextlib.suppress(adbc_driver_manager.Error):
                running.adbc_cancel()

    def close(self) -> None:
        """End the transaction."""
        with contextlib.suppress(adbc_driver_manager.Error):
            self._connection.close()


def open_session(url: str, snapshot: str) -> Session:
    """Open a session that sees what the exporter of the snapshot sees.

    Raises:
        DatabaseError: no connection, or the snapshot is gone.
    """
    try:
        connection = dbapi.connect(make_dsn(**connection_parts(url)), autocommit=True)
    except adbc_driver_manager.Error as error:
        raise connect_error(url, _detail(error)) from None
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    try:
        with connection.cursor() as cursor:
            for statement in (*SETTINGS, begin, f"SET TRANSACTION SNAPSHOT '{snapshot}'"):
                cursor.execute(statement)
    except adbc_driver_manager.Error as error:
        connection.close()
        if error.sqlstate in ("42704", "22023"):
            raise DatabaseError(
                "The snapshot that the build reads is gone: the server ended the connection that holds it, as a "
                "standby does where replaying is in the way (max_standby_streaming_delay, hot_standby_feedback). "
                "Nothing was published; run it again."
            ) from None
        raise _read_error(error, "taking the shared snapshot") from None
    return Session(connection)


def share_out(steps: Iterable[Callable[[Session], None]], sessions: Sequence[Session]) -> None:
    """Run the steps, each on the next session that is free; a session has a thread of its own.

    The first error ends the others too: their queries are cancelled, and it is raised.
    """
    work: queue.SimpleQueue[Callable[[Session], None]] = queue.SimpleQueue()
    for step in steps:
        work.put(step)
    stopped = threading.Event()

    def run(session: Session) -> None:
        while not stopped.is_set():
            try:
                step = work.get_nowait()
            except queue.Empty:
                return
            step(session)

    with ThreadPoolExecutor(len(sessions), "session", initializer=_unhurried) as pool:
        futures = [pool.submit(run, session) for session in sessions]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stopped.set()
            while wait(futures, timeout=0.05).not_done:  # a query may begin between two looks
                for session in sessions:
                    session.cancel()
            raise


def _unhurried() -> None:
    """Let the server send much before this thread is woken, and not a switch of threads for each 8 kB."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


# A stream that breaks comes without a code: what the server says of it, with the code it stands for.
_SAID = {
    "due to statement timeout": "57014",
    "due to conflict with recovery": CONFLICT,
    "permission denied": "42501",
}


def _read_error(error: Exception, what: str) -> DatabaseError:
    detail = _detail(error)
    code = getattr(error, "sqlstate", None)
    if not code:
        said = (code for words, code in _SAID.items() if words in detail)
        code = next(said, "XX000" if "ERROR:" in str(error) and "canceling statement" not in detail else "")
    return server_error(code, detail, what)


def _detail(error: Any) -> str:
    """The one line that the server or libpq said, without the query and the driver's words around it."""
    text = str(error).partition("Query was:")[0]
    said = re.search(r"(?:ERROR|FATAL|PANIC):\s+([^\n]*)", text)
    if said:
        return said.group(1).strip()
    return " ".join(text.rpartition("[libpq]")[2].split()).rstrip(".")
