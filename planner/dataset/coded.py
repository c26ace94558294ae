"""Texts that repeat as numbers of the distinct ones, wherever they stand in nested columns.

Parquet's writer looks each text of a column up to find its number; where a build knows the number already, or the text
of many at once, that is most of the writer's work. Distinct texts stand in the order in which they first appear, so the
file is the same, byte for byte, whether a column comes as texts or as numbers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from planner.dataset.arrays import offsets_of

CODED = pa.dictionary(pa.int32(), pa.string())


def as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column with each of its texts as `kind` has it, plain or `CODED`; the types are the same but for that."""
    if column.type.equals(kind):
        return column
    mask = column.is_null() if column.null_count else None
    if pa.types.is_struct(kind):
        members = [as_type(member, field.type) for member, field in zip(column.flatten(), kind, strict=True)]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=mask)
    if pa.types.is_list(kind):
        elements = as_type(column.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(offsets_of(column), elements, type=kind, mask=mask)
    return column.dictionary_encode() if pa.types.is_dictionary(kind) else column.dictionary_decode()


def rows_as(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with texts as the schema has them."""
    columns = [as_type(column, field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def taken(values: pa.Array, places: pa.Int32Array) -> pa.Array:
    """The values at some places, coded where they are texts.

    Args:
        values: in the order in which the places first name them.
        places: of values.
    """
    if not pa.types.is_string(values.type):
        return values.take(places)
    found = values.dictionary_encode()
    return pa.DictionaryArray.from_arrays(found.indices.take(places), found.dictionary)


def coded(texts: pa.StringArray, places: np.ndarray) -> pa.DictionaryArray:
    """The texts at some places."""
    found = pa.array(places).dictionary_encode()
    return taken(texts.take(found.dictionary), found.indices)
