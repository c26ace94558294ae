"""Columns of jsonb texts read together are, value by value and count by count, what reading them one by one gives."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dataset import columns, fetch, values
from planner.dataset.build import build_dataset
from planner.dataset.database import connect
from planner.dataset.values import Notes
from tests.dataset import small, traps
from tests.dataset.payloads import KNOWN, PANTRY, PLAN


@settings(max_examples=400, deadline=None)
@given(st.lists(PANTRY, max_size=6))
def test_pantries_read_together_are_those_read_one_by_one(texts: list[str | None]) -> None:
    one, other = Notes(), Notes()
    found = columns.item_column(pa.array(texts, pa.string()), one).to_pylist()
    wanted = [values.pantry_items(text, other) for text in texts]
    assert repr([[tuple(item.values()) for item in items] for items in found]) == repr([list(w) for w in wanted])
    assert one == other


@settings(max_examples=400, deadline=None)
@given(st.lists(PLAN, max_size=6), st.booleans())
def test_plans_read_together_are_those_read_one_by_one(texts: list[str | None], any_recipe: bool) -> None:
    known = None if any_recipe else KNOWN
    found = columns.plan_column(pa.array(texts, pa.string()), known and pa.array(known)).to_pylist()
    wanted = [values.plan_meals(text, known) for text in texts]
    assert [plan and tuple(tuple(meal.values()) for meal in plan["meals"]) for plan in found] == wanted


def test_the_usual_form_is_what_postgresql_prints(database_url: str) -> None:
    pantry = [{"name": "rice é", "quantity": 2.5, "unit": "kg"}, {"quantity": 1, "name": "eggs"}, {"name": "salt"}]
    plan = {
        "meals": [
            {"day": "friday", "recipe_id": "r1", "servings": 2},
            {"servings": 1, "day": "monday", "recipe_id": "r"},
        ]
    }
    with contextlib.closing(connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT %s::jsonb::text, '[]'::jsonb::text, %s::jsonb::text", [json.dumps(pantry), json.dumps(plan)]
        )
        items, empty, meals = cursor.fetchone() or ()
    assert pc.match_substring_regex(pa.array([items, empty]), columns._USUAL_ITEMS).to_pylist() == [True, True]
    assert pc.match_substring_regex(pa.array([meals]), columns._USUAL_PLAN).to_pylist() == [True]


@pytest.mark.parametrize("limit", [0, 100])
def test_huge_payloads_come_one_by_one_and_change_no_byte(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "INSERT INTO pantry_snapshots SELECT n, 'home-' || n, '2025-01-04', jsonb_build_array(jsonb_build_object("
        "'name', (SELECT string_agg(md5(m::text), '') FROM generate_series(1, n * 1000) m), 'quantity', 1)) "
        "FROM generate_series(1, 8) n",
    )
    digest = build_dataset(database_url, small.config(tmp_path, date="a")).version.digest
    monkeypatch.setattr(fetch, "_LARGE_BYTES", limit)
    calls = Counter[str]()
    original = fetch.query

    def counted(connection: Any, statement: str, arguments: Any = None) -> Any:
        calls["large"] += "pg_column_size" in statement
        return original(connection, statement, arguments)

    monkeypatch.setattr(fetch, "query", counted)
    assert build_dataset(database_url, small.config(tmp_path, date="b")).version.digest == digest
    assert calls["large"] > 0


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
        table = fetch.fetch_columns(
            connection,
            ("id::text", "unit_id::text", "payload->>'plan_id'", "context::text"),
            "FROM exp.events",
            "payload",
            pa.array(wanted, pa.string()),
        )
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    assert {row[0]: row[1:] for row in rows} == wanted
