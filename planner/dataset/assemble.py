"""The rows of one part of the households: joined as of plan time, with the ids of their pantries' snapshots.

In: a `Part`. Out: the parts of rows in the order of time, the counts, and the rows that an earlier version gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts import schema
from planner.contracts.split import split_of
from planner.dataset import lineage, match, values
from planner.dataset.arrays import halves_of, places_in, uuid_texts
from planner.dataset.coded import as_type
from planner.dataset.columns import column_of, edit_column, text_column
from planner.dataset.counts import Counts
from planner.dataset.match import Plans
from planner.dataset.meals import NUMBERS, Meals
from planner.dataset.parts import Part
from planner.dataset.queries import ACCEPTED
from planner.dataset.sources import Freshness
from planner.dataset.values import Notes
from planner.dataset.write import ROW_SCHEMA, WRITTEN_SCHEMA


def _parts_of_rows() -> Iterator[pa.Field]:
    """The members of a row, with plans as numbers and the event's id in 16 bytes."""
    for name in ("input", "target", "metadata"):
        for field in schema.TRAINING_SCHEMA.field(name).type:
            kind = NUMBERS if field.type.equals(schema.PLAN) else field.type
            if field.name != "pantry":
                yield field.with_type(pa.binary(16) if field.name == "event_id" else kind)


PARTS_OF_ROWS = pa.schema([*_parts_of_rows(), ROW_SCHEMA.field("split"), ROW_SCHEMA.field("source")])


@dataclass(frozen=True)
class Made:
    """What came of a part: `us` are the times of `rows`, ascending, `reused` numbers of rows of the earlier version.

    `pantries` are the ids of the rows' snapshots, null for none.
    """

    rows: pa.RecordBatch
    pantries: pa.Int64Array
    us: np.ndarray
    counts: Counts
    reused: np.ndarray


@dataclass(frozen=True)
class _Joined:
    """Positions of what each plan takes, -1 for nothing; `edits` of all plans, plan by plan."""

    plans: Plans
    household: np.ndarray
    pantry: np.ndarray
    limits: np.ndarray
    previous: np.ndarray
    edits: np.ndarray
    edit_counts: np.ndarray

    def take(self, at: np.ndarray) -> _Joined:
        """Those of some plans, in the order asked for."""
        plans = Plans(*(column[at] for column in vars(self.plans).values()))
        household, pantry, limits, previous = (
            column[at] for column in (self.household, self.pantry, self.limits, self.previous)
        )
        edits = self.edits[places_in(self.edit_counts, at)]
        return _Joined(plans, household, pantry, limits, previous, edits, self.edit_counts[at])


def make_rows(part: Part, start_us: int, meals: Meals, freshness: Freshness | None) -> Made:
    """Join a part and set its rows together.

    Args:
        part: all about some households.
        start_us: of the window.
        meals: where its plans were read.
        freshness: marks source rows that were written since the earlier version; None without one.
    """
    counts, events = Counts(), part.numbers
    joined = _candidates(part, match.accepted_plans(events, start_us), counts)
    is_plan = column_of(part.events.column("meals")).is_valid().to_numpy(zero_copy_only=False)[part.order]
    joined = _joined(part, joined, is_plan & (events.kind == ACCEPTED))
    source = _fingerprints(part, joined)
    keep, reused = _new_plans(part, joined, source, freshness, counts)
    valid = meals.of_catalogue(part.event("meals", joined.plans.accepted))
    counts.exclusions["invalid_plan"] += int(np.count_nonzero(~valid & keep))
    _count_late(part, joined.take(np.flatnonzero(~keep | valid)), counts)
    chosen = np.flatnonzero(keep & valid)
    # In the order of time, so that ranges of time are slices of the rows.
    chosen = chosen[np.argsort(joined.plans.accepted[chosen])]
    joined = joined.take(chosen)
    rows = _rows(part, joined, meals, counts.notes)
    rows["source"] = source.take(pa.array(chosen))
    batch = pa.RecordBatch.from_arrays([rows[name] for name in PARTS_OF_ROWS.names], schema=PARTS_OF_ROWS)
    places = pa.array(joined.pantry, mask=joined.pantry < 0)
    pantries = part.pantries.column("id").take(places)
    return Made(batch, pantries, events.us[joined.plans.accepted], counts, reused)


