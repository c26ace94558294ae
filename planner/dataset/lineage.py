"""What a row was made of: a fingerprint of its source rows, and which rows an earlier version can give instead.

In: positions of `match.py` and the columns that they stand in. Out: 16 bytes per row, and a choice for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from planner.dataset.arrays import bytes_of_ids, mixed

# Of the rows that could be taken from an earlier version, one in so many is built all the same and compared.
CHECK_EVERY = 64
# Two of 64 bits, of the digits of pi.
_SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344)
NEW, OTHER, FRESH, RECIPES, COMPARED, TAKEN = "new", "other", "fresh", "recipes", "compared", "taken"


def fingerprints(
    named: Sequence[np.ndarray], edits: Sequence[np.ndarray], edit_counts: np.ndarray
) -> pa.FixedSizeBinaryArray:
    """16 bytes for each row, from the ids and times of its sources.

    Args:
        named: whole numbers of 64 bits, one of each column for each row.
        edits: the same for the edits of all rows, row by row; which of them a row has says their order too.
        edit_counts: how many each row has.
    """
    halves = []
    rows = np.repeat(np.arange(len(edit_counts)), edit_counts)
    for seed in _SEEDS:
        of_edits = np.zeros(len(edit_counts), np.uint64)
        np.add.at(of_edits, rows, mixed(seed, edits))
        halves.append(mixed(seed, [*named, of_edits, edit_counts]))
    content = np.ascontiguousarray(np.stack(halves, axis=1).astype(">u8"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(edit_counts), [None, pa.py_buffer(content)])


def choices(ids: pa.Array, sources: pa.Array, fresh: np.ndarray, earlier: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """What an earlier version gives for each accepted plan: a reason against it, `compared` or `taken`, and its row.

    Args:
        ids: of the acceptances, 16 bytes each.
        sources: fingerprints of the plans as they are now.
        fresh: per plan whether one of its sources is fresh.
        earlier: `id, row, source, usable` of the earlier rows of the same households.
    """
    found = np.full(len(ids), NEW, object)
    number_of = {id_: n for n, id_ in enumerate(earlier.column("id").to_pylist())}
    at = np.array([number_of.get(id_, -1) for id_ in ids.to_pylist()], np.int64)
    known = np.flatnonzero(at >= 0)
    rows = np.full(len(ids), -1)
    rows[known] = earlier.column("row").to_numpy()[at[known]]
    then = earlier.column("source").to_pylist()
    same = np.array([source is not None and source == then[n] for source, n in zip(sources.to_pylist(), at, strict=True)
                     if n >= 0], bool)  # fmt: skip
    usable = earlier.column("usable").to_numpy()[at[known]]
    compared = bytes_of_ids(ids)[known, -4:].astype(np.int64) @ (1 << np.arange(24, -1, -8)) % CHECK_EVERY == 0
    conditions = [~same, fresh[known], ~usable.astype(bool), compared]
    found[known] = np.select(conditions, [OTHER, FRESH, RECIPES, COMPARED], TAKEN)
    return found, rows
