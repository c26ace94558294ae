"""Rows of a query as Arrow tables while the server still sends them, so that neither side holds them all.

In: a connection in the build's snapshot and a query. Out: tables of some megabytes each, or a DuckDB table, filled.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping

import duckdb
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS
from psycopg2.extensions import connection as Connection

from planner.dataset.database import query_error

CHUNK_BYTES = 8 << 20


def copy_tables(
    connection: Connection, query: str, columns: Mapping[str, pa.DataType], what: str
) -> Iterator[pa.Table]:
    """Yield a query's rows in the order in which they come, in tables of about `CHUNK_BYTES` of text.

    Args:
        connection: in the snapshot that the whole build reads.
        query: what is copied.
        columns: Arrow types by name, in the order of the query.
        what: is being done, for the error.

    Raises:
        DatabaseError: the server refused or went away.
    """
    kinds = pa.schema(list(columns.items()))
    copy = _Copy(connection, query)
    try:
        while (content := copy.chunk()) is not None:
            yield _read_rows(content, kinds)
    except psycopg2.Error as error:
        raise query_error(error, what) from None
    finally:
        copy.end()


def copy_table(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    table: str,
    columns: Mapping[str, pa.DataType],
    kept: Mapping[str, str],
    query: str,
) -> int:
    """COPY a query's rows into a new DuckDB table, and give their number.

    Args:
        connection: in the snapshot that the whole build reads.
        keys: where the table is made.
        table: its name.
        columns: Arrow types by name, in the order of the query; `place` becomes number of the row * 2^32 + value.
        kept: expressions over them by column of the table.
        query: what is copied.

    Raises:
        DatabaseError: the server refused or went away.
    """
    select = f"SELECT {', '.join(f'{value} AS {name}' for name, value in kept.items())} FROM part"
    part = pa.schema(list(columns.items())).empty_table()
    keys.execute(f"CREATE TABLE {table} AS {select}")
    num_rows = 0
    for part in copy_tables(connection, query, columns, "copying the keys"):
        if "place" in columns:
            places = pa.array(np.arange(num_rows, num_rows + len(part)) << 32 | part.column("place").to_numpy())
            part = part.set_column(part.column_names.index("place"), "place", places)
        keys.execute(f"INSERT INTO {table} {select}")
        num_rows += len(part)
    return num_rows


@contextlib.contextmanager
def stored_order(connection: Connection) -> Iterator[None]:
    """Within the block a scan of a table gives its rows in the order in which they are stored.

    So two queries of one snapshot with the same `FROM … WHERE …` give the same rows in the same order, whatever they
    select: nothing but a sequential scan from the first page on is left, and no visible row moves within a snapshot.

    Raises:
        DatabaseError: the server refused or went away.
    """
    settings = {f"enable_{scan}": "off" for scan in ("indexscan", "indexonlyscan", "bitmapscan")}
    settings |= {"enable_seqscan": "on", "synchronize_seqscans": "off", "max_parallel_workers_per_gather": "0"}
    _set(connection, settings)
    try:
        yield
    finally:
        if connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS:
            _set(connection, dict.fromkeys(settings, "DEFAULT"))


def _copy_statement(query: str) -> str:
    """The COPY whose rows `_read_rows` reads.

    Control characters cannot stand in JSON texts, so nearly nothing is quoted; what must be is doubled.
    """
    return f"COPY ({query}) TO STDOUT (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02')"


def _read_rows(content: bytearray | memoryview, kinds: pa.Schema) -> pa.Table:
    """Whole rows of a COPY as a table; an empty text is not null."""
    if not len(content):
        return kinds.empty_table()
    return pacsv.read_csv(
        pa.BufferReader(content),
        read_options=pacsv.ReadOptions(column_names=kinds.names, use_threads=False, block_size=len(content) + 1),
        parse_options=pacsv.ParseOptions(delimiter="\x02", quote_char="\x01", newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("".join(f"SET LOCAL {name} TO {value};" for name, value in settings.items()))
    except psycopg2.Error as error:
        raise query_error(error, "choosing how tables are read") from None


class _Copy:
    """A COPY in a thread of its own; its chunks are whole rows, and at most two of them wait."""

    def __init__(self, connection: Connection, query: str) -> None:
        self._connection, self._query = connection, query
        self._ready: queue.Queue[bytearray | BaseException | None] = queue.Queue(2)
        self._ended = threading.Event()
        self._rows, self._done = bytearray(), False
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._thread.start()

    def chunk(self) -> bytearray | None:
        """The next rows, or None behind the last; raises what the COPY raised."""
        found = self._ready.get()
        self._done = not isinstance(found, bytearray)
        if isinstance(found, BaseException):
            raise found
        return found

    def end(self) -> None:
        """Wait until the connection is free; what is not done yet is cancelled, and the transaction with it."""
        self._ended.set()
        if not self._done:
            with contextlib.suppress(psycopg2.Error):
                self._connection.cancel()
        self._thread.join()

    def write(self, row: bytes) -> None:
        """Called by psycopg2 with one row at a time."""
        if self._ended.is_set():
            return
        self._rows += row
        if len(self._rows) >= CHUNK_BYTES:
            self._give(self._rows)
            self._rows = bytearray()

    def _run(self) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.copy_expert(_copy_statement(self._query), self)
            if self._rows:
                self._give(self._rows)
            self._give(None)
        except BaseException as error:
            self._give(error)

    def _give(self, chunk: bytearray | BaseException | None) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(chunk, timeout=0.1)
