"""Rows of a query into a DuckDB table, streaming, so that neither side holds them all.

In: a connection in the build's snapshot and a query of narrow columns. Out: the table, filled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import duckdb
import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg2.extensions import connection as Connection

from planner.dataset.database import query_error

_BLOCK_BYTES = 4 << 20
_ARROW = {"UUID": pa.string(), "VARCHAR": pa.string(), "BIGINT": pa.int64(), "TINYINT": pa.int8()}


def copy_table(
    connection: Connection,
    keys: duckdb.DuckDBPyConnection,
    table: str,
    columns: Mapping[str, str],
    query: str,
    *,
    added: str,
) -> None:
    """COPY a query's rows into a new DuckDB table; every field is quoted, so any text is safe.

    Args:
        connection: in the snapshot that the whole build reads.
        keys: where the table is made.
        table: its name.
        columns: DuckDB types by name, in the order of the query.
        query: what is copied.
        added: a further boolean column, as `expression AS name` over the others; `x` is not kept.

    Raises:
        DatabaseError: the server refused or went away.
    """
    kept = {name: kind for name, kind in columns.items() if name != "x"}
    names = ", ".join(f"{name} {kind}" for name, kind in kept.items())
    keys.execute(f"CREATE TABLE {table} ({names}, {added.rpartition(' ')[2]} BOOLEAN)")
    with _copied(connection, query) as stream:
        if not stream.peek(1):  # type: ignore[attr-defined]
            return
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=list(columns), block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: _ARROW[kind] for name, kind in columns.items()},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            part = pa.Table.from_batches([batch])  # noqa: F841 - DuckDB reads it by its name
            keys.execute(f"INSERT INTO {table} SELECT {', '.join(kept)}, {added} FROM part")


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
