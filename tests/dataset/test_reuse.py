"""A later build takes unchanged rows from an earlier version: byte for byte a full build, whatever came since."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg2.extras import execute_values

from planner.dataset import lineage, sources
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.database import connect
from planner.dataset.sources import Freshness
from tests.dataset import forged, small, traps

MIDDLE = dt.date(2025, 1, 7)
SEEDS = (900, 904, 907, 908)


def build(url: str, folder: Path, name: str, *, end: dt.date = traps.END, **changes: Any) -> BuildReport:
    values: dict[str, Any] = {"start_date": traps.START, "end_date": end, "date": name, "datasets": str(folder)}
    values["max_excluded_share"] = 1
    return build_dataset(url, DatasetConfig(**{**values, **changes}))


def checkpoint(url: str) -> None:
    """Rows written before it may be reused: after a crash, later transaction numbers could be given again."""
    with contextlib.closing(connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")


@pytest.fixture
def filled(database_url: str) -> str:
    small.fill(database_url)
    checkpoint(database_url)
    return database_url


def disturb(url: str, tables: dict[str, list[traps.Row]], rng: random.Random) -> None:
    """What may happen between two builds: late events of the past, and changes and deletions of what was read."""
    other = traps.trap_database(rng.randrange(10**6))["events"]
    homes = sorted({event["unit_id"] for event in tables["events"]})
    late = [
        (e["id"], e["event_type"], e["unit_type"], rng.choice(homes), e["context"], e["payload"], e["timestamp"])
        for e in rng.sample(other, min(len(other), 4))
    ]
    statements = [
        "UPDATE exp.events SET payload = payload || '{\"more\": 1}' WHERE id = (SELECT id FROM exp.events ORDER BY "
        "md5(id::text) LIMIT 1)",
        'UPDATE exp.events SET "timestamp" = "timestamp" - interval \'1 microsecond\' WHERE id = (SELECT id FROM '
        "exp.events WHERE event_type = 'plan_generated' ORDER BY md5(id::text) LIMIT 1)",
        "DELETE FROM exp.events WHERE id = (SELECT id FROM exp.events ORDER BY id LIMIT 1)",
        "UPDATE households SET size = 9 WHERE id IN ('home-3', (SELECT min(id) FROM households))",
        "UPDATE exp.events SET context = '{}' WHERE unit_id = 'home-5' AND event_type = 'plan_generated'",
        "DELETE FROM pantry_snapshots WHERE id = (SELECT max(id) FROM pantry_snapshots)",
        "UPDATE pantry_snapshots SET items = '[]' WHERE id = (SELECT min(id) FROM pantry_snapshots)",
        "UPDATE household_constraints SET budget = 7 WHERE valid_from = (SELECT min(valid_from) FROM "
        "household_constraints)",
        "DELETE FROM recipes WHERE id = 'r2'",
        "INSERT INTO recipes (id, title) VALUES ('gone', 'Back again')",
    ]
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        for statement in rng.sample(statements, rng.randint(1, 4)):
            cursor.execute(statement)
            connection.commit()
        if rng.random() < 0.6:
            execute_values(
                cursor,
                'INSERT INTO exp.events (id, event_type, unit_type, unit_id, context, payload, "timestamp") VALUES %s',
                late,
                "(%s::uuid, %s, %s, %s, %s::jsonb, %s::jsonb, %s)",
            )
            connection.commit()


def test_reuse_changes_no_byte_whatever_was_written_since(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "CHECK_EVERY", 5)
    taken, sentences = 0, ""
    for seed in SEEDS:
        tables, rng = traps.crowd(range(seed * 10, seed * 10 + 6)), random.Random(f"reuse {seed}")
        tables = {name: rows + ([] if name == "recipes" else small.tables()[name]) for name, rows in tables.items()}
        with contextlib.closing(connect(database_url)) as connection:
            traps.load(connection, tables)
        checkpoint(database_url)
        folder = tmp_path / str(seed)
        build(database_url, folder, "first", end=MIDDLE)
        disturb(database_url, tables, rng)
        full = build(database_url, folder / "full", "later")
        report = build(database_url, folder, "later", reuse="latest")
        assert report.version.training_path.read_bytes() == full.version.training_path.read_bytes(), seed
        assert sources_of(report) == sources_of(full), seed
        assert report.exclusions == full.exclusions and report.num_plans_seen == full.num_plans_seen
        taken, sentences = taken + report.reuse.num_rows, sentences + report.reuse.told
    assert taken >= 60, sentences
    for reason in ("new", "other sources", "written since", "recipes changed", "built anyway"):
        assert reason in sentences, sentences


def sources_of(report: BuildReport) -> bytes:
    return (report.version.training_path.parent / "sources.parquet").read_bytes()


def test_quiet_database_gives_all_its_rows_and_a_chain_of_versions_too(filled: str, tmp_path: Path) -> None:
    build(filled, tmp_path, "a", end=dt.date(2025, 1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineage, "CHECK_EVERY", 10**9)
        later = build(filled, tmp_path, "b", reuse="latest", checks={"timestamps_in_window": "warn"})
        again = build(filled, tmp_path, "c", reuse="b")
    assert (later.reuse.version, later.reuse.num_rows) == ("a", 12)
    assert later.reuse.told == f"12 rows were taken from a, {small.ROWS - 12} built: {small.ROWS - 12} new."
    assert (again.reuse.version, again.reuse.num_rows) == ("b", small.ROWS) and again.reuse.told.endswith("b, 0 built.")
    full = build(filled, tmp_path / "full", "b")
    assert later.version.digest == again.version.digest == full.version.digest
    assert later.version.manifest["source"]["reused"] == {
        "version": "a", "digest": later.reuse.digest, "rows": 12,
    }  # fmt: skip
    summary = (later.version.training_path.parent / "dataset_summary.md").read_text()
    assert "12 rows taken as they are from the version a" in summary


def test_rows_written_after_the_last_checkpoint_are_built_again(database_url: str, tmp_path: Path) -> None:
    checkpoint(database_url)
    small.fill(database_url)
    build(database_url, tmp_path, "a")
    report = build(database_url, tmp_path, "b", reuse="latest")
    assert report.reuse.num_rows == 0 and f"{small.ROWS} with sources written since" in report.reuse.told


def test_earlier_rows_that_are_not_what_the_database_gives_are_not_used(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "CHECK_EVERY", 4)
    full = build(filled, tmp_path, "a")
    forged.forge(tmp_path / "planner" / "a", lambda rows: [row["input"].update(mode="other") for row in rows])
    # As after a storage snapshot was put back: the same transaction numbers for other rows.
    forged.reseal(tmp_path / "planner" / "a", source=full.version.manifest["source"])
    report = build(filled, tmp_path, "b", reuse="latest")
    assert report.version.digest == full.version.digest and report.reuse.num_rows == 0
    assert "put back to an older copy" in report.reuse.told


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("ALTER TABLE exp.events RENAME TO log; CREATE VIEW exp.events AS SELECT * FROM exp.log", "no plain"),
        ("ALTER TABLE households DROP COLUMN region; ALTER TABLE households ADD region text DEFAULT 'x'", "altered"),
        ("ALTER TABLE exp.events DROP CONSTRAINT events_pkey", "no unique index on its id"),
    ],
)
def test_tables_whose_rows_prove_nothing_are_named(filled: str, tmp_path: Path, statement: str, why: str) -> None:
    build(filled, tmp_path, "a")
    small.run(filled, statement)
    report = build(filled, tmp_path, "b", reuse="latest")
    assert report.reuse.version is None and why in report.reuse.told and "from a" in report.reuse.told


def test_no_earlier_version_and_one_of_other_code_are_said(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build(filled, tmp_path, "a", reuse="latest")
    assert report.reuse.told == "There is no earlier version to take rows from."
    assert "no dataset" in build(filled, tmp_path, "b", reuse="missing").reuse.told
    monkeypatch.setattr(sources, "code_hash", lambda: "other")
    assert "code or libraries" in build(filled, tmp_path, "c", reuse="a").reuse.told
    forged.reseal(tmp_path / "planner" / "a")
    assert "before sources were recorded" in build(filled, tmp_path, "d", reuse="a").reuse.told
    assert build(filled, tmp_path, "e").reuse.told == ""


def test_transaction_numbers_are_compared_around_their_wrap() -> None:
    fresh = Freshness(low=2**32 - 10, span=30)
    numbers = {2: True, 20: True, 21: False, 2**32 - 10: True, 2**32 - 11: False, 5_000: False, 2**31: False}
    assert fresh.marks(np.array(list(numbers))).tolist() == list(numbers.values())
