"""Lists of structs in which each distinct struct stands once: small while a build works with them.

Texts are copied where rows are put in order, written to disk and read back, and the same few stand in list after list,
so until they are written lists hold numbers: of structs that the whole build keeps (`pieces.py`), or of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from planner.dataset.arrays import offsets_of, places_in
from planner.dataset.coded import taken


@dataclass(frozen=True)
class Lists:
    """How long each list is, and for the elements of all, list by list, what they are.

    A number of 0 or more is a place in `values` (structs), a negative one the complement (`~`) of a place among those
    that are kept for all lists.
    """

    lengths: np.ndarray
    numbers: np.ndarray
    values: pa.StructArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return int(self.lengths.nbytes + self.numbers.nbytes + self.values.nbytes)

    @classmethod
    def of(cls, numbers: pa.ListArray, values: pa.StructArray) -> Lists:
        """Of lists of numbers; null is the empty list."""
        return cls(np.diff(offsets_of(numbers).to_numpy()), numbers.flatten().to_numpy(), values)

    @classmethod
    def of_columns(cls, numbers: pa.ListArray, values: pa.ListArray) -> Lists:
        """Of what `columns` gave, or of several such pairs, one behind the other."""
        found, starts = cls.of(numbers, values.flatten()), offsets_of(values).to_numpy()
        first = np.maximum.accumulate(np.where(np.diff(starts), starts[:-1], 0))
        return found._shifted(np.repeat(first, found.lengths)) if len(found.values) else found

    @classmethod
    def concat(cls, parts: Sequence[Lists]) -> Lists:
        """One behind the other."""
        starts = np.cumsum([0, *(len(part.values) for part in parts)], dtype=np.int32)
        return cls(
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part._shifted(start).numbers for part, start in zip(parts, starts, strict=False)]),
            pa.concat_arrays([part.values for part in parts]),
        )

    def take(self, at: np.ndarray) -> Lists:
        """The lists at some positions; at -1 the empty one."""
        lengths = np.append(self.lengths, 0)
        return Lists(lengths[at], self.numbers[places_in(lengths, at)], self.values)

    def slices(self, ends: Sequence[int]) -> Iterator[Lists]:
        """The lists up to each of the ends, which ascend, from the one before."""
        low, first, offsets = 0, 0, np.append(0, np.cumsum(self.lengths))
        for high in ends:
            last = int(offsets[high])
            yield Lists(self.lengths[low:high], self.numbers[first:last], self.values)
            low, first = high, last

    def distinct(self) -> Lists:
        """The same lists, with no more values than they have."""
        if not len(self.values):
            return self
        numbers, own = self.numbers.copy(), self.numbers >= 0
        found = pa.array(numbers[own]).dictionary_encode()
        numbers[own] = found.indices.to_numpy()
        return Lists(self.lengths, numbers, self.values.take(found.dictionary))

    def columns(self) -> tuple[pa.ListArray, pa.ListArray]:
        """To lie in a file beside their rows: lists of numbers, and all values, in the first row's list."""
        first = np.where(np.arange(len(self.lengths) + 1) > 0, len(self.values), 0).astype(np.int32)
        return (
            pa.ListArray.from_arrays(self._offsets(), pa.array(self.numbers.astype(np.int32))),
            pa.ListArray.from_arrays(pa.array(first), self.values),
        )

    def whole(self, kept: pa.StructArray) -> pa.ListArray:
        """The lists with the structs themselves, their texts coded; `kept` are those of all lists."""
        values = pa.concat_arrays([kept, self.values])
        numbers = np.where(self.numbers < 0, ~self.numbers, self.numbers + len(kept))
        found = pa.array(numbers).dictionary_encode()
        members = [taken(member, found.indices) for member in values.take(found.dictionary).flatten()]
        structs = pa.StructArray.from_arrays(members, [field.name for field in values.type])
        return pa.ListArray.from_arrays(self._offsets(), structs)

    def _offsets(self) -> pa.Int32Array:
        return pa.array(np.append(0, np.cumsum(self.lengths)).astype(np.int32))

    def _shifted(self, by: np.ndarray | np.int32) -> Lists:
        """With other values in front of theirs: so many, the same for all numbers or one for each."""
        return Lists(self.lengths, np.where(self.numbers < 0, self.numbers, self.numbers + by), self.values)
