"""The same bytes from one shard or many, in one process or several, on one server or replicas, and on Spark."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from planner.contracts.errors import DatabaseError, DatasetError
from planner.dataset import gather, shards
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.database import connect
from planner.dataset.merge import RowsDifferError, merged
from planner.dataset.rows import Source
from planner.dataset.session import open_session
from planner.dataset.write import ROW_SCHEMA
from tests.databases import of_database, run_statement, value_of
from tests.dataset import small, traps
from tests.spark import needs_spark

PROJECT = Path(__file__).resolve().parents[2]


def build(url: str, folder: Path, name: str, **changes: Any) -> BuildReport:
    replicas = changes.pop("replicas", ())
    values: dict[str, Any] = {"start_date": traps.START, "end_date": traps.END, "date": name, "datasets": str(folder)}
    return build_dataset(url, DatasetConfig(**{**values, "max_excluded_share": 1, **changes}), replicas=replicas)


def files(report: BuildReport) -> list[bytes]:
    folder = report.version.training_path.parent
    return [(folder / name).read_bytes() for name in ("training.parquet", "sources.parquet", "dataset_summary.md")]


@pytest.fixture
def crowd(database_url: str) -> str:
    tables = traps.crowd(range(700, 712))
    tables = {name: rows + ([] if name == "recipes" else small.tables()[name]) for name, rows in tables.items()}
    with contextlib.closing(connect(database_url)) as connection:
        traps.load(connection, tables)
    return database_url


@pytest.fixture
def replica(crowd: str, postgres_url: str) -> Iterator[str]:
    """A copy of the database under another name, as a replica would hold it."""
    name = crowd.rpartition("/planner_test_")[2].partition("?")[0]
    copy = f"planner_copy_{name}"
    run_statement(postgres_url, f"CREATE DATABASE {copy} TEMPLATE planner_test_{name}")
    yield of_database(postgres_url, copy)
    run_statement(postgres_url, f"DROP DATABASE {copy} WITH (FORCE)")


@pytest.mark.slow
def test_shards_processes_and_replicas_change_no_byte(crowd: str, replica: str, tmp_path: Path) -> None:
    whole = build(crowd, tmp_path / "1", "v1")
    assert whole.num_rows > small.ROWS
    for number, changes in enumerate(
        [
            {"shards": 2},
            {"shards": 7},
            {"shards": 3, "processes": 2},
            {"shards": 3, "replicas": [replica]},
            {"shards": 2, "processes": 2, "replicas": [replica]},
        ]
    ):
        report = build(crowd, tmp_path / f"n{number}", "v1", **changes)
        assert files(report)[:2] == files(whole)[:2], changes
        assert report.exclusions == whole.exclusions and report.num_plans_seen == whole.num_plans_seen
        assert not list(report.version.training_path.parent.glob("shard*"))
    # Households share no snapshot, so not even the counts of mended values move with the shards.
    assert files(build(crowd, tmp_path / "s", "v1", shards=5))[2] == files(whole)[2]


def test_shards_take_rows_from_an_earlier_version_too(crowd: str, tmp_path: Path) -> None:
    with contextlib.closing(connect(crowd)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CHECKPOINT")
    build(crowd, tmp_path, "first", end_date=dt.date(2025, 1, 7))
    small.run(crowd, "DELETE FROM exp.events WHERE unit_id = 'home-3'")
    full = build(crowd, tmp_path / "full", "later")
    one = build(crowd, tmp_path, "one", reuse="first")
    many = build(crowd, tmp_path, "many", reuse="first", shards=3, processes=2)
    assert files(one)[:2] == files(many)[:2] == files(full)[:2]
    assert many.reuse == one.reuse and many.reuse.num_rows > 20


def test_server_that_ends_idle_transactions_ends_no_build(crowd: str, tmp_path: Path) -> None:
    name = value_of(crowd, "SELECT current_database()")
    run_statement(crowd, f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '30ms'")
    assert build(crowd, tmp_path, "v1", shards=2).num_rows > small.ROWS


def test_failing_shard_stops_the_build_with_its_own_message(crowd: str, tmp_path: Path) -> None:
    small.run(crowd, "CREATE FUNCTION fail(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'no luck'; END $$")
    small.run(
        crowd,
        "ALTER TABLE pantry_snapshots RENAME TO snaps; CREATE VIEW pantry_snapshots AS SELECT id, household_id, "
        "snapshot_time, fail(items) AS items FROM snaps",
    )
    with pytest.raises(DatabaseError, match="no luck"):
        build(crowd, tmp_path, "v1", shards=3, processes=2)
    assert list((tmp_path / "planner").glob("[!.]*")) == [] and not list((tmp_path / "planner").glob(".v1*"))


def test_shard_ends_with_its_parent_and_a_killed_one_is_named(crowd: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "planner.dataset.shards", str(tmp_path)]
    task = Source("postgresql://u@/d?host=/nowhere", "s", gather.Window(0, 1), gather.Shard(1, 3), (), None)
    answer = subprocess.run(command, input=task.to_json() + "\n", capture_output=True, text=True, cwd=PROJECT).stdout
    assert answer == "" or "No connection" in json.loads(answer)["message"]
    with pytest.raises(DatasetError, match="Shard 1 of 3 was ended from outside"):
        shards.result_of("", task.shard)


def test_servers_that_cannot_share_are_refused(
    crowd: str, replica: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match="2 servers cannot share 1 shards"):
        build(crowd, tmp_path, "v1", replicas=[replica])
    run_statement(replica, "DROP TABLE pantry_snapshots")
    with pytest.raises(DatabaseError, match="no table public.pantry_snapshots"):
        build(crowd, tmp_path, "v1", shards=2, replicas=[replica])
    monkeypatch.setattr(gather, "_PROBE", "SELECT current_database()::text")
    with pytest.raises(DatabaseError, match="hashes texts unlike"):
        run_statement(replica, "CREATE TABLE pantry_snapshots (LIKE exp.events)")
        monkeypatch.setattr(gather, "require_tables", lambda connection: None)
        build(crowd, tmp_path, "v1", shards=2, replicas=[replica])


def test_snapshot_that_is_gone_is_a_clear_error(crowd: str) -> None:
    with pytest.raises(DatabaseError, match="The snapshot that the build reads is gone"):
        open_session(crowd, "00000003-0000001B-1")


def rows(*keys: tuple[int, str], plan: str = "p") -> pa.RecordBatch:
    plans = {"meals": [{"day": "monday", "recipe_id": "r", "servings": 1}]}
    facts = [{"timestamp": us, "event_id": id_, "plan_id": plan, "generated_plan": plans} for us, id_ in keys]
    return pa.RecordBatch.from_pylist([{"metadata": fact} for fact in facts], schema=ROW_SCHEMA)


def test_merge_keeps_the_order_at_equal_times_and_gives_a_shared_row_once() -> None:
    first = [rows((1, "b"), (1, "d")), rows((1, "e"), (5, "a"))]
    second = [rows((1, "a")), rows((1, "c"), (1, "e"), (2, "z")), rows((9, "a"))]
    found = pa.Table.from_batches(list(merged([first, [], second], compare=True)))
    keys = [(row["timestamp"].timestamp() * 1e6, row["event_id"]) for row in found.column("metadata").to_pylist()]
    assert keys == [(1, "a"), (1, "b"), (1, "c"), (1, "d"), (1, "e"), (2, "z"), (5, "a"), (9, "a")]
    with pytest.raises(RowsDifferError, match="e"):
        list(merged([first, [rows((1, "e"), plan="other")]], compare=True))


@needs_spark
@pytest.mark.slow
def test_spark_builds_the_same_bytes(crowd: str, tmp_path: Path) -> None:
    whole = build(crowd, tmp_path / "1", "v1")
    script = (
        "import sys; from pathlib import Path; from tests.dataset import test_shards\n"
        "report = test_shards.build(sys.argv[1], Path(sys.argv[2]), 'v1', shards=3, spark='local[2]')\n"
    )
    # A process of its own: Spark's gateway leaves sockets and threads behind.
    done = subprocess.run(
        [sys.executable, "-c", script, crowd, str(tmp_path / "spark")], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "spark" / "planner" / "v1"
    for name in ("training.parquet", "sources.parquet", "dataset_summary.md"):
        assert (folder / name).read_bytes() == (whole.version.training_path.parent / name).read_bytes()
