"""DuckDB over the files of a version: rows are streamed and hashed, never loaded whole.

In: Parquet files by the name of their view. Out: a connection that reaches nothing but them and spills to disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from planner.contracts.errors import DatasetError

MEMORY = "120MB"


@contextlib.contextmanager
def scan(**files: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection with one view per file, named as the keyword; times are UTC.

    Raises:
        DatasetError: a file cannot be read as Parquet of the contract, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="planner-scan-") as spill, duckdb.connect(":memory:") as engine:
        engine.execute(f"SET memory_limit = '{MEMORY}'")
        engine.execute("SET temp_directory = ?", [spill])
        engine.execute("SET autoinstall_known_extensions = false")
        engine.execute("SET TimeZone = 'UTC'")
        try:
            for name, path in files.items():
                engine.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({quoted(str(path))})")
            yield engine
        except duckdb.Error as error:
            read = ", ".join(str(path) for path in files.values())
            raise DatasetError(
                f"{read} cannot be read: {' '.join(str(error).split())[:200]}. Fetch or build the dataset again."
            ) from None


def quoted(text: str) -> str:
    """An SQL literal."""
    return "'" + text.replace("'", "''") + "'"
