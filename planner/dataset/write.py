"""`training.parquet`, `sources.parquet`, `recipes.parquet` and `schema.json`: fixed row groups, so that equal rows give
equal bytes.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from planner.dataset.coded import CODED, rows_as
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


def _written(kind: pa.DataType, path: str) -> pa.DataType:
    """The type as the writer takes it: texts that repeat are coded."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_written(field.type, f"{path}.{field.name}")) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_written(kind.value_type, f"{path}.list.element"))
    return CODED if pa.types.is_string(kind) and path not in _DISTINCT else kind


# The same rows as the writer takes them.
WRITTEN_SCHEMA = pa.schema([field.with_type(_written(field.type, field.name)) for field in ROW_SCHEMA])
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
        batches: in the order of the file; of `ROW_SCHEMA`, or row groups of `WRITTEN_SCHEMA`.
        sources: of the new file with each row's fingerprint of its sources, in the same row groups.
        counted: given every row group as it is written, without the fingerprints.
        written: told the number of rows so far.
    """
    num_rows = 0
    repeated = [path for path in _leaves(schema.TRAINING_SCHEMA) if path not in _DISTINCT]
    format_of_rows = {**_FORMAT, "use_dictionary": repeated, "write_statistics": _FILTERED}
    plain = {**_FORMAT, "use_dictionary": False, "compression": "none", "compression_level": None}
    taken = WRITTEN_SCHEMA.remove(WRITTEN_SCHEMA.get_field_index("source"))
    with (
        pq.ParquetWriter(path, taken, store_schema=False, **format_of_rows) as rows,
        pq.ParquetWriter(sources, pa.schema([ROW_SCHEMA.field("source")]), **plain) as fingerprints,
        ThreadPoolExecutor(1) as writer,
    ):
        # Who reads the file gets texts: the schema that is stored is the contract's.
        rows.add_key_value_metadata({"ARROW:schema": b64encode(schema.TRAINING_SCHEMA.serialize()).decode()})
        last: Future[None] | None = None

        def flush(rows_of_group: pa.RecordBatch, sources_of_group: pa.RecordBatch) -> None:
            rows.write_batch(rows_of_group, row_group_size=ROW_GROUP_ROWS)
            fingerprints.write_batch(sources_of_group, row_group_size=ROW_GROUP_ROWS)

        for group in _row_groups(batches):
            whole = rows_as(group, WRITTEN_SCHEMA)
            content = whole.drop_columns(["source"])
            if last is not None:
                last.result()  # one group is written while the next one is made; no more than that waits
            last = writer.submit(flush, content, whole.select(["source"]))
            counted(content)
            num_rows += group.num_rows
            written(num_rows)
        if last is not None:
            last.result()


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows in batches of a row group each; a batch that is one stays as it is."""
    waiting, num_rows = list[pa.RecordBatch](), 0
    for batch in batches:
        while batch.num_rows:
            waiting.append(batch.slice(0, ROW_GROUP_ROWS - num_rows))
            batch, num_rows = batch.slice(waiting[-1].num_rows), num_rows + waiting[-1].num_rows
            if num_rows == ROW_GROUP_ROWS:
                yield _one(waiting)
                waiting, num_rows = [], 0
    if waiting:
        yield _one(waiting)


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """In one chunk: pages end where chunks end, and the chunks are an accident of the batches."""
    (whole,) = batches if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()
    return whole


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
