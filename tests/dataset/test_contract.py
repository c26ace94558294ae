"""The build equals a brute-force reading of the contract, and nothing that it must not see changes a byte."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatasetError
from planner.dataset import collect, gather, pantries, parts, rows, session
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.config import CHECKS, DatasetConfig
from planner.dataset.database import connect
from tests.dataset import reference, traps

MANY = 60


@pytest.fixture
def database(database_url: str) -> Iterator[Connection]:
    with contextlib.closing(connect(database_url)) as connection:
        yield connection


def build(url: str, folder: Path, name: str = "v1") -> BuildReport:
    config = DatasetConfig(
        start_date=traps.START,
        end_date=traps.END,
        date=name,
        datasets=str(folder),
        max_excluded_share=1.0,
        checks=dict.fromkeys(CHECKS, "error"),
    )
    return build_dataset(url, config)


def same(found: object, wanted: object) -> bool:
    """Equal, with -0.0 unlike 0.0."""
    return repr(found) == repr(wanted)


def difference(found: object, wanted: object, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        return "".join(difference(found[name], wanted[name], f"{path}.{name}") for name in found)
    return "" if same(found, wanted) else f"{path}: {found!r} instead of {wanted!r}; "


def utc(value: object) -> object:
    if isinstance(value, dict):
        return {name: utc(member) for name, member in value.items()}
    if isinstance(value, list):
        return [utc(member) for member in value]
    return value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_build_is_the_contract(
    database: Connection, database_url: str, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RANGE_ROWS", batch)
    monkeypatch.setattr(rows, "QUERY_SNAPSHOTS", batch)
    monkeypatch.setattr(pantries, "QUERY_SNAPSHOTS", batch)
    monkeypatch.setattr(collect, "PART_BYTES", 100 * batch)  # of one page each: many parts, few, or one
    monkeypatch.setattr(parts, "PART_EVENTS", 10 * batch)
    monkeypatch.setattr(session, "BATCH_BYTES", 1000 * batch)
    seen_rows = 0
    seen_reasons: set[str] = set()
    for seed in range(batch * 1000, batch * 1000 + MANY // 3):
        tables = traps.trap_database(seed)
        traps.load(database, tables)
        wanted, exclusions = reference.build(tables, traps.START, traps.END)
        if not wanted:
            with pytest.raises(DatasetError, match="There is no row"):
                build(database_url, tmp_path, f"s{seed}")
            continue
        report = build(database_url, tmp_path, f"s{seed}")
        found = utc(pq.read_table(report.version.training_path).to_pylist())
        assert len(found) == len(wanted) and dict(report.exclusions) == exclusions, seed  # type: ignore[arg-type]
        for one, other in zip(found, wanted, strict=True):  # type: ignore[call-overload]
            assert same(one, other), (seed, difference(one, other))
        assert report.num_plans_seen == len(wanted) + sum(exclusions.values())
        assert all(check.passed for check in report.checks)
        seen_rows += len(wanted)
        seen_reasons |= {reason for reason, count in exclusions.items() if count}
    assert seen_rows > MANY // 3
    assert seen_reasons == set(exclusions)


def test_rows_of_the_future_and_the_order_of_the_input_change_no_byte(
    database: Connection, database_url: str, tmp_path: Path
) -> None:
    end = dt.datetime(2025, 1, 10, tzinfo=dt.UTC)
    for seed in range(500, 508):
        tables = traps.trap_database(seed)
        wanted, _ = reference.build(tables, traps.START, traps.END)
        if not wanted:
            continue
        traps.load(database, tables)
        digest = build(database_url, tmp_path, f"s{seed}").version.digest
        rng = random.Random(f"later {seed}")
        for table in tables.values():
            rng.shuffle(table)
        later = [
            {**event, "id": str(uuid.UUID(int=rng.getrandbits(128))), "timestamp": end + dt.timedelta(hours=n)}
            for n, event in enumerate(tables["events"])
        ]
        newer = [{**row, "id": -100 - n, "snapshot_time": end} for n, row in enumerate(tables["pantry_snapshots"])]
        added = {**tables, "events": later + tables["events"], "pantry_snapshots": newer + tables["pantry_snapshots"]}
        traps.load(database, added)
        assert build(database_url, tmp_path, f"s{seed}").unchanged
        cut = {**tables, "events": [event for event in tables["events"] if event["timestamp"] < end]}
        traps.load(database, cut)
        again = build(database_url, tmp_path, f"s{seed}")
        assert again.unchanged and again.version.digest == digest


def test_snapshot_written_during_the_build_is_not_seen(
    database: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = next(s for s in range(100) if reference.build(traps.trap_database(s), traps.START, traps.END)[0])
    tables = traps.trap_database(seed)
    traps.load(database, tables)
    wanted, _ = reference.build(tables, traps.START, traps.END)
    original = gather.built_rows

    def delete_first(*args: object) -> object:
        with database.cursor() as cursor:
            cursor.execute("DELETE FROM exp.events; DELETE FROM pantry_snapshots; DELETE FROM households")
        database.commit()
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gather, "built_rows", delete_first)
    report = build(database_url, tmp_path)
    assert same(utc(pq.read_table(report.version.training_path).to_pylist()), wanted)
