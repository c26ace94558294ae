"""Finished batches of a replay on disk, so that a killed one goes on where it stopped.

In: a batch's rows and its costs. Out: `part-00000.parquet` with `part-00000.json` beside it. The JSON is written last
and names the batch by everything that decides its rows; a part that does not fit is planned again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts.errors import ReplayError
from planner.evaluation.rows import ROWS_SCHEMA

ROW_GROUP = 4096


@dataclass(frozen=True, slots=True)
class Costs:
    """What planning took: requests planned, wall-clock seconds, tokens and model calls over all of them."""

    num_plans: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    num_model_calls: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True)
class Part:
    """One finished batch: where its rows are, and what each planner spent on it."""

    path: Path
    num_rows: int
    costs: Mapping[str, Costs] = field(default_factory=dict)


def batch_key(identity: Mapping[str, Any], event_ids: Sequence[str]) -> str:
    """SHA-256 over who planned what: models, catalogue and the batch's events in order."""
    text = json.dumps([dict(identity), list(event_ids)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_part(folder: Path, index: int, key: str) -> Part | None:
    """A part that was finished for the same batch and is unchanged since; else None."""
    path, note = _paths(folder, index)
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
        if value["key"] != key or value["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
            return None
        return Part(path, value["num_rows"], {name: Costs(**cost) for name, cost in value["costs"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_part(
    folder: Path, index: int, key: str, rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Costs]
) -> Part:
    """Write a finished batch; whole or not at all.

    Raises:
        ReplayError: the folder cannot be written.
    """
    path, note = _paths(folder, index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)  # first: a note must never stand beside another batch's rows
        pq.write_table(pa.Table.from_pylist(list(rows), schema=ROWS_SCHEMA), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        value = {
            "key": key,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "num_rows": len(rows),
            "costs": {name: asdict(cost) for name, cost in costs.items()},
        }
        note.with_suffix(".json.tmp").write_text(json.dumps(value), encoding="utf-8")
        os.replace(note.with_suffix(".json.tmp"), note)
    except OSError as error:
        raise ReplayError(
            f"The replay's folder {folder} cannot be written: {error.strerror or error}. Free space or set `folder`.",
            folder=folder,
        ) from None
    return Part(path, len(rows), dict(costs))


def join_parts(parts: Iterable[Part], places: Iterable[Sequence[int]], path: Path) -> int:
    """Write the parts as one file of evenly cut row groups, whatever the batches were; returns its number of rows.

    Args:
        parts: of windows that follow each other.
        places: per part, the places that its rows have in the file.
        path: of the file.
    """
    num_rows = 0
    temporary = path.with_suffix(".tmp")
    buffer, held, order = ROWS_SCHEMA.empty_table(), list[pa.Table](), list[int]()
    with pq.ParquetWriter(temporary, ROWS_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for part, own in zip(parts, places, strict=True):
            held.append(pq.read_table(part.path, schema=ROWS_SCHEMA))
            order += own
            num_rows += part.num_rows
            if max(order) + 1 > num_rows:  # rows in front of one of these are still to come
                continue
            window = pa.concat_tables(held).take(np.argsort(order))
            buffer, held, order = pa.concat_tables([buffer, window]), [], []
            while len(buffer) >= ROW_GROUP:
                writer.write_table(buffer.slice(0, ROW_GROUP).combine_chunks(), row_group_size=ROW_GROUP)
                buffer = buffer.slice(ROW_GROUP)
        if len(buffer):
            writer.write_table(buffer.combine_chunks(), row_group_size=ROW_GROUP)
    os.replace(temporary, path)
    return num_rows


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"part-{index:06d}.parquet", folder / f"part-{index:06d}.json"
