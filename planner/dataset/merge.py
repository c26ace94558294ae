"""Sorted streams of rows merged into one, in the order of the file: shards of households, and an earlier version.

In: streams of record batches of `ROW_SCHEMA`, each in the order (timestamp, event id). Out: one such stream. At most a
batch or two per stream are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from planner.dataset.coded import rows_as
from planner.dataset.write import ROW_SCHEMA

_BATCH_ROWS = 4096


class RowsDifferError(Exception):
    """A row that was taken from an earlier version is not the row that the database gives now."""


def merged(streams: Sequence[Iterable[pa.RecordBatch]], *, compare: bool = False) -> Iterator[pa.RecordBatch]:
    """Merge the streams; with `compare` a row that stands in two of them is given once.

    Raises:
        RowsDifferError: two rows of one event are not equal.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    heads = [head for stream in streams if (head := _Head(iter(stream))).fill()]
    while heads:
        bound = min(head.last for head in heads)
        parts = [part for head in heads if (part := head.take(bound)).num_rows]
        heads = [head for head in heads if head.fill()]
        if parts:
            yield _in_order(parts, compare)


def taken_rows(training: Path, sources: Path, numbers: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of a version by number, ascending, a few thousand at a time.

    Args:
        training: the version's rows.
        sources: their fingerprints, in the same row groups.
        numbers: which rows; ascending.
    """
    with (
        pq.ParquetFile(training, page_checksum_verification=True, pre_buffer=False) as rows,
        pq.ParquetFile(sources, page_checksum_verification=True, pre_buffer=False) as fingerprints,
    ):
        start = 0
        for group in range(rows.num_row_groups):
            stop = start + rows.metadata.row_group(group).num_rows
            low, high = np.searchsorted(numbers, [start, stop])
            if high > low:
                prints = fingerprints.read_row_group(group).column("source")
                yield from _chosen(rows, group, prints, numbers[low:high] - start)
            start = stop


def _chosen(
    rows: pq.ParquetFile, group: int, sources: pa.ChunkedArray, numbers: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group by number in it, a few thousand at a time: a whole group decoded is large."""
    start = 0
    for batch in rows.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
        low, high = np.searchsorted(numbers, [start, start + batch.num_rows])
        if high > low:
            table = pa.Table.from_batches([batch]).append_column(
                ROW_SCHEMA.field("source"), sources.slice(start, batch.num_rows)
            )
            chosen = table.take(pa.array(numbers[low:high] - start)).cast(ROW_SCHEMA).combine_chunks()
            yield from chosen.to_batches()
        start += batch.num_rows


class _Head:
    """A stream with the rows of it that were read and not yet given."""

    def __init__(self, stream: Iterator[pa.RecordBatch]) -> None:
        self._stream = stream
        self._rows = pa.RecordBatch.from_pylist([], ROW_SCHEMA)

    def fill(self) -> bool:
        """Read on where nothing is left; False at the stream's end."""
        while not self._rows.num_rows:
            batch = next(self._stream, None)
            if batch is None:
                return False
            self._rows = rows_as(batch, ROW_SCHEMA)
            self._us, self._ids = _keys(batch)
        return True

    @property
    def last(self) -> tuple[int, str]:
        """The key of the last row that was read."""
        return int(self._us[-1]), str(self._ids[-1])

    def take(self, bound: tuple[int, str]) -> pa.RecordBatch:
        """Give the rows up to `bound`, itself included."""
        low = int(np.searchsorted(self._us, bound[0], "left"))
        high = int(np.searchsorted(self._us, bound[0], "right"))
        count = low + int(np.count_nonzero(self._ids[low:high] <= bound[1]))
        given, self._rows = self._rows.slice(0, count), self._rows.slice(count)
        self._us, self._ids = self._us[count:], self._ids[count:]
        return given


def _keys(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    metadata = batch.column("metadata")
    us = metadata.field("timestamp").cast(pa.int64()).to_numpy()
    return us, metadata.field("event_id").to_numpy(zero_copy_only=False).astype(str)


def _in_order(parts: Sequence[pa.RecordBatch], compare: bool) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    rows = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    us, ids = _keys(rows)
    order = np.lexsort((ids, us))
    if not compare:
        return rows.take(pa.array(order))
    again = np.flatnonzero((us[order][1:] == us[order][:-1]) & (ids[order][1:] == ids[order][:-1]))
    if len(again):
        first, second = (rows.take(pa.array(order[again + n])) for n in (0, 1))
        if not first.equals(second):
            place = next(n for n in range(len(again)) if not first.slice(n, 1).equals(second.slice(n, 1)))
            raise RowsDifferError(str(ids[order[again[place]]]))
    return rows.take(pa.array(np.delete(order, again)))
