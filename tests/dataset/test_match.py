"""Joins as of a time are, number by number, what looking at every entry gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dataset import match
from planner.dataset.arrays import ends_of, halves_of, mixed, uuid_texts, uuids_of
from planner.dataset.cuts import Cuts

SMALL = st.integers(0, 4)
ENTRY = st.tuples(SMALL, st.integers(-3, 6))


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRY, max_size=20), st.lists(ENTRY, max_size=10))
def test_latest_entry_is_the_last_one_that_is_not_newer(
    entries: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    entries = sorted(entries)
    wanted = [
        max((n for n, (home, us) in enumerate(entries) if home == at_home and us <= at_us), default=-1)
        for at_home, at_us in asked
    ]
    columns = (np.array(column, np.int64) for pairs in (entries, asked) for column in
               (zip(*pairs, strict=True) if pairs else ([], [])))  # fmt: skip
    assert match.latest_as_of(*columns).tolist() == wanted


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1), SMALL), max_size=30))
def test_order_is_by_time_and_then_by_id(rows: list[tuple[int, int, int]]) -> None:
    us, high, low = (
        np.array([row[n] for row in rows], kind) for n, kind in enumerate((np.int64, np.uint64, np.uint64))
    )
    found = match.order_by_time(us, high, low)
    assert [rows[n] for n in found] == sorted(rows)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(SMALL, st.integers(0, 3), SMALL, st.booleans()), max_size=24))
def test_previous_acceptance_is_the_latest_before_of_another_plan(rows: list[tuple[int, int, int, bool]]) -> None:
    """Of each plan, which belongs to household `plan % 2`, the first event is its generation."""
    rows = sorted(rows, key=lambda row: row[0])
    us, plan, valid = (np.array([row[n] for row in rows], kind) for n, kind in ((0, np.int64), (1, int), (3, bool)))
    first = {p: n for n, p in reversed(list(enumerate(plan.tolist())))}
    kind = np.array([0 if first[p] == n else 1 for n, p in enumerate(plan.tolist())], int)
    events = match.Events(plan % 2, plan, us, kind)
    plans = match.accepted_plans(events, -1)
    wanted = []
    for p, generated in zip(plans.plan, plans.generated, strict=True):
        before = [n for n in range(len(rows)) if kind[n] == 1 and valid[n] and us[n] < us[generated]
                  and plan[n] != p and plan[n] % 2 == p % 2]  # fmt: skip
        wanted.append(max(before, default=-1))
    assert match.previous_acceptances(events, plans, valid & (kind == 1)).tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.uuids(), max_size=5), st.integers(0, 5))
def test_ids_are_their_texts_and_back(ids: list[object], skipped: int) -> None:
    texts = pa.array([str(id_) for id_ in ids], pa.string()).slice(skipped)
    numbers = uuids_of(texts)
    assert uuid_texts(numbers).equals(texts)
    high, low = halves_of(numbers)
    assert [f"{int(h):016x}{int(n):016x}" for h, n in zip(high, low, strict=True)] == [
        text.replace("-", "") for text in texts.to_pylist()
    ]


@given(st.lists(st.text(max_size=12) | st.none(), max_size=8), st.integers(0, 8))
def test_same_household_has_the_same_part_wherever_it_stands(names: list[str | None], skipped: int) -> None:
    column = pa.array(names, pa.string())
    whole = mixed(0, ends_of(column))[skipped:].tolist()
    assert mixed(0, ends_of(column.slice(skipped))).tolist() == whole
    alone = [int(mixed(0, ends_of(pa.array([name], pa.string())))[0]) for name in names[skipped:]]
    assert alone == whole


@pytest.mark.parametrize("batch", [7, 1000, 200_000])
def test_cuts_make_ranges_of_about_one_size(batch: int) -> None:
    times = np.random.default_rng(1).integers(0, 10**9, 200_000) ** 2
    cuts = Cuts()
    for start in range(0, len(times), batch):
        cuts.add(times[start : start + batch])
    bounds = cuts.bounds(10_000)
    sizes = np.bincount(np.searchsorted(bounds, times, side="right"))
    assert len(sizes) == 20 and sizes.min() > 9_000 and sizes.max() < 11_000


def test_equal_times_are_in_one_range() -> None:
    cuts = Cuts()
    cuts.add(np.zeros(50_000, np.int64))
    assert len(cuts.bounds(10_000)) <= 1
