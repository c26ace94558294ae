"""Texts of lists of objects, cut into their objects, of which each distinct one is read once.

PostgreSQL prints jsonb in one way (members by length, then name; one space behind `:` and `,`; no exponents), so a
pattern tells the usual form of an object for certain. A text of the usual form is a list of objects that each match the
pattern: what stands between two objects cannot stand within a text of one, as the first object matches up to it, so it
is outside of texts, and so on behind it. The same objects come again and again, in one text and in the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.dataset.arrays import per_list

_MOST_KEPT, _MOST_BYTES = 1 << 17, 16 << 20


_Kept = tuple[pa.StringArray, pa.Array]


@dataclass(frozen=True)
class Found:
    """What the objects of some texts are: `usual` marks the texts of the usual form, of which the rest tells.

    Where the objects of each of them begin among all, and the end; which of `values` each object is. The first
    `num_kept` of the values are those that `Objects` keeps, at the same places for good.
    """

    usual: np.ndarray
    starts: np.ndarray
    codes: np.ndarray
    values: pa.Array
    num_kept: int


class Objects:
    """Objects of one kind, of which the first that come are kept; threads may share it.

    Args:
        read: gives the values of the insides of objects, null for another form than the usual one.
    """

    def __init__(self, read: Callable[[pa.StringArray], pa.Array]) -> None:
        self._read, self._lock = read, threading.Lock()
        nothing = pa.array([], pa.string())
        self._kept: _Kept = (nothing, read(nothing))

    def find(self, texts: pa.StringArray) -> Found:
        """The objects of texts; none of them is null."""
        brackets = pc.and_(pc.starts_with(texts, "[{"), pc.ends_with(texts, "}]"))
        usual = brackets.to_numpy(zero_copy_only=False).copy()
        pieces, starts = _pieces(texts if usual.all() else texts.filter(brackets))
        codes, values, num_kept = self._codes(pieces)
        if values.null_count:
            odd = values.is_null().to_numpy(zero_copy_only=False)[codes]
            lists = pa.ListArray.from_arrays(pa.array(starts), pa.array(codes))
            is_odd = per_list(lists, odd, np.logical_or.reduceat)
            usual[usual] = ~is_odd
            codes = codes[np.repeat(~is_odd, np.diff(starts))]
            starts = np.append(0, np.cumsum(np.diff(starts)[~is_odd])).astype(np.int32)
        return Found(usual, starts, codes, values, num_kept)

    @property
    def kept(self) -> pa.Array:
        """The values of the objects that are kept: more may come behind them."""
        return self._kept[1]

    def _codes(self, pieces: pa.StringArray) -> tuple[np.ndarray, pa.Array, int]:
        known = self._kept
        codes = pc.fill_null(pc.index_in(pieces, known[0]), -1).to_numpy()
        new = codes < 0
        if not new.any():
            return codes, known[1], len(known[0])
        more = pieces.filter(pa.array(new))
        distinct = more.unique()
        with self._lock:
            (kept, values), places = self._keep(distinct, known)
        others = places < 0
        if others.any():
            values = pa.concat_arrays([values, self._read(_insides(distinct.filter(pa.array(others))))])
            places[others] = np.arange(len(kept), len(values))
        codes = codes.copy()
        codes[new] = places[pc.index_in(more, distinct).to_numpy()]
        return codes, values, len(kept)

    def _keep(self, pieces: pa.StringArray, known: _Kept) -> tuple[_Kept, np.ndarray]:
        """Keep the pieces, none of which is among the `known`, as far as there is room; -1 is the place of the rest."""
        kept, values = self._kept
        places = np.full(len(pieces), -1, np.int32)
        if kept is not known[0]:  # another thread was here
            places = pc.fill_null(pc.index_in(pieces, kept), -1).to_numpy().copy()
        new = np.flatnonzero(places < 0)[: max(0, _MOST_KEPT - len(kept))]
        texts = pieces.take(pa.array(new))
        if len(new) and _size(kept) + _size(texts) <= _MOST_BYTES:
            places[new] = np.arange(len(kept), len(kept) + len(new))
            self._kept = pa.concat_arrays([kept, texts]), pa.concat_arrays([values, self._read(_insides(texts))])
        return self._kept, places


def in_place(usual: np.ndarray, lists: pa.Array, others: pa.Array) -> pa.Array:
    """`lists` where the mask is true, `others` elsewhere, both in their order."""
    place = np.empty(len(usual), np.int64)
    place[np.concatenate([np.flatnonzero(usual), np.flatnonzero(~usual)])] = np.arange(len(usual))
    return pa.concat_arrays([lists, others]).take(pa.array(place))


def _pieces(texts: pa.StringArray) -> tuple[pa.StringArray, np.ndarray]:
    """Texts from `[{` to `}]`, cut into their objects: all objects, and where those of each text begin, and the end.

    The cuts are places in the texts' own bytes, behind the brace that opens an object, so a piece ends with what stands
    in front of the next one: `}, {` or `}][{`, and `}]` at the end.
    """
    content = np.frombuffer(_bytes_of(texts), np.uint8)
    if not len(content):
        return pa.array([], pa.string()), np.zeros(len(texts) + 1, np.int32)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    begins = offsets[:-1] - offsets[0] + len("[{")
    braces = np.flatnonzero(content == ord("{"))
    # The first one, which has nothing in front of it, begins a text.
    cut, *more = (content[braces - back] == ord(sign) for back, sign in ((3, "}"), (2, ","), (1, " ")))
    for matches in more:
        cut &= matches
    cut[np.searchsorted(braces, begins - 1)] = True
    cuts = (braces[cut] + 1).astype(np.int32)
    places = np.append(cuts, np.int32(len(content)))
    pieces = pa.StringArray.from_buffers(len(cuts), pa.py_buffer(places), pa.py_buffer(content))
    return pieces, np.append(np.searchsorted(cuts, begins), len(cuts)).astype(np.int32)


def _insides(pieces: pa.StringArray) -> pa.StringArray:
    """What stands between the braces of the objects."""
    return pc.replace_substring_regex(pieces, r"\}(?:, \{|\](?:\[\{)?)$", "")


def _size(texts: pa.StringArray) -> int:
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def _bytes_of(texts: pa.StringArray) -> pa.Buffer:
    """The texts one behind the other: what the array's own buffer holds."""
    if not len(texts):
        return pa.py_buffer(b"")
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return texts.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