def whole_rows(parts: pa.Table, pantries: pa.ListArray, meals: Meals) -> pa.RecordBatch:
    """Rows of `WRITTEN_SCHEMA` from their parts and their pantries' items."""
    made = {name: column_of(parts.column(name)) for name in parts.column_names}
    made["event_id"] = uuid_texts(made["event_id"])
    made["pantry"] = pa.StructArray.from_arrays([pantries], ["items"])
    for name in ("previous_plan", "accepted_plan", "generated_plan"):
        made[name] = meals.plans(made[name])
    columns = [
        pa.StructArray.from_arrays(
            [as_type(made[member.name], member.type) for member in field.type], fields=list(field.type)
        )
        if pa.types.is_struct(field.type)
        else as_type(made[field.name], field.type)
        for field in WRITTEN_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=WRITTEN_SCHEMA)


def _candidates(part: Part, plans: Plans, counts: Counts) -> _Joined:
    """The plans that may become rows; the others are counted."""
    homes = part.households.home
    at = np.searchsorted(homes, plans.home)
    at = np.where(homes[np.minimum(at, len(homes) - 1)] == plans.home, at, -1) if len(homes) else at * 0 - 1
    conditions = [plans.generated < 0, plans.accepted < 0, at < 0]
    reason = np.select(conditions, range(3), 3)
    for name, count in zip(counts.exclusions, np.bincount(reason, minlength=4)[:3].tolist(), strict=False):
        counts.exclusions[name] += count
    counts.num_plans_seen += len(reason)
    none = np.full(len(reason), -1)
    return _Joined(plans, at, none, none, none, none[:0], none * 0).take(np.flatnonzero(reason == 3))


def _joined(part: Part, found: _Joined, valid: np.ndarray) -> _Joined:
    events, plans = part.numbers, found.plans
    plan_time = events.us[plans.generated]
    pantry, limits = (
        match.latest_as_of(entries.home, entries.us, plans.home, plan_time)
        for entries in (part.pantries, part.constraints)
    )
    previous = match.previous_acceptances(events, plans, valid)
    return _Joined(plans, found.household, pantry, limits, previous, *match.edits_between(events, plans))


def _fingerprints(part: Part, joined: _Joined) -> pa.Array:
    events, plans = part.numbers, joined.plans
    high, low = (half[part.order] for half in halves_of(column_of(part.events.column("id"))))

    def event(at: np.ndarray) -> list[np.ndarray]:
        """Its id and time; at -1 what no event has."""
        return [np.append(column, -1)[at] for column in (high.view(np.int64), low.view(np.int64), events.us)]

    named = [
        *event(plans.generated),
        *event(plans.accepted),
        *event(joined.previous),
        np.append(part.pantries.column("id").to_numpy(), -1)[joined.pantry],
        np.append(part.pantries.us, -1)[joined.pantry],
        np.append(part.constraints.us, -1)[joined.limits],
        (joined.limits >= 0).astype(np.int64),
    ]
    return lineage.fingerprints(named, event(joined.edits), joined.edit_counts)


def _new_plans(
    part: Part, joined: _Joined, source: pa.Array, freshness: Freshness | None, counts: Counts
) -> tuple[np.ndarray, np.ndarray]:
    """Which plans must be built, and the earlier rows that stand for the others or are compared."""
    plans = joined.plans
    if freshness is None:
        return np.ones(len(plans.plan), bool), np.empty(0, np.int64)

    def marks(table: pa.Table) -> np.ndarray:
        """By position in the table; none at -1."""
        xmin = pc.fill_null(column_of(table.column("x")), freshness.low).to_numpy()
        return np.append(freshness.marks(xmin), False)

    of_events = np.append(marks(part.events)[part.order], False)
    fresh = of_events[plans.generated] | of_events[plans.accepted] | of_events[joined.previous]
    for entries, at in (
        (part.pantries, joined.pantry),
        (part.constraints, joined.limits),
        (part.households, joined.household),
    ):
        fresh |= marks(entries.table)[at]
    rows = np.repeat(np.arange(len(plans.plan)), joined.edit_counts)
    fresh[rows[of_events[joined.edits]]] = True
    ids = part.event("id", plans.accepted)
    choice, numbers = lineage.choices(ids, source, fresh, part.earlier)
    counts.not_reused.update(choice.tolist())
    counts.num_reused += counts.not_reused.pop(lineage.TAKEN, 0)
    taken = choice == lineage.TAKEN
    return ~taken, numbers[taken | (choice == lineage.COMPARED)]


