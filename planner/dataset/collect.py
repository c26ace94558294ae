"""The tables of a build, each read once and spooled to disk by parts of the households.

In: one or two sessions in one snapshot. Out: a `Collected`: per part of the households everything that their rows are
made of but the pantries' items. Memory holds a batch per session.

The events of a table are read in pieces of its pages, so that two sessions share the work; those of a view come in one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.dataset import queries
from planner.dataset.arrays import ends_of, masked, mixed
from planner.dataset.counts import Counts
from planner.dataset.cuts import Cuts
from planner.dataset.earlier import EarlierRows
from planner.dataset.meals import NUMBERS, Meals
from planner.dataset.queries import ACCEPTED, EDIT, Shard
from planner.dataset.session import Session, share_out
from planner.dataset.spool import Spool
from planner.dataset.window import Window

# Of the events' table: about 100,000 events.
PART_BYTES = 64 << 20
# Of a view nobody knows how large it is.
VIEW_PARTS, MOST_PARTS = 64, 4096
# Pieces of a table that has at least so many pages for each of them.
PIECES, PIECE_PAGES = 16, 100
# PostgreSQL's minus infinity and all years before the first.
YEAR_ONE_US = -62_135_596_800_000_000
Progress = Callable[[int, int | None, str], None]


def _schema(columns: str, **kinds: pa.DataType) -> pa.Schema:
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns.split()])


_NUMBER, _ID = pa.int64(), pa.binary(16)
SCHEMAS = {
    "events": _schema(
        "id h p time kind edit meals policy workflow mode x",
        id=_ID,
        time=_NUMBER,
        kind=pa.int16(),
        meals=NUMBERS,
        x=_NUMBER,
    ),
    "pantries": _schema("id h time x", id=_NUMBER, time=_NUMBER, x=_NUMBER),
    "constraints": _schema("h time budget minutes excluded x", time=_NUMBER, minutes=_NUMBER, x=_NUMBER),
    "households": _schema("h size preferences restrictions region x", size=_NUMBER, x=_NUMBER),
    "earlier": _schema("h id row source usable", id=_ID, row=_NUMBER, source=_ID, usable=pa.bool_()),
}


def schema_of(table: str, with_xmin: bool) -> pa.Schema:
    """The columns of a table; `x` (see `queries.py`) is one of them where it is asked for."""
    schema = SCHEMAS[table]
    return schema if with_xmin or "x" not in schema.names else schema.remove(schema.get_field_index("x"))


@dataclass
class Collected:
    """What was read, by table and part; `counts` holds what the events alone tell.

    `times` are those of the window's acceptances, `snapshots` the pantries' ids.
    """

    spools: dict[str, Spool]
    num_parts: int
    times: Cuts = field(default_factory=Cuts)
    snapshots: Cuts = field(default_factory=Cuts)
    counts: Counts = field(default_factory=Counts)

    def schema(self, table: str) -> pa.Schema:
        """Of the table's rows."""
        return self.spools[table].schema

    def read(self, table: str, part: int) -> pa.Table:
        """The rows of a table that belong to the households of a part."""
        return self.spools[table].read(part)


@contextlib.contextmanager
def collected(
    sessions: Sequence[Session],
    window: Window,
    shard: Shard,
    earlier: EarlierRows | None,
    pages: tuple[int | None, int],
    meals: Meals,
    folder: Path,
    told: Progress,
) -> Iterator[Collected]:
    """Read the tables; the files go when the block ends.

    Args:
        sessions: in one snapshot; each is read in a thread of its own.
        window: acceptances to take.
        shard: the households to read.
        earlier: a version whose rows may be taken.
        pages: of the largest stored piece of the events' table (None: its rows have no place), and bytes of all.
        meals: where plans are read.
        folder: for the files.
        told: the number of events that were read.

    Raises:
        DatabaseError: the server refused or went away.
    """
    num_parts = _num_parts(pages, shard)
    with contextlib.ExitStack() as stack:
        spools = {
            table: stack.enter_context(contextlib.closing(Spool(folder / table, schema_of(table, earlier is not None))))
            for table in SCHEMAS
        }
        found = Collected(spools, num_parts)
        reading = _Reading(found, window, meals, told)
        steps: list[Callable[[Session], None]] = [
            partial(reading.read, *asked) for asked in _queries(window, shard, earlier is not None, pages[0])
        ]
        if earlier is not None:
            steps.append(lambda _: reading.read_earlier(earlier))
        share_out(steps, sessions)
        yield found


