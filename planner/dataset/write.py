"""`training.parquet`, `sources.parquet`, `recipes.parquet` and `schema.json`: fixed row groups, so that equal rows give
equal bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extensions import connection as Connection

from planner.contracts import schema
from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.errors import CatalogueError
from planner.dataset import arrays, values
from planner.dataset.database import query_error
from planner.dataset.values import Notes

ROW_GROUP_ROWS = 20_000
# What other levels cost is in docs/log.md. Without page checksums, 172 of 300 bit flips went
# unnoticed.
_FORMAT = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": True,
    "write_page_checksum": True,
    "version": "2.6",
}
# Ids and times hardly repeat within a row group; statistics help only where somebody filters.
_DISTINCT = {"input.household.id", "metadata.timestamp", "metadata.generated_at", "metadata.event_id",
             "metadata.plan_id"}  # fmt: skip
_FILTERED = ["metadata.timestamp", "metadata.generated_at", "split"]
# A row and the fingerprint of what it was made of (`lineage.py`).
ROW_SCHEMA = schema.TRAINING_SCHEMA.append(pa.field("source", pa.binary(16)))
NULLABLE = {
    "input.household.size",
    "input.pantry.items.element.quantity",
    "input.pantry.items.element.unit",
    "input.constraints.budget",
    "input.constraints.max_prep_time",
    "input.previous_plan",
    *(f"target.user_edits.element.{name}" for name in ("day", "from", "to", "recipe_id", "servings")),
    "metadata.policy_version_id",
    "metadata.region",
    "metadata.generated_plan",
}
# From `households`, which has no history: the value at the build, not at plan time.
NO_HISTORY = {
    "input.household.size",
    "input.household.preferences",
    "input.household.restrictions",
    "metadata.region",
}


def write_training(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    *,
    sources: Path,
    counted: Callable[[pa.RecordBatch], None],
    written: Callable[[int], None],
) -> None:
    """Write the batches in row groups of 20,000 rows, however they come.

    Args:
        path: of the new file with the rows.
        batches: of `ROW_SCHEMA`, in the order of the file.
        sources: of the new file with each row's fingerprint of its sources, in the same row groups.
        counted: given every row group, as it is written.
        written: told the number of rows so far.
    """
    num_rows, waiting = 0, ROW_SCHEMA.empty_table()
    repeated = [path for path in _leaves(schema.TRAINING_SCHEMA) if path not in _DISTINCT]
    format_of_rows = {**_FORMAT, "use_dictionary": repeated, "write_statistics": _FILTERED}
    plain = {**_FORMAT, "use_dictionary": False, "compression": "none", "compression_level": None}
    with (
        pq.ParquetWriter(path, schema.TRAINING_SCHEMA, **format_of_rows) as rows,
        pq.ParquetWriter(sources, pa.schema([ROW_SCHEMA.field("source")]), **plain) as fingerprints,
        ThreadPoolExecutor(1) as writer,
    ):
        last: Future[None] | None = None

        def flush(rows_of_group: pa.RecordBatch, sources_of_group: pa.RecordBatch) -> None:
            rows.write_batch(rows_of_group, row_group_size=ROW_GROUP_ROWS)
            fingerprints.write_batch(sources_of_group, row_group_size=ROW_GROUP_ROWS)

        def hand_over(group: pa.Table) -> Future[None]:
            # One chunk: pages end where chunks end, and the chunks are an accident of the batches.
            (whole,) = group.combine_chunks().to_batches()
            content = whole.drop_columns(["source"])
            if last is not None:
                last.result()  # one group is written while the next one is made; no more than that waits
            future = writer.submit(flush, content, whole.select(["source"]))
            counted(content)
            return future

        for batch in batches:
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
            num_rows += batch.num_rows
            while waiting.num_rows >= ROW_GROUP_ROWS:
                last = hand_over(waiting.slice(0, ROW_GROUP_ROWS))
                waiting = waiting.slice(ROW_GROUP_ROWS)
            written(num_rows)
        if waiting.num_rows:
            last = hand_over(waiting)
        if last is not None:
            last.result()


def read_recipes(connection: Connection) -> tuple[pa.Table, Catalogue, Notes]:
    """The table `recipes` in id order, typed, with a count of what did not fit.

    Raises:
        CatalogueError: two recipes share an id or a title, or one has none.
        DatabaseError: the server refused or went away.
    """
    notes: Notes = Counter()
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT id::text, title::text, ingredients::text, prep_time, cost_per_serving::text, tags::text[], "
                "allergens::text[], active IS NOT FALSE FROM public.recipes"
            )
            rows = sorted((_recipe_row(row, notes) for row in cursor), key=lambda row: row[0].encode())
    except psycopg2.Error as error:
        raise query_error(error, "reading the recipes") from None
    columns = list(zip(*rows, strict=True)) if rows else [()] * 8
    table = pa.Table.from_arrays(
        [
            arrays.items(column) if field.name == "ingredients" else pa.array(column, field.type)
            for column, field in zip(columns, schema.RECIPES_SCHEMA, strict=True)
        ],
        schema=schema.RECIPES_SCHEMA,
    )
    return table, Catalogue.of(Recipe.from_dict(row) for row in table.to_pylist()), notes


def write_recipes(path: Path, recipes: pa.Table) -> None:
    """Write the catalogue."""
    pq.write_table(recipes, path, **_FORMAT)


def described_schema() -> list[dict[str, Any]]:
    """The fields for `schema.json`: name, type, nullable, children, and `point_in_time: false` where it is so."""
    return [_describe(field, field.name) for field in schema.TRAINING_SCHEMA]


def num_leaf_fields() -> int:
    """How many values a row has, counting the elements of a list once."""
    described, leaves = described_schema(), 0
    while described:
        field = described.pop()
        leaves += not field.get("children")
        described += field.get("children", [])
    return leaves


def _leaves(fields: Iterable[pa.Field], parent: str = "") -> Iterator[str]:
    """Paths of the columns, as Parquet names them."""
    for field in fields:
        path, kind = parent + field.name, field.type
        while pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        if pa.types.is_struct(kind):
            yield from _leaves(kind, f"{path}.")
        else:
            yield path


def _describe(field: pa.Field, path: str) -> dict[str, Any]:
    described: dict[str, Any] = {"name": field.name, "type": str(field.type), "nullable": path in NULLABLE}
    if pa.types.is_struct(field.type):
        described["type"] = "struct"
        described["children"] = [_describe(child, f"{path}.{child.name}") for child in field.type]
    elif pa.types.is_list(field.type):
        element = field.type.value_field.with_name("element")
        described["type"] = "list"
        described["children"] = [_describe(element, f"{path}.element")]
    if path in NO_HISTORY:
        described["point_in_time"] = False
    return described


def _recipe_row(row: tuple[Any, ...], notes: Notes) -> tuple[Any, ...]:
    id_, title, ingredients, minutes, cost, tags, allergens, active = row
    if id_ is None:  # a site's view may hold nulls
        raise CatalogueError(f"The recipe {title!r} has no id. Give it one in `recipes`.", title=title)
    return (
        id_,
        title,
        values.recipe_ingredients(ingredients, notes),
        values.int32(minutes, "preparation times of recipes", notes),
        values.amount(cost, "costs of recipes", notes),
        values.texts(tags, notes),
        values.texts(allergens, notes),
        active,
    )
