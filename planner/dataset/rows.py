"""The rows of a dataset version, range by range: wide values set beside the keys.

In: the database's snapshot and the `plans` of `keys.py`. Out: record batches of `ROW_SCHEMA` in the order of the file,
and counts of what was left out. Memory is bounded by the range, not by the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.split import split_of
from planner.dataset import arrays, spool, values
from planner.dataset.columns import column_of, plan_structs
from planner.dataset.keys import Keys
from planner.dataset.plans import previous_plans
from planner.dataset.spool import Spool
from planner.dataset.values import Notes
from planner.dataset.wide import Progress, WideValues, wide_values
from planner.dataset.write import ROW_SCHEMA


@dataclass
class Assembly:
    """Running counts of one build; `late_previous` and `late_pantry` break the point-in-time rule and must stay 0."""

    invalid_plans: int = 0
    late_previous: int = 0
    late_pantry: int = 0
    notes: Notes = field(default_factory=Counter)


def iter_batches(
    connection: Connection,
    beside: Callable[[], Connection],
    keys: Keys,
    known_recipes: Collection[str],
    assembly: Assembly,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in the order of `plans`, without those whose accepted plan breaks the contract.

    Args:
        connection: in the snapshot that the whole build reads.
        beside: opens another one in that snapshot.
        keys: joined.
        known_recipes: ids of the catalogue.
        assembly: where it is counted.
        progress: told what is read before there is a row.

    Raises:
        DatabaseError: the server refused or went away.
    """
    known = pa.array(known_recipes, pa.string())
    (total,), *_ = keys.engine.execute("SELECT count(*) FROM plans").fetchall()
    with wide_values(connection, beside, keys, known, assembly.notes, progress) as values:
        for start in range(0, total, spool.RANGE_ROWS):
            stop = start + spool.RANGE_ROWS
            plans = keys.engine.sql(
                "SELECT ordinal, t, accepted_us, accepted_id::VARCHAR AS accepted_id, pantry_us, previous_rn, "
                f"previous_us, source FROM plans WHERE ordinal >= {start} AND ordinal < {stop} ORDER BY ordinal"
            ).to_arrow_table()
            yield _assemble(connection, keys, plans, _Range(values, start, len(plans)), assembly)


class _Range:
    """The values of the rows of one range, by row: null, or no edit, where there is none."""

    def __init__(self, values: WideValues, start: int, num_rows: int) -> None:
        self._start, self._num_rows = start, num_rows
        self.homes = {**self._single(values.homes), **self._single(values.limits)}
        self.generated, self.accepted, self.previous, self.pantries = (
            self._single(kind) for kind in (values.generated, values.accepted, values.previous, values.pantries)
        )
        edits = values.edits.read(start)
        row, rank = (column_of(edits.column(name)).to_numpy() for name in ("row", "rank"))
        sorted_edits = column_of(edits.column("edit")).take(pa.array(np.lexsort((rank, row))))
        counts = np.bincount(row - start, minlength=num_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        self.edits = pa.ListArray.from_arrays(offsets, sorted_edits)

    def _single(self, kind: Spool) -> dict[str, pa.Array]:
        table = kind.read(self._start)
        at = np.full(self._num_rows, -1)
        at[column_of(table.column("row")).to_numpy() - self._start] = np.arange(len(table))
        places = pa.array(at, mask=at < 0)
        return {name: column_of(table.column(name)).take(places) for name in table.column_names if name != "row"}


def _assemble(connection: Connection, keys: Keys, plans: pa.Table, found: _Range, assembly: Assembly) -> pa.RecordBatch:
    notes = assembly.notes
    valid = found.accepted["meals"].is_valid()
    kept = plans.filter(valid)
    home, accepted, generated = (
        {name: column.filter(valid) for name, column in kind.items()}
        for kind in (found.homes, found.accepted, found.generated)
    )
    key = {name: column_of(kept.column(name)) for name in kept.column_names}
    assembly.invalid_plans += len(plans) - len(kept)
    previous = previous_plans(connection, keys, kept, found.previous["meals"].filter(valid))
    assembly.late_previous += previous.late
    assembly.late_pantry += pc.sum(pc.greater(key["pantry_us"], key["t"])).as_py() or 0
    context = partial(_each, read=values.context_text, kind=pa.string(), notes=notes)
    workflow, mode, policy = (context(generated[member]) for member in ("workflow", "mode", "policy"))
    # The acceptance's policy counts only where the generation names none.
    last_policy = context(pc.if_else(policy.is_valid(), None, accepted["policy"]))
    columns = {
        "input": [
            _household(home, notes),
            _pantry(found.pantries["items"].filter(valid)),
            _constraints(home, notes),
            pc.fill_null(workflow, "plan-first"),
            pc.fill_null(mode, "autopilot"),
            previous.plans,
        ],
        "target": [plan_structs(accepted["meals"]), found.edits.filter(valid)],
        "metadata": [
            key["accepted_us"].cast(schema.TIME),
            key["t"].cast(schema.TIME),
            pc.coalesce(policy, last_policy),
            key["accepted_id"],
            accepted["plan_id"],
            home["region"],
            plan_structs(generated["meals"]),
        ],
    }
    structs = [
        pa.StructArray.from_arrays(members, fields=list(schema.TRAINING_SCHEMA.field(name).type))
        for name, members in columns.items()
    ]
    homes = home["id"].dictionary_encode()
    split = pa.array([split_of(id_) for id_ in homes.dictionary.to_pylist()], pa.string()).take(homes.indices)
    source = pc.if_else(previous.other, None, key["source"]).cast(pa.binary(16))
    return pa.RecordBatch.from_arrays([*structs, split, source], schema=ROW_SCHEMA)


def _household(home: dict[str, pa.Array], notes: Notes) -> pa.StructArray:
    members = [
        home["id"],
        _each(home["size"], partial(values.int32, what="household sizes", least=0), pa.int32(), notes),
        _each(home["preferences"], values.json_texts, schema.TEXTS, notes),
        _each(home["restrictions"], values.json_texts, schema.TEXTS, notes),
    ]
    return pa.StructArray.from_arrays(members, fields=list(schema.HOUSEHOLD))


def _pantry(items: pa.ListArray) -> pa.StructArray:
    empty = pa.ListArray.from_arrays(arrays.offsets_of(items), items.flatten()) if items.null_count else items
    return pa.StructArray.from_arrays([empty], fields=list(schema.INPUT.field("pantry").type))


def _constraints(home: dict[str, pa.Array], notes: Notes) -> pa.StructArray:
    members = [
        _each(home["budget"], partial(values.amount, what="budgets"), pa.float64(), notes),
        _each(home["minutes"], partial(values.int32, what="preparation times"), pa.int32(), notes),
        _each(home["excluded"], values.json_texts, schema.TEXTS, notes),
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
