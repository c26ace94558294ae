"""Arrow arrays and the numbers in them: nested lists from flat ones, ids as bytes and texts, hashes of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts import schema
from planner.dataset.values import Item

Reduceat = Callable[[np.ndarray, np.ndarray], np.ndarray]


def items(rows: Sequence[Sequence[Item]]) -> pa.ListArray:
    """`list<item>` per row."""
    return _list_of(schema.ITEM, rows)


def offsets_of(lists: pa.ListArray) -> pa.Int32Array:
    """Where each list begins in `lists.flatten()`, and where the last one ends; null is as long as an empty list."""
    lengths = pc.fill_null(pc.cast(pc.list_value_length(lists), pa.int32()), 0)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])


def per_list(lists: pa.ListArray, numbers: np.ndarray, reduceat: Reduceat) -> np.ndarray:
    """What is made of the numbers of a list's elements, of which each has one; 0 where a list has none."""
    lengths = np.diff(offsets_of(lists).to_numpy())
    found = np.zeros(len(lists), numbers.dtype)
    if len(numbers):
        found[lengths > 0] = reduceat(numbers, np.concatenate([[0], np.cumsum(lengths[lengths > 0])[:-1]]))
    return found


def places_in(lengths: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where the elements of the lists `at` stand, one list behind the other; `lengths` are of all lists."""
    starts, chosen = (np.cumsum(lengths) - lengths)[at], lengths[at]
    places: np.ndarray = np.arange(chosen.sum()) + np.repeat(starts - np.cumsum(chosen) + chosen, chosen)
    return places


def masked(texts: pa.StringArray, keep: np.ndarray) -> pa.StringArray:
    """The texts where `keep` is true, null elsewhere; their bytes are not copied."""
    valid = np.concatenate([np.zeros(texts.offset, bool), keep & texts.is_valid().to_numpy(zero_copy_only=False)])
    buffers = [pa.array(valid).buffers()[1], *texts.buffers()[1:]]
    return pa.StringArray.from_buffers(len(texts), *buffers[1:], buffers[0], -1, texts.offset)


def bytes_of_ids(ids: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Ids of 16 bytes as a row of bytes each; none is null."""
    content = np.frombuffer(ids.buffers()[1] or b"", np.uint8).reshape(-1, 16)
    return content[ids.offset : ids.offset + len(ids)]


def halves_of(ids: pa.FixedSizeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of 16 bytes as two numbers of 64 bits, which have the order of the ids as texts."""
    halves = np.ascontiguousarray(bytes_of_ids(ids)).view(">u8")
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def uuid_texts(ids: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Ids of 16 bytes as PostgreSQL prints a uuid."""
    content = bytes_of_ids(ids)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    texts = np.full((len(ids), 36), ord("-"), np.uint8)
    texts[:, _HIGH], texts[:, _LOW] = digits[content >> 4], digits[content & 15]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 36
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(texts))


def uuids_of(texts: pa.StringArray) -> pa.FixedSizeBinaryArray:
    """The inverse of `uuid_texts`."""
    digits = _DIGITS[_characters(texts)]
    content = np.ascontiguousarray(digits[:, _HIGH] << 4 | digits[:, _LOW])
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(texts), [None, pa.py_buffer(content)])


def _characters(texts: pa.StringArray) -> np.ndarray:
    """Texts of 36 characters as a row each; none is null."""
    content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    first = int(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset]) if len(texts) else 0
    return content[first : first + 36 * len(texts)].reshape(-1, 36)


def mixed(seed: int, columns: Sequence[np.ndarray]) -> np.ndarray:
    """64 bits of all columns, each stirred into what came before (splitmix64: Steele, Lea and Flood, 2014)."""
    found = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        found ^= column.astype(np.int64, copy=False).view(np.uint64) if column.dtype != np.uint64 else column
        found += np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found ^= found >> np.uint64(31)
    return found


def ends_of(texts: pa.StringArray) -> list[np.ndarray]:
    """Their lengths and last 8 bytes as numbers: unlike for most ids, cheap for all. Null is as the empty text."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(offsets)
    content = np.frombuffer(bytes(8) + bytes(texts.buffers()[2] or b""), np.uint8)
    last = np.lib.stride_tricks.sliding_window_view(content, 8)[offsets[1:]].view("<u8").reshape(-1)
    missing = (8 - np.minimum(lengths, 8)).astype(np.uint64)
    return [lengths, np.where(lengths > 0, last >> (missing % 8 * 8), 0).astype(np.uint64)]


# Where the two digits of each byte stand in the text of a uuid.
_HIGH = [2 * n + (n >= 4) + (n >= 6) + (n >= 8) + (n >= 10) for n in range(16)]
_LOW = [place + 1 for place in _HIGH]
_DIGITS = np.array([int(chr(n), 16) if chr(n) in "0123456789abcdef" else 0 for n in range(256)], np.uint8)


def _list_of(element: pa.StructType, rows: Sequence[Sequence[tuple[Any, ...]]]) -> pa.ListArray:
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    flat = list(chain.from_iterable(rows))
    columns = zip(*flat, strict=True) if flat else [()] * element.num_fields
    members = [pa.array(column, field.type) for column, field in zip(columns, element, strict=True)]
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(members, fields=list(element))
    )
