"""Rows by id from the build's snapshot: as Arrow columns through COPY, or one by one where they are huge.

In: a query over one table and ids of it. Out: a table of texts. Nothing is written; only primary keys are needed.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg2.extensions import connection as Connection

from planner.dataset.database import query_error

Rows = dict[Any, tuple[Any, ...]]
_FETCH_ROWS = 512
# Stored bytes (compressed where PostgreSQL compresses) of a jsonb value that COPY takes along with 4,095 others.
_LARGE_BYTES = 32_768


def fetch_columns(connection: Connection, columns: Sequence[str], source: str, wide: str, ids: pa.Array) -> pa.Table:
    """Read text columns for ids; each distinct id once, in no order of its own.

    Args:
        connection: in the snapshot that the whole build reads.
        columns: SQL expressions of texts; the first is the id.
        source: `FROM …` of the table, whose id column is `id`.
        wide: the jsonb column that may be huge; such rows come through a cursor.
        ids: UUIDs as texts, or whole numbers; nulls are passed over.

    Raises:
        DatabaseError: the server refused or went away.
    """
    names = [f"c{index}" for index in range(len(columns))]
    kind = pa.schema([(name, pa.string()) for name in names])
    distinct = ids.unique().drop_null()
    if not len(distinct):
        return kind.empty_table()
    array = "bigint[]" if pa.types.is_integer(ids.type) else "uuid[]"
    listed = ",".join(distinct.cast(pa.string()).to_pylist())
    select = f"SELECT {', '.join(columns)} {source} WHERE id = ANY('{{{listed}}}'::{array})"
    content = io.BytesIO()
    try:
        with connection.cursor() as cursor:
            # Control characters cannot stand in JSON texts, so nearly nothing is quoted; what must be is doubled.
            cursor.copy_expert(
                f"COPY ({select} AND coalesce(pg_column_size({wide}), 0) <= {_LARGE_BYTES}) TO STDOUT "
                "(FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02')",
                content,
            )
    except psycopg2.Error as error:
        raise query_error(error, "fetching rows by id") from None
    table = _read(content.getbuffer(), kind)
    if table.num_rows < len(distinct):
        large = [row for row in query(connection, f"{select} AND pg_column_size({wide}) > {_LARGE_BYTES}")]
        if large:
            rest = [pa.array(column, pa.string()) for column in zip(*large, strict=True)]
            table = pa.concat_tables([table, pa.Table.from_arrays(rest, schema=kind)])
    return table.combine_chunks()


def fetch_rows(connection: Connection, statement: str, ids: Collection[Any]) -> Rows:
    """Rows by their first column; each distinct id is fetched once."""
    if not ids:
        return {}
    return {row[0]: row[1:] for row in query(connection, statement, (sorted(set(ids)),))}


def query(
    connection: Connection, statement: str, arguments: tuple[Any, ...] | None = None
) -> Iterator[tuple[Any, ...]]:
    """Rows through a server-side cursor: a payload of 10 MB must not meet 4,000 others in memory.

    Raises:
        DatabaseError: the server refused or went away.
    """
    try:
        with connection.cursor(name="wide") as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute(statement, arguments)
            yield from cursor
    except psycopg2.Error as error:
        raise query_error(error, "fetching rows by id") from None


def _read(content: memoryview, kind: pa.Schema) -> pa.Table:
    if not len(content):
        return kind.empty_table()
    return pacsv.read_csv(
        pa.BufferReader(content),
        read_options=pacsv.ReadOptions(column_names=kind.names, use_threads=False, block_size=len(content) + 1),
        parse_options=pacsv.ParseOptions(delimiter="\x02", quote_char="\x01", newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=kind, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
