"""Columns of jsonb texts read together are, value by value and count by count, what reading them one by one gives."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts.errors import DatabaseError
from planner.dataset import columns, gather, stream, values, wide
from planner.dataset.build import build_dataset
from planner.dataset.database import connect
from planner.dataset.values import Notes
from tests.databases import value_of
from tests.dataset import small, traps
from tests.dataset.payloads import KNOWN, MEALS, PANTRY


def whole(lists: columns.Lists) -> list[Any]:
    return lists.take(pa.array(range(len(lists.codes)), pa.int64())).to_pylist()


@settings(max_examples=400, deadline=None)
@given(st.lists(PANTRY, max_size=6))
def test_pantries_read_together_are_those_read_one_by_one(texts: list[str | None]) -> None:
    one, other = Notes(), Notes()
    found = whole(columns.item_column(pa.array(texts, pa.string()), one))
    wanted = [values.pantry_items(text, other) for text in texts]
    assert repr([[tuple(item.values()) for item in items] for items in found]) == repr([list(w) for w in wanted])
    assert one == other


@settings(max_examples=400, deadline=None)
@given(st.lists(MEALS, max_size=6), st.booleans())
def test_plans_read_together_are_those_read_one_by_one(texts: list[str | None], any_recipe: bool) -> None:
    known = None if any_recipe else KNOWN
    meals = columns.plan_column(pa.array(texts, pa.string()))
    if known is not None:
        meals = meals.without(columns.unknown_recipes(meals, pa.array(known)))
    wanted = [values.plan_meals(text, known) for text in texts]
    assert [plan and tuple(tuple(meal.values()) for meal in plan) for plan in whole(meals)] == wanted


def test_the_usual_form_is_what_postgresql_prints(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pantry: list[dict[str, Any]] = [
        {"name": 'rice "é" \\ 🍅\n\x1f', "quantity": 2.5, "unit": "kg"},
        {"quantity": 1, "name": "eggs"},
        {"name": "salt"},
    ]
    meals: list[dict[str, Any]] = [
        {"day": "friday", "recipe_id": "r1", "servings": 2},
        {"servings": 1, "day": "monday", "recipe_id": "r"},
    ]
    more = {"id": 7, "tags": ["a", 0.5, None], "opened": False, "category": "dry", "expires_at": "2025-01-01"}
    with contextlib.closing(connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT %s::jsonb::text, '[]'::jsonb::text, %s::jsonb::text",
            [json.dumps([{**more, **item} for item in pantry]), json.dumps([{**more, **meal} for meal in meals])],
        )
        items, empty, listed = cursor.fetchone() or ()
    read: list[list[str | None]] = []
    monkeypatch.setattr(values, "pantry_items", lambda text, notes: read.append([text]) or ())
    monkeypatch.setattr(values, "plan_meals", lambda text: read.append([text]))
    assert whole(columns.item_column(pa.array([items]), Notes())) == [
        [{"name": None, "quantity": None, "unit": None, **item} for item in pantry]
    ]
    assert whole(columns.plan_column(pa.array([listed]))) == [meals]
    assert not read
    assert whole(columns.item_column(pa.array([empty]), Notes())) == [[]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text('}, {"\\:[]ab', max_size=12), min_size=1, max_size=4))
def test_texts_that_look_like_the_ends_of_objects_are_texts(names: list[str]) -> None:
    items = [{"name": name, "quantity": 1.0, "unit": name} for name in names]
    text = json.dumps([{"name": name, "unit": name, "quantity": 1} for name in names])
    assert whole(columns.item_column(pa.array([text, text]), Notes())) == [items, items]


def test_events_come_in_a_scan_or_by_id_in_pieces_of_any_size_and_change_no_byte(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', jsonb_build_array(jsonb_build_object("
        "'name', (SELECT string_agg(md5(m::text), '') FROM generate_series(1, n * 1000) m), 'quantity', 1)) "
        "FROM generate_series(1, 8) n",
    )
    digests, ways = set(), Counter[str]()
    for name in ("_scanned", "_by_id"):
        original = getattr(wide, name)
        monkeypatch.setattr(wide, name, lambda *args, o=original, n=name: ways.update([n]) or o(*args))
    for number, (share, size) in enumerate([(0.0, 8 << 20), (0.0, 1), (2.0, 8 << 20), (2.0, 1)]):
        monkeypatch.setattr(wide, "SCAN_SHARE", share)
        monkeypatch.setattr(stream, "CHUNK_BYTES", size)
        digests.add(build_dataset(database_url, small.config(tmp_path, date=f"v{number}", reuse=None)).version.digest)
    assert len(digests) == 1 and ways == {"_scanned": 2, "_by_id": 2}


def test_pantries_are_read_behind_the_rest_where_there_is_no_second_connection(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    items = "jsonb_build_array(jsonb_build_object('name', 'rice', 'quantity', 1), jsonb_build_object('name', 7))"
    small.run(
        database_url,
        f"INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', {items} FROM generate_series(1, 8) n",
    )
    both = build_dataset(database_url, small.config(tmp_path, date="a"))

    def refused(url: str, snapshot: str) -> None:
        raise DatabaseError("too many connections")

    monkeypatch.setattr(gather, "snapshot_connection", refused)
    alone = build_dataset(database_url, small.config(tmp_path, date="b", reuse=None))
    assert alone.version.digest == both.version.digest and alone.notes == both.notes
    assert alone.notes["pantry items without a name (left out)"] == 8


def test_failing_events_end_the_reading_of_pantries_too(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', '[]' FROM generate_series(1, 8) n; "
        "ALTER TABLE pantry_snapshots RENAME TO snaps; CREATE FUNCTION slow(jsonb) RETURNS jsonb LANGUAGE plpgsql "
        "STABLE AS 'BEGIN PERFORM pg_sleep(90); RETURN $1; END'; CREATE VIEW pantry_snapshots AS SELECT id, "
        "household_id, snapshot_time, slow(items) AS items FROM snaps",
    )

    def fail(*_: Any) -> None:
        until = time.monotonic() + 60
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while not value_of(database_url, sleeping) and time.monotonic() < until:
            time.sleep(0.05)
        raise RuntimeError("no events")

    monkeypatch.setattr(wide, "_spool_events", fail)
    with pytest.raises(RuntimeError, match="no events"):
        build_dataset(database_url, small.config(tmp_path))


PARTITIONED = """
ALTER TABLE exp.events RENAME TO whole;
CREATE TABLE exp.events (LIKE exp.whole INCLUDING DEFAULTS) PARTITION BY RANGE ("timestamp");
CREATE TABLE exp.early PARTITION OF exp.events FOR VALUES FROM (MINVALUE) TO ('2025-01-05');
CREATE TABLE exp.late PARTITION OF exp.events DEFAULT;
CREATE UNIQUE INDEX ON exp.events (id, "timestamp");
INSERT INTO exp.events SELECT * FROM exp.whole ORDER BY md5(id::text)
"""
VIEW = "ALTER TABLE exp.events RENAME TO whole; CREATE VIEW exp.events AS SELECT * FROM exp.whole"


@pytest.mark.parametrize(("statement", "way"), [(PARTITIONED, "_scanned"), (VIEW, "_by_id")])
def test_events_of_a_partitioned_table_are_scanned_those_of_a_view_come_by_id(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, way: str
) -> None:
    small.fill(database_url)
    digest = build_dataset(database_url, small.config(tmp_path, date="a")).version.digest
    small.run(database_url, statement)
    ways = []
    for name in ("_scanned", "_by_id"):
        original = getattr(wide, name)
        monkeypatch.setattr(wide, name, lambda *args, o=original, n=name: ways.append(n) or o(*args))
    report = build_dataset(database_url, small.config(tmp_path, date="b", reuse=None))
    assert report.version.digest == digest and ways == [way] and report.warnings == ()


def test_scan_in_another_order_is_noticed_and_events_come_by_id(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    digest = build_dataset(database_url, small.config(tmp_path, date="a")).version.digest
    original, ways = wide.copy_tables, Counter[str]()

    def shuffled(connection: Any, query: str, columns: Any, what: str) -> Any:
        ways[what] += 1
        return original(connection, query + " ORDER BY id DESC" * (what == "reading the events"), columns, what)

    monkeypatch.setattr(wide, "copy_tables", shuffled)
    monkeypatch.setattr(wide, "SCAN_SHARE", 0.0)
    assert build_dataset(database_url, small.config(tmp_path, date="b", reuse=None)).version.digest == digest
    assert ways["reading the events"] == 1 and ways["reading events by id"] >= 1


def test_texts_with_separators_and_line_breaks_survive_the_copy(database_url: str) -> None:
    names = [*traps.HOUSEHOLDS, "\x01", "\x02", 'a\x01"\x02\r\n', "\\.", "NULL"]
    tables = traps.trap_database(0) | {"households": [], "household_constraints": [], "pantry_snapshots": []}
    tables["events"] = [
        {"id": f"00000000-0000-0000-0000-{n:012}", "event_type": "plan_accepted", "unit_type": "household",
         "unit_id": name, "context": None, "payload": json.dumps({"plan_id": name}), "timestamp": "2025-01-04"}
        for n, name in enumerate(names)
    ]  # fmt: skip
    with contextlib.closing(connect(database_url)) as connection:
        traps.load(connection, tables)
        wanted = {event["id"]: (event["unit_id"], event["unit_id"], None) for event in tables["events"]}
        tables = stream.copy_tables(
            connection,
            "SELECT id::text, unit_id::text, payload->>'plan_id', context::text FROM exp.events",
            dict.fromkeys(["id", "home", "plan_id", "context"], pa.string()),
            "reading texts",
        )
        rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    assert {row[0]: row[1:] for row in rows} == wanted
