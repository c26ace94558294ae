"""Values on disk by the range of rows that they belong to: written as they come, read back a range at a time.

In: record batches and the row of each value. Out: per range of `RANGE_ROWS` rows what was written for it. The file has
no name of its own in the index: a part is where it lies. Memory holds the places of the parts alone.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

RANGE_ROWS = 10_000


class Spool:
    """Values of one kind, in a file that goes with its folder.

    Args:
        path: of the new file.
        columns: Arrow types by name; the row of each value is kept beside them as `row`.
    """

    def __init__(self, path: Path, columns: Sequence[pa.Field]) -> None:
        self._schema = pa.schema([pa.field("row", pa.int64()), *columns])
        self._file = path.open("w+b")
        self._parts: dict[int, array[int]] = defaultdict(lambda: array("q"))  # place and size, in turn

    def put(self, rows: np.ndarray, columns_at: Callable[[pa.Array], Sequence[pa.Array]]) -> None:
        """Write the values that belong to `rows`; `columns_at` gives them in the order that it is asked for."""
        if not len(rows):
            return
        numbers = rows // RANGE_ROWS
        order = np.argsort(numbers, kind="stable")
        batch = pa.RecordBatch.from_arrays([pa.array(rows[order]), *columns_at(pa.array(order))], schema=self._schema)
        starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        for low, high in zip(starts, [*starts[1:], len(rows)], strict=True):
            message = batch.slice(low, high - low).serialize()
            self._parts[int(numbers[order[low]])].extend((self._file.tell(), message.size))
            self._file.write(message)

    def read(self, start: int) -> pa.Table:
        """The values of the rows from `start` to the end of its range, in the order in which they were written."""
        self._file.flush()
        parts = self._parts.pop(start // RANGE_ROWS, array("q"))
        batches = [
            pa.ipc.read_record_batch(pa.py_buffer(os.pread(self._file.fileno(), size, offset)), self._schema)
            for offset, size in zip(parts[::2], parts[1::2], strict=True)
        ]
        return pa.Table.from_batches(batches, self._schema).combine_chunks()

    def clear(self) -> None:
        """Forget what was written."""
        self._parts.clear()
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
