"""Reading a dataset version: rows as typed examples, streamed, and the catalogue as it was at the build."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion, Example, example_from_row
from planner.contracts.split import SPLITS

_BATCH_ROWS = 1024


def iter_examples(version: DatasetVersion, *, split: str | None = None) -> Iterator[Example]:
    """Yield the rows in the file's order, a batch at a time.

    Args:
        version: from `open_version` or a build.
        split: `train`, `validation` or `test` alone; None for all.

    Raises:
        DatasetError: there is no such split, or a page of the file is damaged.
    """
    if split is not None and split not in SPLITS:
        raise DatasetError(f"There is no split {split!r}. Use one of {', '.join(SPLITS)}.", split=split)
    try:
        with pq.ParquetFile(version.training_path, page_checksum_verification=True, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    if split is None or row["split"] == split:
                        yield example_from_row(row)
    except OSError as error:
        raise DatasetError(
            f"{version.training_path} cannot be read: {str(error).splitlines()[0]}. Fetch or build the dataset again.",
            uri=version.uri,
        ) from None


def read_catalogue(version: DatasetVersion) -> Catalogue:
    """The recipes as they were at the build.

    Raises:
        CatalogueError: titles or ids stand twice.
    """
    return Catalogue.of(Recipe.from_dict(row) for row in pq.read_table(version.recipes_path).to_pylist())
