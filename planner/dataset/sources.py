"""What the server can prove about rows that were read before: which of them nobody has written since.

In: a connection in the build's snapshot. Out: a `SourceState`, kept in the manifest, and the comparison of two.

The proof: a transaction below the earlier build's `horizon` had ended when that build took its snapshot, and its number
is never given again. A source row that such a transaction wrote and that is visible now was visible then, with the same
content. So a row made of the same source rows, all of them written below the horizon, is the same row. That takes one
server (system, timeline, database), the same tables and columns, and the same code; what cannot be shown is not reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from planner.dataset.database import TABLES

_PACKAGE = Path(__file__).parents[1]
# What decides how source rows become rows of a version.
_CODE = (
    *(f"dataset/{name}.py" for name in ("arrays", "assemble", "collect", "columns", "cuts", "earlier", "lineage",
                                        "match", "meals", "parts", "pieces", "queries", "rows", "session", "sources",
                                        "spool", "values", "write")),
    "contracts/schema.py", "contracts/plan.py", "contracts/split.py",
)  # fmt: skip
# Columns that the fingerprint of a row's sources holds: a unique index over some of them names one source row.
_KEYS = {
    "exp.events": {"id", "timestamp", "unit_id", "unit_type", "event_type"},
    "public.pantry_snapshots": {"id", "household_id", "snapshot_time"},
    "public.households": {"id"},
    "public.household_constraints": {"household_id", "valid_from"},
}
_XIDS = 2**32


@dataclass(frozen=True)
class SourceState:
    """Where and when a build read its sources; `problem` says why nothing can be proved from it.

    `horizon` is the first transaction number that may be of a row that this build has not seen, `next_xid` the first
    that was not given yet; both with their epoch. `tables` holds per table what must stay, and its partitions.
    """

    server: str
    code: str
    tables: Mapping[str, Any]
    horizon: int
    next_xid: int
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as in `manifest.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Freshness:
    """Which `xmin` may belong to a transaction at or behind the horizon: `span` numbers from `low` on, modulo 2^32."""

    low: int
    span: int

    def marks(self, xmin: np.ndarray) -> np.ndarray:
        """The test for each number. Very old rows may count as fresh, never the other way round."""
        marked: np.ndarray = (xmin - self.low + _XIDS) % _XIDS <= self.span
        return marked


def source_state(connection: Connection) -> SourceState:
    """Describe the server, tables and transaction numbers of the snapshot that the connection is in.

    Raises:
        psycopg2.Error: the server went away.
    """
    none = SourceState("", "", {}, 0, 0)
    allowed = (
        "SELECT has_function_privilege('pg_control_system()', 'EXECUTE') "
        "AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE'), pg_is_in_recovery()"
    )
    may_read, in_recovery = _row(connection, allowed)
    if in_recovery:
        return _with(none, problem="a server in recovery was read, whose transactions may be undone")
    if not may_read:
        return _with(none, problem="the user may not call pg_control_system() and pg_control_checkpoint()")
    problem, tables = _tables(connection)
    # The checkpoint's number too: after a crash, numbers behind it may be given again.
    server, oldest, next_xid, checkpoint = _row(
        connection,
        "SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' || "
        "left(pg_walfile_name(pg_current_wal_lsn()), 8) || '/' || (SELECT oid FROM pg_database WHERE datname = "
        "current_database()) || '/' || current_setting('server_version_num'), "
        "pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, "
        "(SELECT next_xid FROM pg_control_checkpoint()) FROM pg_current_snapshot() s",
    )
    epoch, _, number = checkpoint.partition(":")
    horizon = min(oldest, int(epoch) * _XIDS + int(number))
    return SourceState(_short(server), code_hash(), tables, horizon, next_xid, problem)


def freshness(earlier: Mapping[str, Any] | None, now: SourceState) -> Freshness | str:
    """What tells old source rows from fresh ones, or a sentence about why nothing of the earlier build can be used."""
    if not earlier:
        return "it was built before sources were recorded"
    if earlier["problem"] or now.problem:
        return str(earlier["problem"] or now.problem)
    if earlier["server"] != now.server:
        return "it was read from another server, database or timeline"
    if earlier["code"] != now.code:
        return "the code or libraries that make rows have changed"
    for table, facts in now.tables.items():
        before = earlier["tables"].get(table)
        if before is None or before["shape"] != facts["shape"] or set(before["parts"]) - set(facts["parts"]):
            return f"the table {table} was altered"
    span = now.next_xid - earlier["horizon"]
    if not 0 <= span < _XIDS:
        return "the server's transaction numbers have gone once round since, or back"
    return Freshness(earlier["horizon"] % _XIDS, span)


@cache
def code_hash() -> str:
    """Over the code and libraries that decide how source rows become rows."""
    digest = hashlib.sha256(f"{pa.__version__} {duckdb.__version__}".encode())
    for name in _CODE:
        digest.update(name.encode() + b"\0" + hashlib.sha256((_PACKAGE / name).read_bytes()).digest())
    return digest.hexdigest()[:32]


def _tables(connection: Connection) -> tuple[str | None, dict[str, Any]]:
    tables: dict[str, Any] = {}
    for table, keys in _KEYS.items():
        oid, kind, method, inherited = _row(
            connection,
            "SELECT c.oid::bigint, relkind::text, coalesce(amname, 'heap'), relhassubclass FROM pg_class c "
            f"LEFT JOIN pg_am a ON a.oid = relam WHERE c.oid = '{table}'::regclass",
        )
        if kind not in "rp" or method != "heap" or (kind == "r" and inherited):
            return (
                f"{table} is no plain or partitioned table, so its rows tell nothing about when they were written",
                {},
            )
        parts = _rows(
            connection,
            "SELECT p.relid::oid::bigint, relkind = 'r' AND amname = 'heap' FROM pg_partition_tree("
            f"'{table}'::regclass) p JOIN pg_class c ON c.oid = p.relid LEFT JOIN pg_am a ON a.oid = relam "
            "WHERE p.isleaf ORDER BY 1",
        )
        if not all(plain for _, plain in parts):
            return f"a partition of {table} is no plain table", {}
        columns = _rows(
            connection,
            "SELECT attname::text, attnum, atttypid::bigint, atttypmod, attgenerated::text FROM pg_attribute WHERE "
            f"attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        )
        columns = [column for column in columns if column[0] in TABLES[table]]
        if any(column[4] for column in columns):
            return f"{table} has generated columns", {}
        if not any(set(index) <= keys for (index,) in _rows(connection, _UNIQUE, table)):
            return f"{table} has no unique index on its id", {}
        tables[table] = {"shape": _short(repr((oid, kind, columns))), "parts": [part for part, _ in parts]}
    return None, tables


_UNIQUE = """
SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
    AND a.attnum = ANY(i.indkey::int2[])
WHERE i.indrelid = %s::regclass AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid
"""


def _with(state: SourceState, **changes: Any) -> SourceState:
    return SourceState(**{**asdict(state), **changes})


def _row(connection: Connection, query: str) -> tuple[Any, ...]:
    return _rows(connection, query)[0]


def _rows(connection: Connection, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments or None)
        return list(cursor.fetchall())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
