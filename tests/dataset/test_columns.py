"""Columns of jsonb texts read together are, value by value and count by count, what reading them one by one gives."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts.errors import DatabaseError
from planner.dataset import collect, columns, pantries, parts, pieces, session, values
from planner.dataset import rows as rows_
from planner.dataset.build import build_dataset
from planner.dataset.database import connect
from planner.dataset.meals import Meals
from planner.dataset.pantries import Pantries
from planner.dataset.queries import EDIT_KINDS
from planner.dataset.session import Session, open_session
from planner.dataset.values import Notes
from tests.databases import value_of
from tests.dataset import small, traps
from tests.dataset.payloads import EDIT, KNOWN, MEALS, PANTRY, QUOTED, SCALARS

LOST_EDITS = "edit values that are missing or malformed (null)"


def items_of(texts: list[str | None], notes: Notes | None = None) -> list[Any]:
    objects = columns.item_objects()
    lists = columns.item_column(pa.array(texts, pa.string()), objects, Notes() if notes is None else notes)
    return lists.whole(objects.kept).to_pylist()


@settings(max_examples=400, deadline=None)
@given(st.lists(PANTRY, max_size=6))
def test_pantries_read_together_are_those_read_one_by_one(texts: list[str | None]) -> None:
    one, other = Notes(), Notes()
    found = items_of(texts, one)
    wanted = [values.pantry_items(text, other) for text in texts]
    assert repr([[tuple(item.values()) for item in items] for items in found]) == repr([list(w) for w in wanted])
    assert one == other


@settings(max_examples=400, deadline=None)
@given(st.lists(MEALS, max_size=6), st.booleans())
def test_plans_read_together_are_those_read_one_by_one(texts: list[str | None], any_recipe: bool) -> None:
    known = None if any_recipe else KNOWN
    meals = Meals(KNOWN)
    lists = meals.read(pa.array(texts, pa.string()))
    if known is not None:
        lists = pc.if_else(pa.array(meals.of_catalogue(lists)), lists, None)
    wanted = [values.plan_meals(text, known) for text in texts]
    found = meals.plans(lists).to_pylist()
    assert [plan and tuple(tuple(meal.values()) for meal in plan["meals"]) for plan in found] == wanted


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
    assert items_of([items]) == [[{"name": None, "quantity": None, "unit": None, **item} for item in pantry]]
    reader = Meals([])
    assert reader.plans(reader.read(pa.array([listed]))).to_pylist() == [{"meals": meals}]
    assert not read
    assert items_of([empty]) == [[]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text('}, {"\\:[]ab', max_size=12), min_size=1, max_size=4))
def test_texts_that_look_like_the_ends_of_objects_are_texts(names: list[str]) -> None:
    items = [{"name": name, "quantity": 1.0, "unit": name} for name in names]
    text = json.dumps([{"name": name, "unit": name, "quantity": 1} for name in names])
    assert items_of([text, text]) == [items, items]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(EDIT_KINDS)), st.one_of(st.none(), EDIT, SCALARS)), max_size=6))
def test_edits_read_together_are_those_read_one_by_one(edits: list[tuple[str, str | None]]) -> None:
    notes = Notes()
    kinds = pa.array([2 + list(EDIT_KINDS).index(kind) for kind, _ in edits], pa.int16())
    found = columns.edit_column(kinds, pa.array([text for _, text in edits], pa.string()), notes).to_pylist()
    wanted, missing = [], 0
    for kind, text in edits:
        name, payload = EDIT_KINDS[kind], values.edit_members(text)
        members = {m: v if m in values.EDIT_MEMBERS[name] else None for m, v in payload.items()}
        missing += sum(members[m] is None for m in values.EDIT_MEMBERS[name])
        wanted.append({"type": name, **members})
    assert found == wanted and notes == ({LOST_EDITS: missing} if missing else {})


@settings(max_examples=200, deadline=None)
@given(st.lists(QUOTED, max_size=6))
def test_jsons_texts_are_read_as_the_texts_that_they_are(quoted: list[str]) -> None:
    assert columns.text_column(pa.array(quoted, pa.string())).to_pylist() == [json.loads(text) for text in quoted]


def test_meals_that_were_read_before_are_the_same_when_they_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[{"day": "monday", "servings": %d, "recipe_id": "r%d"}]'
    wanted = [[("monday", f"r{n}", n)] for n in range(1, 40)]
    for most in (1 << 17, 3):
        monkeypatch.setattr(pieces, "_MOST_KEPT", most)
        meals = Meals(["r1", "r2"])
        for numbers in (range(1, 6), range(1, 40), range(1, 40)):
            lists = meals.read(pa.array([text % (n, n) for n in numbers]))
            found = [[tuple(m.values()) for m in plan["meals"]] for plan in meals.plans(lists).to_pylist()]
            assert found == wanted[: len(numbers)]
            assert meals.of_catalogue(lists).tolist() == [n < 3 for n in numbers]


@pytest.mark.parametrize(("most", "most_bytes"), [(1 << 17, 1 << 24), (3, 1 << 24), (1 << 17, 100)])
def test_items_are_the_same_whatever_is_kept_of_them(
    most: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_MOST_KEPT", most)
    monkeypatch.setattr(pieces, "_MOST_BYTES", most_bytes)
    objects, text = columns.item_objects(), '[{"name": "item %d"}, {"name": "item %d", "odd": {}}, {"name": "item %d"}]'
    for numbers in (range(5), range(40), range(40)):
        lists = columns.item_column(pa.array([text % (n, n, 0) for n in numbers]), objects, Notes())
        assert len(objects.kept) <= most
        found = [[item["name"] for item in items] for items in lists.whole(objects.kept).to_pylist()]
        assert found == [[f"item {n}", f"item {n}", "item 0"] for n in numbers]


def test_the_sizes_of_what_is_read_and_joined_at_once_change_no_byte(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', jsonb_build_array(jsonb_build_object("
        "'name', (SELECT string_agg(md5(m::text), '') FROM generate_series(1, n * 1000) m), 'quantity', 1)) "
        "FROM generate_series(1, 8) n",
    )
    digests = set()
    sizes = [(32 << 20, 50_000, 8 << 20, 10_000, 25_000), (500, 1, 1, 5, 1), (500, 9, 1000, 7, 3)]
    for number, (part, events, batch, rows, snapshots) in enumerate(sizes):
        monkeypatch.setattr(collect, "PART_BYTES", part)
        monkeypatch.setattr(parts, "PART_EVENTS", events)
        monkeypatch.setattr(session, "BATCH_BYTES", batch)
        monkeypatch.setattr(rows_, "RANGE_ROWS", rows)
        monkeypatch.setattr(rows_, "QUERY_SNAPSHOTS", snapshots)
        monkeypatch.setattr(pantries, "QUERY_SNAPSHOTS", snapshots)
        monkeypatch.setattr(pantries, "_MOST_BYTES", batch)
        digests.add(build_dataset(database_url, small.config(tmp_path, date=f"v{number}", reuse=None)).version.digest)
    assert len(digests) == 1


def test_one_session_does_where_the_server_lets_no_second_one_in(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    items = "jsonb_build_array(jsonb_build_object('name', 'rice', 'quantity', 1), jsonb_build_object('name', 7))"
    small.run(
        database_url,
        f"INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', {items} FROM generate_series(1, 8) n",
    )
    both = build_dataset(database_url, small.config(tmp_path, date="a"))

    original, opened = rows_.open_session, list[int]()

    def one_alone(url: str, snapshot: str) -> Session:
        opened.append(1)
        if len(opened) > 1:
            raise DatabaseError("too many connections")
        return original(url, snapshot)

    monkeypatch.setattr(rows_, "open_session", one_alone)
    alone = build_dataset(database_url, small.config(tmp_path, date="b", reuse=None))
    assert alone.version.digest == both.version.digest and alone.notes == both.notes
    assert alone.notes["pantry items without a name (left out)"] == 8


def test_failing_query_ends_the_other_one_too(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', '[]' FROM generate_series(0, 11) n; "
        "ALTER TABLE pantry_snapshots RENAME TO snaps; CREATE FUNCTION slow(jsonb) RETURNS jsonb LANGUAGE plpgsql "
        "STABLE AS 'BEGIN PERFORM pg_sleep(90); RETURN $1; END'; CREATE VIEW pantry_snapshots AS SELECT id, "
        "household_id, snapshot_time, slow(items) AS items FROM snaps",
    )
    monkeypatch.setattr(rows_, "QUERY_SNAPSHOTS", 1)
    monkeypatch.setattr(pantries, "QUERY_SNAPSHOTS", 1)
    original, read = Pantries.read, list[int]()

    def fail(*given: Any) -> Any:
        read.append(1)
        if len(read) == 1:
            return original(*given)
        until = time.monotonic() + 60
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while not value_of(database_url, sleeping) and time.monotonic() < until:
            time.sleep(0.05)
        raise RuntimeError("no pantry")

    monkeypatch.setattr(Pantries, "read", fail)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no pantry"):
        build_dataset(database_url, small.config(tmp_path))
    assert time.monotonic() - began < 60


def test_pantries_whose_ids_change_are_refused(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', '[]' FROM generate_series(0, 11) n; "
        "ALTER TABLE pantry_snapshots RENAME TO snaps; CREATE VIEW pantry_snapshots AS SELECT "
        "(id + 1000000 * random())::bigint AS id, household_id, snapshot_time, items FROM snaps",
    )
    with pytest.raises(DatabaseError, match="12 of 12 were not there again"):
        build_dataset(database_url, small.config(tmp_path))


def test_pantries_that_a_view_names_twice_are_those_that_it_names_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    items = "jsonb_build_array(jsonb_build_object('name', 'item ' || n), jsonb_build_object('name', n))"
    small.run(
        database_url,
        f"INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', {items} FROM generate_series(0, 11) n",
    )
    once = build_dataset(database_url, small.config(tmp_path, date="a"))
    small.run(
        database_url,
        "ALTER TABLE pantry_snapshots RENAME TO snaps; "
        "CREATE VIEW pantry_snapshots AS SELECT * FROM snaps UNION ALL SELECT * FROM snaps",
    )
    for number, batch in enumerate((16 << 20, 1)):
        monkeypatch.setattr(session, "BATCH_BYTES", batch)
        monkeypatch.setattr(pantries, "_MOST_BYTES", batch)
        twice = build_dataset(database_url, small.config(tmp_path, date=f"b{number}", reuse=None))
        assert twice.version.digest == once.version.digest


PARTITIONED = """
ALTER TABLE exp.events RENAME TO whole;
CREATE TABLE exp.events (LIKE exp.whole INCLUDING DEFAULTS) PARTITION BY RANGE ("timestamp");
CREATE TABLE exp.early PARTITION OF exp.events FOR VALUES FROM (MINVALUE) TO ('2025-01-05');
CREATE TABLE exp.late PARTITION OF exp.events DEFAULT;
CREATE UNIQUE INDEX ON exp.events (id, "timestamp");
INSERT INTO exp.events SELECT * FROM exp.whole ORDER BY md5(id::text)
"""
VIEW = "ALTER TABLE exp.events RENAME TO whole; CREATE VIEW exp.events AS SELECT * FROM exp.whole"


@pytest.mark.parametrize(("statement", "pieces"), [("SELECT 1", 4), (PARTITIONED, 4), (VIEW, 1)])
def test_events_are_read_in_pieces_of_their_pages_those_of_a_view_in_one(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, pieces: int
) -> None:
    small.fill(database_url)
    small.run(database_url, "UPDATE exp.events SET payload = payload || jsonb_build_object('x', repeat('y', 1000))")
    digest = build_dataset(database_url, small.config(tmp_path, date="a")).version.digest
    small.run(database_url, statement)
    monkeypatch.setattr(collect, "PIECES", 4)
    monkeypatch.setattr(collect, "PIECE_PAGES", 1)
    read: list[str] = []
    original = Session.read
    monkeypatch.setattr(Session, "read", lambda self, query, what: read.append(what) or original(self, query, what))
    report = build_dataset(database_url, small.config(tmp_path, date="b", reuse=None))
    assert report.version.digest == digest and report.warnings == ()
    assert read.count("reading the events") == pieces


def test_texts_of_every_kind_survive_the_way_from_the_server(database_url: str) -> None:
    names = [*traps.HOUSEHOLDS, "\x01", "\x02", 'a\x01"\x02\r\n', "\\.", "NULL"]
    tables = traps.trap_database(0) | {"households": [], "household_constraints": [], "pantry_snapshots": []}
    tables["events"] = [
        {"id": f"00000000-0000-0000-0000-{n:012}", "event_type": "plan_accepted", "unit_type": "household",
         "unit_id": name, "context": None, "payload": json.dumps({"plan_id": name}), "timestamp": "2025-01-04"}
        for n, name in enumerate(names)
    ]  # fmt: skip
    with contextlib.closing(connect(database_url)) as connection, connection.cursor() as cursor:
        traps.load(connection, tables)
        cursor.execute("SELECT pg_export_snapshot()")
        (snapshot,) = cursor.fetchone() or ("",)
        with contextlib.closing(open_session(database_url, snapshot)) as session_:
            query = "SELECT id, unit_id::text, payload->'plan_id', context FROM exp.events"
            batches = list(session_.read(query, "reading texts"))
    rows = [row for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
    assert {str(uuid.UUID(bytes=id_)): (home, json.loads(plan), context) for id_, home, plan, context in rows} == {
        event["id"]: (event["unit_id"], event["unit_id"], None) for event in tables["events"]
    }
