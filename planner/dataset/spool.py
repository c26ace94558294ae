"""Rows on disk by group: written as they come, read back a group at a time.

In: record batches, and the group of each row. Out: per group the rows that were written for it. Memory holds the places
of the messages alone; the file has no name, so it goes with its process, however that ends.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa


def neighbours(counts: Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Groups in their order, in runs of no more than `most` rows, or of one group.

    Args:
        counts: rows by group.
        most: rows.
    """
    chosen, num_rows = list[int](), 0
    for group in sorted(counts):
        if chosen and num_rows + counts[group] > most:
            yield chosen
            chosen, num_rows = [], 0
        chosen.append(group)
        num_rows += counts[group]
    if chosen:
        yield chosen


def runs_of(groups: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where each run of equal groups, which are 0 or more, begins and ends."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
    return zip(starts, [*starts[1:], len(groups)] if starts else [], strict=True)


class Spool:
    """Rows of one schema, in a new file; threads may share it.

    Args:
        path: where the file is made.
        schema: of its rows.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = path.open("w+b", buffering=0)
        path.unlink()
        self._places: dict[int, array[int]] = defaultdict(lambda: array("q"))  # place and size, in turn
        self._num_rows: dict[int, int] = defaultdict(int)
        self._lock, self._end = threading.Lock(), 0

    def put(self, groups: np.ndarray, batch: pa.RecordBatch) -> None:
        """Write the rows; `groups` has a number for each."""
        if np.any(np.diff(groups) < 0):
            order = np.argsort(groups, kind="stable")
            groups, batch = groups[order], batch.take(pa.array(order))
        for low, high in runs_of(groups):
            self.write(int(groups[low]), batch.slice(low, high - low))

    def write(self, group: int, rows: pa.RecordBatch) -> None:
        """Write rows of one group."""
        message = rows.serialize()
        with self._lock:
            place, self._end = self._end, self._end + message.size
            self._places[group].extend((place, message.size))
            self._num_rows[group] += rows.num_rows
        view, done = memoryview(message), 0
        while done < len(view):
            done += os.pwrite(self._file.fileno(), view[done:], place + done)

    def counts(self) -> dict[int, int]:
        """Rows by group."""
        return dict(self._num_rows)

    def read(self, group: int) -> pa.Table:
        """The rows of a group, in no particular order where threads wrote them."""
        places = self._places.get(group, array("q"))
        batches = [
            pa.ipc.read_record_batch(pa.py_buffer(os.pread(self._file.fileno(), size, place)), self.schema)
            for place, size in zip(places[::2], places[1::2], strict=True)
        ]
        return pa.Table.from_batches(batches, self.schema)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
