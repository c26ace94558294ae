"""A file is the same, byte for byte, whether its rows come as texts or as numbers of distinct texts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planner.contracts.schema import TRAINING_SCHEMA
from planner.dataset import rows as rows_
from planner.dataset import write
from planner.dataset.build import build_dataset
from planner.dataset.coded import CODED, as_type, rows_as
from planner.dataset.database import connect
from planner.dataset.write import ROW_SCHEMA, WRITTEN_SCHEMA, write_training
from tests.dataset import small, traps


def written(folder: Path, batches: list[pa.RecordBatch]) -> tuple[bytes, bytes]:
    folder.mkdir()
    paths = folder / "rows", folder / "sources"
    write_training(paths[0], batches, sources=paths[1], counted=lambda rows: None, written=lambda done: None)
    return paths[0].read_bytes(), paths[1].read_bytes()


def test_rows_as_texts_or_as_numbers_give_the_same_file(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(connect(database_url)) as connection:
        traps.load(connection, traps.crowd(range(700, 712)))
    for module in (rows_, write):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 7)
    report = build_dataset(database_url, small.config(tmp_path / "datasets", max_excluded_share=1.0))
    folder = report.version.training_path.parent
    table, sources = (pq.read_table(folder / name) for name in ("training.parquet", "sources.parquet"))
    assert table.schema.equals(TRAINING_SCHEMA) and len(table) > 20
    rows = table.append_column("source", sources.column(0)).cast(ROW_SCHEMA)
    wanted = tuple((folder / name).read_bytes() for name in ("training.parquet", "sources.parquet"))
    for size in (1, 5, 100):
        batches = rows.combine_chunks().to_batches(max_chunksize=size)
        coded = [rows_as(batch, WRITTEN_SCHEMA) for batch in batches]
        assert [rows_as(batch, ROW_SCHEMA) for batch in coded] == batches
        assert written(tmp_path / str(size), batches) == wanted
    groups = [rows_as(batch, WRITTEN_SCHEMA) for batch in rows.combine_chunks().to_batches(max_chunksize=7)]
    assert written(tmp_path / "coded", groups) == wanted


def test_more_distinct_texts_than_a_dictionary_of_parquet_holds_come_back(tmp_path: Path) -> None:
    names = [f"{n} " + "x" * 3000 for n in range(600)]  # 1.8 MB, where the default limit is 1 MiB
    row = {"input": {"pantry": {"items": [{"name": name, "quantity": 1.0, "unit": "g"} for name in names]}}}
    batch = pa.RecordBatch.from_pylist([row, row], ROW_SCHEMA)
    coded = rows_as(batch, WRITTEN_SCHEMA)
    assert written(tmp_path / "texts", [batch]) == written(tmp_path / "coded", [coded])
    read = pq.read_table(tmp_path / "texts" / "rows")
    assert read.to_pylist() == batch.drop_columns(["source"]).to_pylist()


def test_texts_are_numbered_as_they_first_appear_and_null_stays_null() -> None:
    texts = pa.array([["b", None], None, ["a", "b"]], pa.list_(pa.string())).slice(0)
    coded = as_type(texts, pa.list_(CODED))
    assert coded.flatten().dictionary.to_pylist() == ["b", "a"]
    for part in (coded, coded.slice(1), coded.slice(2)):
        assert as_type(part, texts.type).to_pylist() == part.to_pylist() == texts.slice(3 - len(part)).to_pylist()
