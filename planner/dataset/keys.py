"""Which plans become rows, and which other rows belong to each: ids and times only, joined as of plan time.

In: one read-only snapshot of the database. Out: a DuckDB connection with the table `plans`, one row per accepted plan
that may become a row, in the order of the file; the wide values are brought to these rows later (`wide.py`).

The narrow columns come by COPY and are joined in DuckDB: on 300,000 plans this took half the CPU of one SQL statement
(docs/dataset.md).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import numpy as np
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatasetError
from planner.dataset.config import DatasetConfig
from planner.dataset.joins import CHOICE, EARLIER, JOIN, REASONS, Shard, events_sql, sources
from planner.dataset.sources import Freshness
from planner.dataset.stream import copy_table, stored_order

DUCKDB_MEMORY = "250MB"
# Up to so many the joins run on two threads. What they cannot spill grows with the threads: with two, 10.8 million
# events did not fit; 1.08 million take a twentieth off the build's time and no more memory.
FEW_EVENTS = 1_500_000
# Once the joins are done, for looking up what they gave.
DUCKDB_MEMORY_AFTER = "100MB"
# Of the rows that could be taken from an earlier version, one in so many is built all the same and compared.
CHECK_EVERY = 64


@dataclass(frozen=True)
class Window:
    """The build's window in microseconds since 1970, UTC."""

    start_us: int
    end_us: int

    @classmethod
    def of(cls, config: DatasetConfig) -> Window:
        """From the midnights of the config's days."""
        return cls(_midnight_us(config.start_date), _midnight_us(config.end_date))

    @classmethod
    def between(cls, start_date: str, end_date: str) -> Window:
        """From two days as `YYYY-MM-DD`, as manifests hold them."""
        return cls(_midnight_us(date.fromisoformat(start_date)), _midnight_us(date.fromisoformat(end_date)))

    def __str__(self) -> str:
        start, end = (datetime.fromtimestamp(us // 1_000_000, UTC) for us in (self.start_us, self.end_us))
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"


@dataclass(frozen=True)
class EarlierRows:
    """Rows of an earlier version that may be taken: its files, what marks a source row as fresh, and the recipes.

    `removed` are recipe ids that the catalogue had then and has no more, `recipes_added` whether it has new ones.
    """

    training: str
    sources: str
    fresh: Freshness
    removed: tuple[str, ...] = ()
    recipes_added: bool = False


@dataclass(frozen=True)
class KeyCounts:
    """What the keys alone tell: `exclusions` lacks `invalid_plan`, which needs the plans themselves.

    `not_reused` counts by reason the plans that an earlier version could not give. `late_*` count joins that saw the
    future, over rows that are taken; they must stay 0.
    """

    num_plans_seen: int
    num_candidates: int
    exclusions: dict[str, int]
    events_without_plan_id: int
    events_without_time: int
    num_reused: int = 0
    not_reused: dict[str, int] = field(default_factory=dict)
    late_previous: int = 0
    late_pantry: int = 0


@dataclass(frozen=True)
class Keys:
    """The joined keys of a build: `engine` has the table `plans`.

    `events` is the `FROM …` of the events that were read, `num_events` their number, and `num_shards` in how many parts
    like this one the table is read; `folder` is for spilled values.
    """

    engine: duckdb.DuckDBPyConnection
    events: str
    num_events: int
    num_shards: int
    folder: Path

    def rest(self) -> None:
        """Give back the memory of the joins: rows are looked up in order from now on."""
        self.engine.execute(f"SET memory_limit = '{DUCKDB_MEMORY_AFTER}'")

    def close(self) -> None:
        """Give the memory back."""
        self.engine.close()


def load_keys(
    connection: Connection,
    window: Window,
    folder: Path,
    *,
    shard: Shard | None = None,
    earlier: EarlierRows | None = None,
) -> tuple[Keys, KeyCounts]:
    """Copy the narrow columns and join them.

    Args:
        connection: in the snapshot that the whole build reads.
        window: acceptances to take.
        folder: where DuckDB may spill, and values wait for their rows.
        shard: the households to take; None for all.
        earlier: rows that need not be built again where their sources are unchanged; `reused_rows` numbers them.

    Raises:
        DatabaseError: the server refused or went away.
    """
    folder.mkdir(exist_ok=True)
    keys = duckdb.connect(":memory:")
    keys.execute(f"SET memory_limit = '{DUCKDB_MEMORY}'")
    keys.execute("SET temp_directory = ?", [str(folder)])
    keys.execute("SET threads = 1")
    keys.execute("SET preserve_insertion_order = false")
    keys.execute("SET autoinstall_known_extensions = false")
    keys.execute("SET autoload_known_extensions = false")
    fresh = earlier.fresh.sql("x") if earlier else "false"
    shard = shard or Shard()
    num_rows = {}
    with stored_order(connection):
        for table, source in sources(window.end_us, shard, with_xmin=earlier is not None).items():
            kept = {**source.kept, "fresh": fresh}
            num_rows[table] = copy_table(connection, keys, table, source.columns, kept, source.query)
    if num_rows["events"] <= FEW_EVENTS:
        keys.execute("SET threads = 2")
    (no_plan_id, no_time), *_ = keys.execute(
        "SELECT count(*) FILTER (p IS NULL AND us >= $1), count(*) FILTER (us IS NULL) FROM events", [window.start_us]
    ).fetchall()
    keys.execute(JOIN.replace("$start", str(window.start_us)))
    found = dict(keys.execute("SELECT reason, count(*) FROM seen GROUP BY reason").fetchall())
    exclusions = {reason: int(found.get(reason, 0)) for reason in REASONS}
    if earlier:
        _load_earlier(keys, earlier)
    keys.execute(CHOICE.replace("$every", str(CHECK_EVERY)))
    choices = dict(keys.execute("SELECT choice, count(*) FROM candidates GROUP BY choice").fetchall())
    late_previous, late_pantry = keys.execute(
        "SELECT count(*) FILTER (previous_us >= t), count(*) FILTER (pantry_us > t) FROM candidates WHERE choice = "
        "'taken'"
    ).fetchall()[0]
    keys.execute("DROP TABLE candidates")
    keys.execute("SET preserve_insertion_order = true")  # values are brought to their rows in the order of tables
    joined = Keys(keys, events_sql(window.end_us, shard), num_rows["events"], shard.count, folder)
    return joined, KeyCounts(
        sum(found.values()),
        int(found.get(None, 0)),
        exclusions,
        int(no_plan_id),
        int(no_time),
        num_reused=int(choices.pop("taken", 0)),
        not_reused=choices if earlier else {},
        late_previous=late_previous,
        late_pantry=late_pantry,
    )


@contextlib.contextmanager
def engine_errors(num_shards: int) -> Iterator[None]:
    """What DuckDB says of memory and disk, as what to do about it.

    Raises:
        DatasetError: the joins do not fit into their memory, even with what they spill.
        OSError: the disk for what is spilled is full.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise DatasetError(
            f"The keys of the events do not fit into the {DUCKDB_MEMORY} that their joins may use. Set "
            f"build_dataset.shards to {2 * num_shards} or more: the result is the same.",
            shards=num_shards,
        ) from None
    except duckdb.IOException as error:
        raise OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error).split("\n")[0]) from None


def reused_rows(keys: Keys) -> np.ndarray:
    """Numbers of the earlier version's rows to take, ascending; those that are built all the same are among them."""
    numbers: np.ndarray = (
        keys.engine.execute("SELECT row FROM reused ORDER BY row").fetchnumpy()["row"].astype(np.int64)
    )
    return numbers


def event_range(connection: Connection) -> tuple[datetime | None, datetime | None]:
    """Times of the first and the last acceptance of any household plan, for the message about an empty window."""
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT min("timestamp"), max("timestamp") FROM exp.events WHERE unit_type = \'household\' '
            "AND event_type = 'plan_accepted' AND \"timestamp\" >= '0001-01-01' AND \"timestamp\" < '9999-12-31'"
        )
        row = cursor.fetchone()
    return row if row is not None else (None, None)


def _midnight_us(day: date) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return (midnight - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)


def _load_earlier(keys: duckdb.DuckDBPyConnection, earlier: EarlierRows) -> None:
    """The rows of the earlier version that this window asks for, with the fingerprint of their sources."""
    keys.execute(EARLIER, {"training": earlier.training, "sources": earlier.sources})
    if not (earlier.removed or earlier.recipes_added):
        return
    # A plan that names a removed recipe breaks the contract now; a broken one may meet it with a new recipe.
    keys.execute(
        "UPDATE earlier SET usable = false WHERE row IN (SELECT file_row_number FROM read_parquet($training, "
        "file_row_number = true) WHERE (metadata.generated_plan IS NULL AND $added) OR list_has_any([meal.recipe_id "
        "FOR meal IN target.accepted_plan.meals], $removed::VARCHAR[]) OR list_has_any([meal.recipe_id FOR meal IN "
        "coalesce(metadata.generated_plan.meals, [])], $removed::VARCHAR[]))",
        {"training": earlier.training, "added": earlier.recipes_added, "removed": list(earlier.removed)},
    )
