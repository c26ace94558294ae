"""Databases full of traps, from a seed: what `test_build_is_the_contract` compares the build and the reference on."""

from __future__ import annotations

import datetime as dt
import json
import random
import uuid
from collections.abc import Iterable
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

Row = dict[str, Any]
START, END = dt.date(2025, 1, 3), dt.date(2025, 1, 10)
MICRO = dt.timedelta(microseconds=1)
NAMES = [
    "tomatoes", 'quote " and \' and ""', "line\nbreak\r\nand\ttab", "emoji 🍅 é", "\\N", "\\.", "\\u0000", "", " ", ",",
    "x" * 3000, "null", "NULL", "{}", "$1", "\u0001\u0002", "'; --",
]  # fmt: skip
HOUSEHOLDS = ["h1", "h2", "H1", "h,3", 'h"4', "h\n5", "\\N", "é🍅", "", "h" * 250, "h" * 249 + "é"]
PLANS = ["p1", "p2", "p3", "p4", "", "null", "p" * 3000, "p" * 2999 + "q", 'p"\n,']
RECIPES = [f"r{i}" for i in range(6)] + ['r"7', "r\n8"]
BAD_PLANS = [
    "null", "[]", "3", '"text"', "{}", '{"meals": null}', '{"meals": []}', '{"meals": {}}', '{"meals": [null]}',
    '{"meals": [{"day": "Monday", "recipe_id": "r1", "servings": 2}]}',
    '{"meals": [{"day": "monday", "recipe_id": "r1", "servings": 2}, '
    '{"day": "monday", "recipe_id": "r2", "servings": 2}]}',
    '{"meals": [{"day": "monday", "recipe_id": "gone", "servings": 2}]}',
    '{"meals": [{"day": "monday", "recipe_id": 1, "servings": 2}]}',
    '{"meals": [{"recipe_id": "r1", "servings": 2}]}',
    *(
        '{"meals": [{"day": "monday", "recipe_id": "r1", "servings": ' + servings + "}]}"
        for servings in ("0", "-1", "2.5", '"3"', "true", "null", "2147483648", "1e400", "[2]")
    ),
]  # fmt: skip
ODD_PLANS = [
    '{"meals": [{"day": "friday", "recipe_id": "r1", "servings": 2.0}]}',
    '{"meals": [{"day": "friday", "recipe_id": "r1", "servings": 1e2, "note": {"deep": [1]}}], "more": 1}',
    '{"meals": [{"day": "sunday", "recipe_id": "r2", "servings": 2147483647}, '
    '{"day": "monday", "recipe_id": "r2", "servings": 1}]}',
]
BAD_PAYLOADS = [None, "null", "[]", '"p1"', "1", "{}", '{"plan_id": null}', '{"plan_id": 1}', '{"plan_id": ["p1"]}']
QUANTITIES = [
    "1", "0.1", "2.50", "1e-400", "1e400", "-1e400", "12345678901234567890.123", "9007199254740993", "null", '"2"',
    "true", "1" + "0" * 5000, "-0.0",
]  # fmt: skip
ITEMS = [None, "null", "{}", '"x"', "[]", '[null, 1, {"quantity": 1}, {"name": 5}, {"name": "kept", "unit": 7}]']
CONTEXTS = [
    None, "null", "[]", "7", "{}", '{"workflow_type": null, "mode": null, "policy_version_id": null}',
    '{"workflow_type": "pantry-first", "mode": "constrained", "policy_version_id": "v1"}',
    '{"workflow_type": 5, "mode": ["x"], "policy_version_id": {"a": 1}}', '{"workflow_type": "own", "mode": ""}',
    '{"policy_version_id": "v\\"2\\n"}',
]  # fmt: skip
BUDGETS = [
    None,
    "0",
    "100.10",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "0.1",
    "12345678901234567890.12345678901234567",
]
UNITS = [None, "kg", "line\nbreak"]
ARRAYS = [None, [], ["a"], [None, "b", None], ["shellfish", 'quo"te', "NULL", "{", "back\\slash", "🍅"]]


