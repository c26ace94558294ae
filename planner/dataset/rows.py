"""The rows of a build, or of one shard of it, in the order of the file, from one snapshot of a database.

In: a `Source`. Out: record batches of `ROW_SCHEMA`, and what was counted on the way. Each table is read once
(`collect.py`), parts of the households are joined (`assemble.py`), and their rows wait on disk by ranges of time until
all are there. Memory is bounded by a part and a range per session, not by the window.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from planner.contracts.errors import DatabaseError
from planner.dataset import queries
from planner.dataset.arrays import halves_of
from planner.dataset.assemble import PARTS_OF_ROWS, make_rows, whole_rows
from planner.dataset.collect import Collected, Progress, collected
from planner.dataset.columns import column_of
from planner.dataset.counts import Counts
from planner.dataset.earlier import EarlierRows
from planner.dataset.lists import Lists
from planner.dataset.match import order_by_time
from planner.dataset.meals import Meals
from planner.dataset.pantries import NO_ITEMS, QUERY_SNAPSHOTS, Pantries
from planner.dataset.parts import part_numbers, read_part
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
# Of rows in memory at once, in the order of time.
RANGE_ROWS = 10_000
_RANGED = PARTS_OF_ROWS.append(pa.field("pantry", pa.int64()))


@dataclass(frozen=True)
class Built:
    """The rows that were built, on disk by ranges of time; `reused` numbers the earlier version's rows, ascending."""

    counts: Counts
    reused: np.ndarray
    ranges: Spool
    num_ranges: int
    meals: Meals
    pantries: Pantries

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in the order of the file, a row group at a time."""
        rows, items, kept = PARTS_OF_ROWS.empty_table(), NO_ITEMS, self.pantries.kept
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
        rows = found.take(pa.array(order_by_time(us, *halves_of(column_of(found.column("event_id"))))))
        return rows.select(PARTS_OF_ROWS.names), self.pantries.of(number, column_of(rows.column("pantry")))


@contextlib.contextmanager
def system_memory() -> Iterator[None]:
    """Let Arrow take memory from the system and give it back at the end; its own allocator is slower and keeps more."""
    before, pool = pa.default_memory_pool(), pa.system_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield
    finally:
        pa.set_memory_pool(before)
        pool.release_unused()


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
    meals = Meals(source.known)
    with (
        contextlib.closing(Spool(folder / "rows", _RANGED)) as ranges,
        contextlib.closing(Pantries(folder)) as pantries,
    ):
        with _sessions(source) as sessions:
            (pages,) = sessions[0].read(queries.PAGES, "looking at the table exp.events")
            size = pages.column("pages")[0].as_py(), pages.column("size")[0].as_py()
            with collected(sessions, source.window, source.shard, source.earlier, size, meals, folder, told) as found:
                making = _Making(source, found, meals, ranges, pantries, told)
                making.join(sessions)
            making.read_items(sessions)
        pa.default_memory_pool().release_unused()  # what parts took, before rows are written
        reused = np.sort(np.concatenate(making.reused))
        yield Built(Counts.sum(making.counts), reused, ranges, len(making.bounds) + 1, meals, pantries)


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


class _Making:
    """Rows on their way to the ranges of time that they belong to; `counts` and `reused` are of parts of them."""

    def __init__(
        self, source: Source, found: Collected, meals: Meals, ranges: Spool, pantries: Pantries, told: Progress
    ) -> None:
        self.counts, self.reused = [found.counts], [np.empty(0, np.int64)]
        self.bounds = found.times.bounds(RANGE_ROWS)
        self._source, self._found, self._meals, self._told = source, found, meals, told
        self._ranges, self._pantries, self._lock = ranges, pantries, threading.Lock()
        self._snapshots = found.snapshots.bounds(QUERY_SNAPSHOTS)

    def join(self, sessions: Sequence[Session]) -> None:
        """Make the rows of all parts but for their items, in as many threads as there are sessions."""
        self._each("join the parts", list(part_numbers(self._found)), self._make, sessions)

    def read_items(self, sessions: Sequence[Session]) -> None:
        """Read the items of the pantries that the rows take."""
        self._each("read the pantries", self._pantries.queries(), self._read, sessions)

    def _each(
        self,
        what: str,
        groups: Sequence[list[int]],
        count: Callable[[list[int], Session], Counts],
        sessions: Sequence[Session],
    ) -> None:
        done = itertools.count(1)

        def step(numbers: list[int], session: Session) -> None:
            counts = count(numbers, session)
            with self._lock:
                self.counts.append(counts)
                self._told(next(done), len(groups), what)

        share_out([partial(step, numbers) for numbers in groups], sessions)

    def _make(self, numbers: list[int], _: Session) -> Counts:
        freshness = self._source.earlier.fresh if self._source.earlier else None
        made = make_rows(read_part(self._found, numbers), self._source.window.start_us, self._meals, freshness)
        ranges = np.searchsorted(self.bounds, made.us, side="right")
        self._pantries.want(made.pantries, ranges, self._snapshots)
        self._ranges.put(ranges, pa.RecordBatch.from_arrays([*made.rows.columns, made.pantries], schema=_RANGED))
        self.reused.append(made.reused)
        return made.counts

    def _read(self, numbers: list[int], session: Session) -> Counts:
        return Counts(notes=self._pantries.read(numbers, session))
