"""What changed between two versions: rows by event id, recipes by id, parameters, and shifts of the distributions.

In: two opened versions. Out: counts, a few ids of each kind, and shares in both. Rows are compared by hashes of their
parts, so memory holds a few numbers per row (and spills), never the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from planner.contracts.example import DatasetVersion
from planner.dataset.distributions import Distribution, version_distributions
from planner.dataset.scan import scan

# A row's parts, in the contract's words. The event id is what rows are matched by.
PARTS: Mapping[str, str] = {
    "household": "input.household",
    "pantry": "input.pantry",
    "constraints": "input.constraints",
    "workflow_type": "input.workflow_type",
    "mode": "input.mode",
    "previous_plan": "input.previous_plan",
    "accepted_plan": "target.accepted_plan",
    "user_edits": "target.user_edits",
    "metadata": "metadata",
    "split": "split",
}
_SAMPLES = 5


@dataclass(frozen=True)
class Changes:
    """Added, removed and changed things; `samples` holds up to five ids of each kind, in id order."""

    added: int
    removed: int
    changed: int
    same: int
    samples: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Shift:
    """One label's share in [0, 1] before and after."""

    label: str
    before: float
    after: float


@dataclass(frozen=True)
class DatasetDiff:
    """`changed_parts` counts rows by the part that differs (a row may differ in several).

    `shifts`: per distribution its labels, the largest shift first; `distances`: half the sum of the absolute shifts
    (total variation, 0 = the same, 1 = nothing in common).
    """

    rows: Changes
    changed_parts: Mapping[str, int]
    recipes: Changes
    parameters: Mapping[str, tuple[object, object]]
    shifts: Mapping[str, Sequence[Shift]]
    distances: Mapping[str, float]


def diff_versions(before: DatasetVersion, after: DatasetVersion) -> DatasetDiff:
    """Compare two versions; `added` is what only `after` has.

    Raises:
        DatasetError: a file cannot be read.
    """
    with scan(
        before=before.training_path,
        after=after.training_path,
        before_recipes=before.recipes_path,
        after_recipes=after.recipes_path,
    ) as engine:
        hashes = ", ".join(f"hash(to_json({path})::VARCHAR) AS {part}" for part, path in PARTS.items())
        for name in ("before", "after"):
            engine.execute(f"CREATE TABLE rows_{name} AS SELECT metadata.event_id AS id, {hashes} FROM {name}")
            engine.execute(
                f"CREATE TABLE recipes_{name} AS SELECT id, hash(to_json(r)::VARCHAR) AS content FROM {name}_recipes r"
            )
        rows, recipes = _changes(engine, "rows", tuple(PARTS)), _changes(engine, "recipes", ("content",))
        counts = ", ".join(f"count(*) FILTER (b.{part} <> a.{part})" for part in PARTS)
        parts = engine.execute(f"SELECT {counts} FROM rows_before b JOIN rows_after a USING (id)").fetchall()[0]
    old, new = map(version_distributions, (before, after))
    return DatasetDiff(
        rows=rows,
        changed_parts={part: count for part, count in zip(PARTS, parts, strict=True) if count},
        recipes=recipes,
        parameters=_parameters(before, after),
        # The days are the window; no two windows share them.
        shifts={name: _shifts(old[name], new[name]) for name in old if name != "day"},
        distances={name: _distance(old[name], new[name]) for name in old if name != "day"},
    )


def _changes(engine: duckdb.DuckDBPyConnection, what: str, columns: Sequence[str]) -> Changes:
    differs = " OR ".join(f"b.{column} <> a.{column}" for column in columns)
    engine.execute(
        f"CREATE TABLE {what}_changes AS SELECT coalesce(a.id, b.id) AS id, CASE WHEN b.id IS NULL THEN 'added' "
        f"WHEN a.id IS NULL THEN 'removed' WHEN {differs} THEN 'changed' ELSE 'same' END AS kind "
        f"FROM {what}_before b FULL JOIN {what}_after a ON a.id = b.id"
    )
    counts = dict(engine.execute(f"SELECT kind, count(*) FROM {what}_changes GROUP BY 1").fetchall())
    samples = {
        kind: tuple(
            str(id_)
            for (id_,) in engine.execute(
                f"SELECT id FROM {what}_changes WHERE kind = ? ORDER BY id LIMIT {_SAMPLES}", [kind]
            ).fetchall()
        )
        for kind in ("added", "removed", "changed")
    }
    return Changes(
        added=counts.get("added", 0),
        removed=counts.get("removed", 0),
        changed=counts.get("changed", 0),
        same=counts.get("same", 0),
        samples=samples,
    )


def _parameters(before: DatasetVersion, after: DatasetVersion) -> dict[str, tuple[object, object]]:
    old, new = before.manifest["parameters"], after.manifest["parameters"]
    return {name: (old.get(name), new.get(name)) for name in old | new if old.get(name) != new.get(name)}


def _shifts(old: Distribution, new: Distribution) -> list[Shift]:
    shifts = [Shift(label, old.share(label), new.share(label)) for label in {**old.counts, **new.counts}]
    return sorted(shifts, key=lambda shift: (-abs(shift.after - shift.before), shift.label))


def _distance(old: Distribution, new: Distribution) -> float:
    return sum(abs(shift.after - shift.before) for shift in _shifts(old, new)) / 2