def trap_database(seed: int) -> dict[str, list[Row]]:
    """Tables whose rows meet at the same few moments, so that nearly every rule has a case at its very edge."""
    rng = random.Random(seed)
    start = dt.datetime(START.year, START.month, START.day, tzinfo=dt.UTC)
    end = dt.datetime(END.year, END.month, END.day, tzinfo=dt.UTC)
    moments = [start - dt.timedelta(days=40), start - MICRO, start, start + MICRO, start + dt.timedelta(days=1),
               start + dt.timedelta(days=3, microseconds=123457), end - MICRO, end,
               end + dt.timedelta(days=1)]  # fmt: skip
    moments += [moments[5] - MICRO, moments[5] + MICRO, moments[4] + MICRO]
    homes = rng.sample(HOUSEHOLDS, rng.randint(1, 4))
    plans = rng.sample(PLANS, rng.randint(1, 4))

    def plan() -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(BAD_PLANS)
        if kind < 0.3:
            return rng.choice(ODD_PLANS)
        days = rng.sample(["monday", "tuesday", "wednesday", "saturday"], rng.randint(1, 4))
        meals = [{"day": day, "recipe_id": rng.choice(RECIPES), "servings": rng.randint(1, 9)} for day in days]
        return json.dumps({"meals": meals})

    def payload(event_type: str) -> str | None:
        if rng.random() < 0.07:
            return rng.choice(BAD_PAYLOADS)
        members = {"plan_id": json.dumps(rng.choice(plans))}
        if event_type.startswith("plan_"):
            if rng.random() < 0.97:
                members["plan"] = plan()
        else:
            members |= {
                name: rng.choice(
                    ['"monday"', '"Funday"', "null", "3", "2.0", '"r1"', json.dumps(rng.choice(NAMES)), "{}"]
                )
                for name in ("day", "from", "to", "recipe_id", "servings")
                if rng.random() < 0.9
            }
        return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "}"

    kinds = ["plan_generated"] * 5 + ["plan_accepted"] * 7 + [
        "meal_swapped", "servings_adjusted", "meal_added", "meal_removed", "meal_cooked",
    ]  # fmt: skip
    events = []
    for _ in range(rng.randint(10, 120)):
        event_type = rng.choice(kinds)
        events.append(
            {
                "id": str(uuid.UUID(int=rng.getrandbits(128))),
                "event_type": event_type,
                "unit_type": rng.choice(["household"] * 12 + ["user", "session"]),
                "unit_id": rng.choice(homes),
                "context": rng.choice(CONTEXTS),
                "payload": payload(event_type),
                "timestamp": rng.choice(moments),
            }
        )

    def items() -> str | None:
        if rng.random() < 0.3:
            return rng.choice(ITEMS)
        entries = [
            f'{{"name": {json.dumps(rng.choice(NAMES))}, "quantity": {rng.choice(QUANTITIES)}, '
            f'"unit": {json.dumps(rng.choice(UNITS))}}}'
            for _ in range(rng.randint(1, 5))
        ]
        return "[" + ", ".join(entries) + "]"

    snapshots = [
        {
            "id": number,
            "household_id": rng.choice([*homes, "other"]),
            "snapshot_time": rng.choice(moments),
            "items": items(),
        }
        for number in rng.sample(range(-5, 10**12), rng.randint(0, 25))
    ]  # fmt: skip
    limits: dict[tuple[str, Any], Row] = {}
    for _ in range(rng.randint(0, 15)):
        row = {
            "household_id": rng.choice(homes),
            "valid_from": rng.choice([None, *moments]),
            "budget": rng.choice(BUDGETS),
            "max_prep_time": rng.choice([None, 0, 45, -3, 2**31 - 1]),
            "excluded_ingredients": rng.choice(ARRAYS),
        }
        limits[(row["household_id"], row["valid_from"])] = row
    households = [
        {
            "id": home,
            "size": rng.choice([None, 0, 4]),
            "preferences": rng.choice(ARRAYS),
            "dietary_restrictions": rng.choice(ARRAYS),
            "region": rng.choice([None, "north", "line\nbreak"]),
        }
        for home in homes
        if rng.random() < 0.85
    ]
    recipes = [{"id": recipe, "title": f"Dish {recipe!r}", "active": rng.random() < 0.8} for recipe in RECIPES]
    return {
        "events": events,
        "pantry_snapshots": snapshots,
        "household_constraints": list(limits.values()),
        "households": households,
        "recipes": recipes,
    }


def crowd(seeds: Iterable[int]) -> dict[str, list[Row]]:
    """The databases of several seeds in one, each with households of its own; the recipes are those of the first."""
    whole: dict[str, list[Row]] = {}
    for number, seed in enumerate(seeds):
        tables = trap_database(seed)
        for name, column in (("events", "unit_id"), ("pantry_snapshots", "household_id"),
                             ("household_constraints", "household_id"), ("households", "id")):  # fmt: skip
            rows = [{**row, column: f"{number}-{row[column]}"} for row in tables[name]]
            if name == "pantry_snapshots":
                rows = [{**row, "id": row["id"] * 100 + number} for row in rows]
            whole.setdefault(name, []).extend(rows)
        whole.setdefault("recipes", tables["recipes"])
    return whole


def load(connection: Connection, tables: dict[str, list[Row]]) -> None:
    """Put the tables into an emptied database."""
    with connection.cursor() as cursor:
        names = ["exp.events", "pantry_snapshots", "household_constraints", "households", "recipes"]
        cursor.execute(f"TRUNCATE {', '.join(names)}")
        for name in names:
            rows = tables[name.removeprefix("exp.")]
            if not rows:
                continue
            columns = list(rows[0])
            values = [
                ["-infinity" if column == "valid_from" and row[column] is None else row[column] for column in columns]
                for row in rows
            ]
            listed = ", ".join(f'"{column}"' for column in columns)
            casts = {"id": "::uuid" if name == "exp.events" else "", "excluded_ingredients": "::text[]",
                     "preferences": "::text[]", "dietary_restrictions": "::text[]", "context": "::jsonb",
                     "payload": "::jsonb", "items": "::jsonb", "budget": "::numeric", "size": "::int",
                     "max_prep_time": "::int", "valid_from": "::timestamptz"}  # fmt: skip
            template = "(" + ", ".join(f"%s{casts.get(column, '')}" for column in columns) + ")"
            execute_values(cursor, f"INSERT INTO {name} ({listed}) VALUES %s", values, template)
    connection.commit()
