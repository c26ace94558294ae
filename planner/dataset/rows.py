"""The rows of a build, or of one shard of it, in the order of the file, from one snapshot of a database.

In: a `Source`. Out: record batches of `ROW_SCHEMA`, and what was counted on the way. Each table is read once
(`collect.py`), parts of the households are joined (`assemble.py`), and their rows wait on disk by ranges of time until
all are there. Memory is bounded by a part and a range per session, not by the window.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from planner.contracts import schema
from planner.contracts.errors import DatabaseError
from planner.dataset import queries
from planner.dataset.arrays import halves_of
from planner.dataset.assemble import PARTS_OF_ROWS, make_rows, whole_rows
from planner.dataset.collect import Collected, Progress, collected
from planner.dataset.columns import column_of, item_objects
from planner.dataset.counts import Counts
from planner.dataset.earlier import EarlierRows
from planner.dataset.lists import Lists
from planner.dataset.match import order_by_time
from planner.dataset.meals import Meals
from planner.dataset.parts import part_numbers, read_part
from planner.dataset.pieces import Objects
from planner.dataset.queries import Shard
from planner.dataset.session import Session, open_session, share_out
from planner.dataset.sources import Freshness
from planner.dataset.spool import Spool
from planner.dataset.window import Window
from planner.dataset.write import ROW_GROUP_ROWS


@dataclass(frozen=True)
class Source:
    """What to read, as plain values: a shard may run on another machine.

    `snapshot` is the name of an exported snapshot of the server at `url`; `known` the ids of the catalogue.
    """

    url: str
    snapshot: str
    window: Window
    shard: Shard
    known: tuple[str, ...]
    earlier: EarlierRows | None

    def to_json(self) -> str:
        """For another process; holds the URL, so it goes through pipes only."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        """Its inverse."""
        value = json.loads(text)
        earlier = value["earlier"]
        if earlier:
            earlier = EarlierRows(
                **{**earlier, "fresh": Freshness(**earlier["fresh"]), "removed": (*earlier["removed"],)}
            )
        return cls(value["url"], value["snapshot"], Window(**value["window"]), Shard(**value["shard"]),
                   tuple(value["known"]), earlier)  # fmt: skip


SESSIONS = 2
ITEMS = pa.schema([("items", pa.list_(pa.int32())), ("distinct", pa.list_(schema.ITEM))])
NO_ITEMS = Lists.of(pa.array([], pa.list_(pa.int32())), pa.array([], schema.ITEM))


@dataclass(frozen=True)
class Built:
    """The rows that were built, on disk by ranges of time; `reused` numbers the earlier version's rows, ascending."""

    counts: Counts
    reused: np.ndarray
    ranges: Spool
    num_ranges: int
    meals: Meals
    items: Objects

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in the order of the file, a row group at a time."""
        rows, items, kept = PARTS_OF_ROWS.empty_table(), NO_ITEMS, self.items.kept
        for number in range(self.num_ranges):
            more, more_items = self._range(number)
            rows, items = pa.concat_tables([rows, more]), Lists.concat([items, more_items])
            while len(rows) >= ROW_GROUP_ROWS:
                first, rest = items.slices([ROW_GROUP_ROWS, len(rows)])
                yield whole_rows(rows.slice(0, ROW_GROUP_ROWS), first.whole(kept), self.meals)
                rows, items = rows.slice(ROW_GROUP_ROWS), rest.distinct()
        if len(rows):
            yield whole_rows(rows, items.whole(kept), self.meals)

    def _range(self, number: int) -> tuple[pa.Table, Lists]:
        """The rows of a range in order, and the items of their pantries."""
        found = self.ranges.read(number).combine_chunks()
        us = column_of(found.column("timestamp")).cast(pa.int64()).to_numpy()
        order = order_by_time(us, *halves_of(column_of(found.column("event_id"))))
        items = Lists.of_columns(*(column_of(found.column(name)) for name in ITEMS.names))
        return found.select(PARTS_OF_ROWS.names).take(pa.array(order)), items.take(order)


@contextlib.contextmanager
def built_rows(source: Source, folder: Path, told: Progress) -> Iterator[Built]:
    """Build the rows; their files in `folder` go when the block ends.

    Args:
        source: what to read.
        folder: exists; for what does not fit into memory.
        told: what is done, and how much of it; from several threads, one at a time.

    Raises:
        DatabaseError: the server refused or went away, or the snapshot is gone.
    """
    meals, items = Meals(source.known), item_objects()
    with contextlib.closing(Spool(folder / "rows", pa.schema([*PARTS_OF_ROWS, *ITEMS]))) as ranges:
        with _sessions(source) as sessions:
            (pages,) = sessions[0].read(queries.PAGES, "looking at the table exp.events")
            size = pages.column("pages")[0].as_py(), pages.column("size")[0].as_py()
            with collected(sessions, source.window, source.shard, source.earlier, size, meals, folder, told) as found:
                bounds = found.cuts.bounds()
                counts, reused = _make_all(source, found, sessions, meals, items, ranges, bounds, told)
        pa.default_memory_pool().release_unused()  # what parts took, before rows are written
        yield Built(counts, reused, ranges, len(bounds) + 1, meals, items)


@contextlib.contextmanager
def _sessions(source: Source) -> Iterator[Sequence[Session]]:
    """Two sessions in the snapshot, or one where the server lets no more in."""
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(SESSIONS) as pool:
            opening = [pool.submit(open_session, source.url, source.snapshot) for _ in range(SESSIONS)]
        refused = [opened.exception() for opened in opening]
        sessions = [
            stack.enter_context(contextlib.closing(opened.result()))
            for opened, error in zip(opening, refused, strict=True)
            if error is None
        ]
        for error in refused:  # no more connections for this user, say
            if error is not None and not (sessions and isinstance(error, DatabaseError)):
                raise error
        yield sessions


def _make_all(
    source: Source,
    found: Collected,
    sessions: Sequence[Session],
    meals: Meals,
    items: Objects,
    ranges: Spool,
    bounds: np.ndarray,
    told: Progress,
) -> tuple[Counts, np.ndarray]:
    """Make the rows of all parts, and spool them by ranges."""
    freshness = source.earlier.fresh if source.earlier else None
    parts, lock = list(part_numbers(found)), threading.Lock()
    counts, reused = [found.counts], [np.empty(0, np.int64)]

    def make(numbers: Sequence[int], session: Session) -> None:
        part = read_part(found, numbers)
        made = make_rows(part, session, source.window.start_us, meals, items, freshness)
        groups = np.searchsorted(bounds, made.us, side="right")
        starts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
        ends = [*starts[1:], len(groups)] if starts else []
        for low, high, pantries in zip(starts, ends, made.items.slices(ends), strict=True):
            columns = [*made.rows.slice(low, high - low).columns, *pantries.distinct().columns()]
            ranges.write(int(groups[low]), pa.RecordBatch.from_arrays(columns, schema=ranges.schema))
        with lock:
            counts.append(made.counts)
            reused.append(made.reused)
            told(len(counts) - 1, len(parts), "join the parts")

    share_out([partial(make, numbers) for numbers in parts], sessions)
    return Counts.sum(counts), np.sort(np.concatenate(reused))
