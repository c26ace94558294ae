"""Versions whose hashes are right and whose rows are not: what a builder with a bug would publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts import schema
from planner.dataset import versions

Row = dict[str, Any]


def forge(folder: Path, change: Callable[[list[Row]], object]) -> None:
    """Change the rows of a version in place and seal it again as if it had been built so."""
    path = folder / versions.TRAINING
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.TRAINING_SCHEMA), path, write_page_checksum=True)
    reseal(folder, rows=len(rows))


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that fits the files as they are."""
    old = json.loads((folder / versions.MANIFEST).read_bytes())
    facts = {name: old[name] for name in ("version", "rows", "created_at", "parameters")} | changes
    (folder / versions.MANIFEST).write_bytes(versions.encode_json(versions.make_manifest(folder, **facts)))
