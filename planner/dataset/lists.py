"""Lists of structs in which each distinct struct stands once: small while a build works with them.

Texts are copied where rows are put in order, written to disk and read back, and the same few stand in list after list,
so until they are written lists hold numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from planner.dataset.arrays import offsets_of, places_in


@dataclass(frozen=True)
class Lists:
    """How long each list is, and for the elements of all, list by list, which of `values` (structs) they are."""

    lengths: np.ndarray
    numbers: np.ndarray
    values: pa.StructArray

    @classmethod
    def of(cls, numbers: pa.ListArray, values: pa.StructArray) -> Lists:
        """Of lists of numbers; null is the empty list."""
        return cls(np.diff(offsets_of(numbers).to_numpy()), numbers.flatten().to_numpy(), values)

    @classmethod
    def of_columns(cls, numbers: pa.ListArray, values: pa.ListArray) -> Lists:
        """Of what `columns` gave, or of several such pairs, one behind the other."""
        found, starts = cls.of(numbers, values.flatten()), offsets_of(values).to_numpy()
        first = np.maximum.accumulate(np.where(np.diff(starts), starts[:-1], 0))
        return cls(found.lengths, found.numbers + np.repeat(first, found.lengths), found.values)

    @classmethod
    def concat(cls, parts: Sequence[Lists]) -> Lists:
        """One behind the other."""
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        return cls(
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.numbers + start for part, start in zip(parts, starts, strict=False)]),
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
        place, order = np.empty(len(self.values), np.int32), np.arange(len(self.numbers), dtype=np.int32)
        place[self.numbers] = order
        used = self.numbers[place[self.numbers] == order]
        place[used] = order[: len(used)]
        return Lists(self.lengths, place[self.numbers], self.values.take(pa.array(used)))

    def columns(self) -> tuple[pa.ListArray, pa.ListArray]:
        """To lie in a file beside their rows: lists of numbers, and all values, in the first row's list."""
        offsets = np.append(0, np.cumsum(self.lengths)).astype(np.int32)
        first = np.where(np.arange(len(offsets)) > 0, len(self.values), 0).astype(np.int32)
        return (
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.numbers.astype(np.int32))),
            pa.ListArray.from_arrays(pa.array(first), self.values),
        )

    def whole(self) -> pa.ListArray:
        """The lists with the structs themselves."""
        offsets = pa.array(np.append(0, np.cumsum(self.lengths)).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, self.values.take(pa.array(self.numbers)))
