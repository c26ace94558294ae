"""The items of the pantries that rows take: each snapshot read once, in the order of the ids, mostly that of the pages.

In: the ids of snapshots, with the ranges of rows that take them, from all parts of the households. Out: per range the
items of its snapshots. What waits, waits on disk: ids by neighbouring ids, items by ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from planner.contracts import schema
from planner.contracts.errors import DatabaseError
from planner.dataset import queries
from planner.dataset.columns import column_of, item_column, item_objects
from planner.dataset.lists import Lists
from planner.dataset.session import Session
from planner.dataset.spool import Spool, neighbours, runs_of
from planner.dataset.values import Notes

# Snapshots that a query asks for, and what is read of them before it goes to disk.
QUERY_SNAPSHOTS, _MOST_BYTES = 25_000, 8 << 20
_WANTED = pa.schema([("id", pa.int64()), ("range", pa.int32())])
_ITEMS = pa.schema([("id", pa.int64()), ("items", pa.list_(pa.int32())), ("distinct", pa.list_(schema.ITEM))])
NO_ITEMS = Lists.of(pa.array([], pa.list_(pa.int32())), pa.array([], schema.ITEM))


class Pantries:
    """What rows want, then what they get; threads may share it.

    Args:
        folder: for two files, which go with `close`.
    """

    def __init__(self, folder: Path) -> None:
        self._objects = item_objects()
        self._wanted, self._items = Spool(folder / "wanted", _WANTED), Spool(folder / "items", _ITEMS)

    @property
    def kept(self) -> pa.StructArray:
        """The items that all lists share (`lists.py`)."""
        return self._objects.kept

    def want(self, ids: pa.Int64Array, ranges: np.ndarray, bounds: np.ndarray) -> None:
        """Rows of some households take these snapshots, null for none.

        Args:
            ids: of snapshots, for each row.
            ranges: the range that each row belongs to.
            bounds: ids, ascending, where queries may begin.
        """
        wanted, of = ids.drop_null().to_numpy(), ranges[ids.is_valid().to_numpy(zero_copy_only=False)]
        order = np.lexsort((of, wanted))
        wanted, of = wanted[order], of[order].astype(np.int32)
        first = (np.diff(wanted, prepend=wanted[:1] - 1) != 0) | (np.diff(of, prepend=-1) != 0)
        wanted, of = wanted[first], of[first]
        groups = np.searchsorted(bounds, wanted, side="right")
        self._wanted.put(groups, pa.RecordBatch.from_arrays([pa.array(wanted), pa.array(of)], schema=_WANTED))

    def queries(self) -> list[list[int]]:
        """Groups of ids to ask for at once."""
        return list(neighbours(self._wanted.counts(), QUERY_SNAPSHOTS))

    def read(self, groups: list[int], session: Session) -> Notes:
        """Read the items of some groups, and count what did not fit.

        Raises:
            DatabaseError: the server refused or went away, or some are not there any more.
        """
        notes: Notes = Counter()
        wanted = pa.concat_tables([self._wanted.read(group) for group in groups]).combine_chunks()
        ids, ranges = (column_of(column).to_numpy() for column in wanted.columns)
        distinct = np.unique(ids)
        missing = np.ones(len(distinct), bool)
        for found_ids, lists in self._batches(distinct, session, notes):
            missing &= ~np.isin(distinct, found_ids)
            self._spool(ids, ranges, found_ids, lists)
        if missing.any():
            raise DatabaseError(
                f"The pantries were read twice in one snapshot, and {np.count_nonzero(missing):,} of {len(missing):,} "
                "were not there again. Is public.pantry_snapshots a view whose ids change?"
            )
        return notes

    def of(self, number: int, ids: pa.Int64Array) -> Lists:
        """The items of the snapshots that rows of a range take; empty where a row takes none."""
        found = self._items.read(number).combine_chunks()
        of_id, numbers, values = (column_of(column) for column in found.columns)
        order = np.argsort(of_id.to_numpy(), kind="stable")  # a view may name a snapshot twice: the first one counts
        place = np.searchsorted(of_id.to_numpy()[order], ids.fill_null(0).to_numpy())
        at = np.append(order, -1)[np.where(ids.is_valid().to_numpy(zero_copy_only=False), place, len(order))]
        return Lists.of_columns(numbers, values).take(at)

    def close(self) -> None:
        """Remove the files."""
        self._wanted.close()
        self._items.close()

    def _batches(self, ids: np.ndarray, session: Session, notes: Notes) -> Iterator[tuple[np.ndarray, Lists]]:
        """The ids and items of snapshots as they come, so many at once that memory is bounded."""
        found_ids, lists, size = list[np.ndarray](), list[Lists](), 0
        for batch in session.read(queries.items_query(ids.tolist()), "reading the pantries"):
            found_ids.append(batch.column("id").to_numpy())
            lists.append(item_column(batch.column("items").cast(pa.string()), self._objects, notes))
            size += lists[-1].nbytes
            if size > _MOST_BYTES:
                yield np.concatenate(found_ids), Lists.concat(lists)
                found_ids, lists, size = [], [], 0
        if lists:
            yield np.concatenate(found_ids), Lists.concat(lists)

    def _spool(self, ids: np.ndarray, ranges: np.ndarray, found_ids: np.ndarray, lists: Lists) -> None:
        """Write items to each range that wants them."""
        order = np.argsort(found_ids, kind="stable")
        ordered = found_ids[order]
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        chosen = np.flatnonzero(ordered[place] == ids)
        chosen = chosen[np.argsort(ranges[chosen], kind="stable")]
        ids, ranges, lists = ids[chosen], ranges[chosen], lists.take(order[place[chosen]])
        runs = list(runs_of(ranges))
        for (low, high), few in zip(runs, lists.slices([high for _, high in runs]), strict=True):
            columns = [pa.array(ids[low:high]), *few.distinct().columns()]
            self._items.write(int(ranges[low]), pa.RecordBatch.from_arrays(columns, schema=_ITEMS))