def _num_parts(pages: tuple[int | None, int], shard: Shard) -> int:
    if pages[0] is None:
        return VIEW_PARTS
    return min(MOST_PARTS, 1 + pages[1] // PART_BYTES // shard.count)


def _queries(window: Window, shard: Shard, with_xmin: bool, pages: int | None) -> Iterator[tuple[str, str, str]]:
    """Table, query, and what is being done; the pieces of the events last, so that all sessions end at about once."""
    end = window.end_us
    yield "pantries", queries.pantries_query(end, shard, with_xmin=with_xmin), "reading the pantries' times"
    yield "constraints", queries.constraints_query(end, shard, with_xmin=with_xmin), "reading the constraints"
    yield "households", queries.households_query(shard, with_xmin=with_xmin), "reading the households"
    pieces = PIECES if pages is not None and pages >= PIECE_PAGES * PIECES else 1
    cuts = [None, *(pages * n // pieces for n in range(1, pieces) if pages is not None), None]
    for low, high in zip(cuts, cuts[1:], strict=False):
        query = queries.events_query(end, shard, pages=(low, high), with_xmin=with_xmin)
        yield "events", query, "reading the events"


class _Reading:
    """Batches on their way to the spools."""

    def __init__(self, found: Collected, window: Window, meals: Meals, told: Progress) -> None:
        self._found, self._window, self._meals, self._told = found, window, meals, told
        self._lock, self._num_events = threading.Lock(), 0

    def read(self, table: str, query: str, what: str, session: Session) -> None:
        for batch in session.read(query, what):
            rows = self._events(batch) if table == "events" else _as_schema(batch, self._found.schema(table))
            self._put(table, rows)
            if table == "pantries":
                self._found.snapshots.add(rows.column("id").to_numpy())
            if table == "events":
                with self._lock:
                    self._num_events += batch.num_rows
                    self._told(self._num_events, None, "read the events")

    def read_earlier(self, earlier: EarlierRows) -> None:
        for rows in earlier.batches():
            self._put("earlier", rows)

    def _put(self, table: str, rows: pa.RecordBatch) -> None:
        self._found.spools[table].put(_parts_of(rows.column("h"), self._found.num_parts), rows)

    def _events(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Usable events with their plans read."""
        rows = self._usable(batch)
        body, is_plan = rows.column("body").cast(pa.string()), rows.column("kind").to_numpy() < EDIT
        more = {"meals": self._meals.read(masked(body, is_plan)), "edit": masked(body, ~is_plan)}
        return _as_schema(rows, self._found.schema("events"), more)

    def _usable(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Events that belong to a plan and a time; the others are counted."""
        us, start = rows.column("time").cast(_NUMBER).to_numpy(), self._window.start_us
        timed = us >= YEAR_ONE_US
        is_text = pc.and_(pc.starts_with(rows.column("p").cast(pa.string()), '"'), rows.column("h").is_valid())
        named = pc.fill_null(is_text, False).to_numpy(zero_copy_only=False)
        accepted = rows.column("kind").to_numpy() == ACCEPTED
        self._found.times.add(us[accepted & named & (us >= start)])
        lost = Counts(
            events_without_plan_id=int(np.count_nonzero(~named & timed & (us >= start))),
            events_without_time=int(np.count_nonzero(~timed)),
        )
        if lost != Counts():
            with self._lock:
                self._found.counts = Counts.sum([self._found.counts, lost])
        keep = timed & named
        return rows if keep.all() else rows.filter(pa.array(keep))


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema, more: Mapping[str, pa.Array] | None = None) -> pa.RecordBatch:
    """The batch with the columns of the schema: times as numbers, and nulls for what was not asked for."""
    given, columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), **(more or {})}, []
    for name, kind in zip(schema.names, schema.types, strict=True):
        column = given[name] if name in given else pa.nulls(batch.num_rows, kind)
        columns.append(column if column.type == kind else column.cast(kind))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _parts_of(homes: pa.StringArray, num_parts: int) -> np.ndarray:
    """The part of each household, by a hash of its id."""
    parts: np.ndarray = (mixed(0, ends_of(homes)) % np.uint64(num_parts)).astype(np.int64)
    return parts
