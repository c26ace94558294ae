"""Rows of an earlier version that a build may take as they are, and what each was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planner.dataset.arrays import per_list, uuids_of
from planner.dataset.columns import column_of
from planner.dataset.sources import Freshness

_COLUMNS = [
    "input.household.id",
    "metadata.event_id",
    "metadata.generated_plan",
    "target.accepted_plan.meals.list.element.recipe_id",
]


@dataclass(frozen=True)
class EarlierRows:
    """Rows of an earlier version that may be taken: its files, what marks a source row as fresh, and the recipes.

    `removed` are recipe ids that the catalogue had then and has no more, `recipes_added` whether it has new ones.
    """

    training: str
    sources: str
    fresh: Freshness
    removed: tuple[str, ...] = ()
    recipes_added: bool = False

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Per row the household, its event's id, its number, what it was made of, and whether its recipes allow it."""
        first = 0
        with (
            pq.ParquetFile(Path(self.training), page_checksum_verification=True, pre_buffer=False) as rows,
            pq.ParquetFile(Path(self.sources), page_checksum_verification=True, pre_buffer=False) as fingerprints,
        ):
            for group in range(rows.num_row_groups):
                table = rows.read_row_group(group, columns=_COLUMNS)
                given, target, metadata = (column_of(table.column(n)) for n in ("input", "target", "metadata"))
                columns = [
                    given.field("household").field("id"),
                    uuids_of(metadata.field("event_id")),
                    pa.array(np.arange(first, first + len(table))),
                    column_of(fingerprints.read_row_group(group).column("source")),
                    pa.array(self._usable(target.field("accepted_plan"), metadata.field("generated_plan"))),
                ]
                yield pa.RecordBatch.from_arrays(columns, names=["h", "id", "row", "source", "usable"])
                first += len(table)

    def _usable(self, accepted: pa.StructArray, generated: pa.StructArray) -> np.ndarray:
        """A plan that names a removed recipe breaks the contract now; a broken one may meet it with a new recipe."""
        usable = np.ones(len(accepted), bool)
        if self.recipes_added:
            usable &= generated.is_valid().to_numpy(zero_copy_only=False)
        if self.removed:
            removed = pa.array(self.removed, pa.string())
            for plans in (accepted, generated):
                meals = pc.struct_field(plans, "meals")
                gone = pc.is_in(meals.flatten().field("recipe_id"), removed).to_numpy(zero_copy_only=False)
                usable &= ~per_list(meals, gone, np.logical_or.reduceat)
        return usable
