"""The rows of a build, from one shard or many and from an earlier version, in one file.

In: the coordinator's connection, in the snapshot of the build, and the servers that share the shards. Out: the finished
`training.parquet` and `sources.parquet`, byte for byte the same whatever the shards, and the sums of all counts.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError, DatasetError
from planner.dataset import versions
from planner.dataset.collect import Progress
from planner.dataset.config import DatasetConfig
from planner.dataset.counts import Counts
from planner.dataset.database import connect, masked, query_error, require_tables
from planner.dataset.earlier import EarlierRows
from planner.dataset.merge import merged, taken_rows
from planner.dataset.queries import Shard, hash_sql
from planner.dataset.reuse import Earlier
from planner.dataset.rows import Source, built_rows
from planner.dataset.shards import ShardResult, run_shards, shard_numbers, shard_rows
from planner.dataset.window import Window
from planner.dataset.write import write_training

REPLAY_TIMEOUT_S = 60


def gather(
    connection: Connection,
    urls: Sequence[str],
    config: DatasetConfig,
    folder: Path,
    known: Collection[str],
    earlier: Earlier | None,
    counted: Callable[[pa.RecordBatch], None],
    progress: Progress,
) -> Counts:
    """Write the rows, and give what was counted.

    Args:
        connection: to the first server, in the snapshot of the build.
        urls: the first server and its replicas.
        config: the window, and how many shards and processes.
        folder: where the files go; what else is made there is removed.
        known: ids of the catalogue.
        earlier: a version to take unchanged rows from.
        counted: given the rows as they are written.
        progress: told the rows so far.

    Raises:
        RowsDifferError: the earlier version's rows cannot be trusted.
        DatabaseError, DatasetError: as `build_dataset`.
    """
    work = folder / "shards"
    work.mkdir()
    try:
        if config.shards == 1 and len(urls) == 1:
            source = Source(
                urls[0], _value(connection, _EXPORT), Window.of(config), Shard(), tuple(known), _rows_of(earlier)
            )
            with built_rows(source, work, progress) as built:
                _write([built.batches()], built.reused, built.counts, folder, earlier, counted, progress)
                return built.counts
        if config.shards < len(urls):
            raise DatasetError(
                f"{len(urls)} servers cannot share {config.shards} shards. Set build_dataset.shards to at least "
                f"{len(urls)}, or name fewer replicas."
            )
        with _snapshots(connection, urls) as snapshots:
            tasks = [
                Source(
                    *snapshots[index % len(snapshots)],
                    Window.of(config),
                    Shard(index, config.shards),
                    tuple(known),
                    _rows_of(earlier),
                )
                for index in range(config.shards)
            ]
            results = _run(tasks, work, config, progress)
        counts = Counts.sum(result.counts for result in results)
        streams: list[Iterable[pa.RecordBatch]] = [shard_rows(work, index) for index in range(config.shards)]
        numbers = shard_numbers(work, config.shards)
        _write(streams, numbers, counts, folder, earlier, counted, progress)
        return counts
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rows_of(earlier: Earlier | None) -> EarlierRows | None:
    return earlier.rows if earlier else None


def _write(
    streams: Sequence[Iterable[pa.RecordBatch]],
    numbers: np.ndarray,
    counts: Counts,
    folder: Path,
    earlier: Earlier | None,
    counted: Callable[[pa.RecordBatch], None],
    progress: Progress,
) -> None:
    if earlier:
        taken = taken_rows(Path(earlier.rows.training), Path(earlier.rows.sources), numbers)
        streams = [*streams, taken]
    write_training(
        folder / versions.TRAINING,
        merged(streams, compare=earlier is not None),
        sources=folder / versions.SOURCES,
        counted=counted,
        written=lambda done: progress(done, counts.num_rows, "write rows"),
    )


def _run(tasks: Sequence[Source], work: Path, config: DatasetConfig, progress: Progress) -> list[ShardResult]:
    def told(done: int) -> None:
        progress(done, len(tasks), "build shards")

    if config.spark is None:
        return run_shards(tasks, work, processes=config.processes, done=told)
    from planner.dataset.spark import run_on_spark

    return run_on_spark(tasks, work, config.spark)


@contextlib.contextmanager
def _snapshots(connection: Connection, urls: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """URL and exported snapshot of every server, open while the shards read; replicas are as new as the first."""
    with contextlib.ExitStack() as stack:
        found = [(urls[0], _value(connection, _EXPORT))]
        seen, position, probe = (_value(connection, query) for query in (_SEEN, _POSITION, _PROBE))
        for url in urls[1:]:
            replica = stack.enter_context(contextlib.closing(connect(url, read_only=True)))
            try:
                _wait_until_replayed(replica, seen, position, url)
                replica.set_session(isolation_level="REPEATABLE READ", readonly=True)
                require_tables(replica)
                if _value(replica, _PROBE) != probe:
                    raise DatabaseError(
                        f"The server {masked(url)} hashes texts unlike the first one, so they cannot share shards. "
                        "Use replicas of the same PostgreSQL version.",
                        url=masked(url),
                    )
                found.append((url, _value(replica, _EXPORT)))
            except psycopg2.Error as error:
                raise query_error(error, f"preparing the replica {masked(url)}") from None
        yield found


def _wait_until_replayed(replica: Connection, seen: str, position: str, url: str) -> None:
    """Wait until a server in recovery sees every transaction that the first server's snapshot `seen` sees.

    Positions in the log are for the message alone: on an idle server they may stand in mid-record for 15 s.
    """
    until = time.monotonic() + REPLAY_TIMEOUT_S
    while _value(replica, _IS_BEHIND, seen):
        if time.monotonic() > until:
            behind = _value(replica, "SELECT greatest(pg_wal_lsn_diff(%s, pg_last_wal_replay_lsn()), 0)", position)
            raise DatabaseError(
                f"The replica {masked(url)} is {behind:,} bytes behind the first server and did not catch up in "
                f"{REPLAY_TIMEOUT_S} s. Wait for it, or leave it out of PLANNER_REPLICA_URLS.",
                url=masked(url),
            )
        replica.rollback()
        time.sleep(0.1)
    replica.rollback()


_EXPORT = "SELECT pg_export_snapshot()"
_SEEN = "SELECT pg_current_snapshot()::text"
_IS_BEHIND = """
SELECT pg_is_in_recovery() AND (
    pg_snapshot_xmax(own) < pg_snapshot_xmax(seen)
    OR EXISTS (SELECT FROM pg_snapshot_xip(own) AS running WHERE pg_visible_in_snapshot(running, seen)))
FROM (SELECT pg_current_snapshot() AS own, %s::pg_snapshot AS seen) snapshots
"""
_POSITION = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
_PROBE = f"SELECT sum({hash_sql('x')})::text FROM unnest('{{planner,h-1,é🍅}}'::text[]) x"


def _value(connection: Connection, query: str, *arguments: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments or None)
        row = cursor.fetchone()
    return row[0] if row else None
