"""A part of the households with everything that was read for it, in the order in which it is joined.

In: the spools of `collect.py`. Out: a `Part`: tables, and beside them the numbers that `match.py` joins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.dataset.arrays import halves_of
from planner.dataset.collect import Collected
from planner.dataset.columns import column_of
from planner.dataset.match import Events, order_by_time
from planner.dataset.spool import neighbours

PART_EVENTS = 100_000


@dataclass(frozen=True)
class Entries:
    """Rows of a table about households that have events: `home` and `us` stand in the order (household, time)."""

    table: pa.Table
    home: np.ndarray
    us: np.ndarray

    def column(self, name: str) -> pa.Array:
        """A column in that order."""
        return column_of(self.table.column(name))


@dataclass(frozen=True)
class Part:
    """`numbers` are events in the order (time, id), and `order` says where in the table each of them stands.

    Of equal times of a household the entry to prefer stands last; `households` has at most one entry for a household.
    """

    events: pa.Table
    order: np.ndarray
    numbers: Events
    pantries: Entries
    constraints: Entries
    households: Entries
    earlier: pa.Table

    def event(self, name: str, at: np.ndarray) -> pa.Array:
        """A column of the events at some positions in their order; null where the position is -1."""
        places = np.append(self.order, -1)[at]
        return column_of(self.events.column(name)).take(pa.array(places, mask=at < 0))


def part_numbers(found: Collected) -> Iterator[list[int]]:
    """Neighbouring parts that are joined at once, so that no more than about `PART_EVENTS` events are in memory."""
    return neighbours(found.spools["events"].counts(), PART_EVENTS)


def read_part(found: Collected, numbers: Sequence[int]) -> Part:
    """Read some parts back as one, and put them in order."""

    def table(name: str) -> pa.Table:
        return pa.concat_tables([found.read(name, number) for number in numbers]).combine_chunks()

    events = table("events")
    us, (high, low) = events.column("time").to_numpy(), halves_of(column_of(events.column("id")))
    order = order_by_time(us, high, low)
    coded = column_of(events.column("h")).dictionary_encode()
    home = coded.indices.to_numpy()
    plan = _codes(home, column_of(events.column("p")))
    return Part(
        events.drop_columns(["h", "time"]),
        order,
        Events(home[order], plan[order], us[order], events.column("kind").to_numpy()[order]),
        _entries(table("pantries"), coded.dictionary, ["id"]),
        _entries(table("constraints"), coded.dictionary, ["budget", "minutes", "excluded"]),
        _one_each(_entries(table("households"), coded.dictionary, ["size", "preferences", "restrictions", "region"])),
        table("earlier"),
    )


def _codes(home: np.ndarray, texts: pa.StringArray) -> np.ndarray:
    """A number for each pair of household and text."""
    coded = texts.dictionary_encode()
    pairs = home.astype(np.int64) * len(coded.dictionary) + coded.indices.to_numpy()
    codes: np.ndarray = pa.array(pairs).dictionary_encode().indices.to_numpy()
    return codes


def _entries(table: pa.Table, homes: pa.StringArray, prefer: Sequence[str]) -> Entries:
    """In order; of equal times of a household the one with the highest columns `prefer` (null is the least) is last."""
    home = pc.fill_null(pc.index_in(column_of(table.column("h")), homes), -1).to_numpy()
    known = np.flatnonzero(home >= 0)
    table, home = table.take(pa.array(known)), home[known]
    us = table.column("time").to_numpy() if "time" in table.column_names else np.zeros(len(table), np.int64)
    order = np.lexsort((us, home))
    if np.any((np.diff(home[order]) == 0) & (np.diff(us[order]) == 0)):
        order = np.lexsort((_ranks(table, prefer), us, home))
    return Entries(table.take(pa.array(order)).combine_chunks(), home[order], us[order])


def _ranks(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    keys = [(name, "ascending", "at_start") for name in names]
    order = pc.sort_indices(table, options=pc.SortOptions(sort_keys=keys)).to_numpy()
    ranks = np.empty(len(table), np.int64)
    ranks[order] = np.arange(len(table))
    return ranks


def _one_each(homes: Entries) -> Entries:
    """Only the last of each household, which a site's view may name twice."""
    last = np.flatnonzero(np.diff(homes.home, append=-1) != 0)
    return Entries(homes.table.take(pa.array(last)).combine_chunks(), homes.home[last], homes.us[last])