def _count_late(part: Part, joined: _Joined, counts: Counts) -> None:
    """Joins that saw the future: there must be none."""
    us = part.numbers.us
    plan_time = us[joined.plans.generated]
    for name, column, at, bound in (
        ("late_previous", us, joined.previous, plan_time - 1),
        ("late_pantry", part.pantries.us, joined.pantry, plan_time),
    ):
        has = at >= 0
        setattr(counts, name, getattr(counts, name) + int(np.count_nonzero(column[at[has]] > bound[has])))


def _rows(part: Part, joined: _Joined, meals: Meals, notes: Notes) -> dict[str, pa.Array]:
    """The members of the rows, by name, but the pantry and the fingerprint."""
    plans, us = joined.plans, part.numbers.us
    context = partial(_each, read=values.context_text, kind=pa.string(), notes=notes)
    workflow, mode, policy = (context(part.event(name, plans.generated)) for name in ("workflow", "mode", "policy"))
    # The acceptance's policy counts only where the generation names none.
    last_policy = context(pc.if_else(policy.is_valid(), None, part.event("policy", plans.accepted)))
    home = {
        name: part.households.column(name).take(pa.array(joined.household))
        for name in ("h", "size", "preferences", "restrictions", "region")
    }
    edits = edit_column(pa.array(part.numbers.kind[joined.edits]), part.event("edit", joined.edits), notes)
    offsets = pa.array(np.concatenate([[0], np.cumsum(joined.edit_counts)]), pa.int32())
    generated = part.event("meals", plans.generated)
    homes = home["h"].dictionary_encode()
    return {
        "household": _household(home, notes),
        "constraints": _constraints(part, joined.limits, notes),
        "workflow_type": pc.fill_null(workflow, "plan-first"),
        "mode": pc.fill_null(mode, "autopilot"),
        "previous_plan": part.event("meals", joined.previous),
        "accepted_plan": part.event("meals", plans.accepted),
        "user_edits": pa.ListArray.from_arrays(offsets, edits),
        "timestamp": pa.array(us[plans.accepted]).cast(schema.TIME),
        "generated_at": pa.array(us[plans.generated]).cast(schema.TIME),
        "policy_version_id": pc.coalesce(policy, last_policy),
        "event_id": part.event("id", plans.accepted),
        "plan_id": text_column(part.event("p", plans.accepted)),
        "region": home["region"],
        "generated_plan": pc.if_else(pa.array(meals.of_catalogue(generated)), generated, None),
        "split": pa.array([split_of(id_) for id_ in homes.dictionary.to_pylist()], pa.string()).take(homes.indices),
    }


def _household(home: dict[str, pa.Array], notes: Notes) -> pa.StructArray:
    members = [
        home["h"],
        _each(home["size"], partial(values.int32, what="household sizes", least=0), pa.int32(), notes),
        _each(home["preferences"], values.json_texts, schema.TEXTS, notes),
        _each(home["restrictions"], values.json_texts, schema.TEXTS, notes),
    ]
    return pa.StructArray.from_arrays(members, fields=list(schema.HOUSEHOLD))


def _constraints(part: Part, at: np.ndarray, notes: Notes) -> pa.StructArray:
    places = pa.array(at, mask=at < 0)
    budget, minutes, excluded = (
        part.constraints.column(name).take(places) for name in ("budget", "minutes", "excluded")
    )
    members = [
        _each(budget, partial(values.amount, what="budgets"), pa.float64(), notes),
        _each(minutes, partial(values.int32, what="preparation times"), pa.int32(), notes),
        _each(excluded, values.json_texts, schema.TEXTS, notes),
    ]
    return pa.StructArray.from_arrays(members, fields=list(schema.CONSTRAINTS))


class _Read(Protocol):
    def __call__(self, value: Any, /, *, notes: Notes) -> Any: ...


def _each(column: pa.Array, read: _Read, kind: pa.DataType, notes: Notes) -> pa.Array:
    """What `read` gives for each value: asked once for each distinct one (null is one too), counted as it stands."""
    coded = column.dictionary_encode(null_encoding="encode")
    counts = dict(zip(*(coded.indices.value_counts().field(n).to_pylist() for n in (0, 1)), strict=True))
    found = []
    for number, value in enumerate(coded.dictionary.to_pylist()):
        odd: Notes = Counter()
        found.append(read(value, notes=odd))
        notes.update({what: count * counts[number] for what, count in odd.items()})
    return pa.array(found, kind).take(coded.indices)
