"""A brute-force reading of the dataset's contract: one plan at a time, plain Python, nothing of the production path.

In: the rows of the tables as lists of dicts (JSON columns as text). Out: the rows of `training.parquet` as dicts, and
the exclusions by reason. Slow on purpose: each rule stands here as the contract words it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from decimal import Decimal
from typing import Any

DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
Row = dict[str, Any]


def build(tables: dict[str, list[Row]], start: dt.date, end: dt.date) -> tuple[list[Row], dict[str, int]]:
    start_at = dt.datetime(start.year, start.month, start.day, tzinfo=dt.UTC)
    end_at = dt.datetime(end.year, end.month, end.day, tzinfo=dt.UTC)
    events = []
    for event in tables["events"]:
        payload = loads(event["payload"])
        plan_id = payload.get("plan_id") if isinstance(payload, dict) else None
        if event["unit_type"] == "household" and event["timestamp"] < end_at and isinstance(plan_id, str):
            context = loads(event["context"])
            context = context if isinstance(context, dict) else {}
            events.append({**event, "payload": payload, "context": context, "plan_id": plan_id})
    accepted_plans = []
    for event in events:
        key = (event["unit_id"], event["plan_id"])
        if event["event_type"] == "plan_accepted" and event["timestamp"] >= start_at and key not in accepted_plans:
            accepted_plans.append(key)
    rows, exclusions = (
        [],
        dict.fromkeys(["not_generated", "accepted_before_generated", "unknown_household", "invalid_plan"], 0),
    )
    for household_id, plan_id in accepted_plans:
        row = one(tables, events, household_id, plan_id)
        if isinstance(row, str):
            exclusions[row] += 1
        else:
            rows.append(row)
    rows.sort(key=lambda row: (row["metadata"]["timestamp"], row["metadata"]["event_id"]))
    return rows, exclusions


def one(tables: dict[str, list[Row]], events: list[Row], household_id: str, plan_id: str) -> Row | str:
    of_household = [e for e in events if e["unit_id"] == household_id]
    of_plan = [e for e in of_household if e["plan_id"] == plan_id]
    recipes = {recipe["id"] for recipe in tables["recipes"]}

    generations = in_order(e for e in of_plan if e["event_type"] == "plan_generated")
    if not generations:
        return "not_generated"
    generation = generations[0]
    t = generation["timestamp"]
    acceptances = in_order(e for e in of_plan if e["event_type"] == "plan_accepted" and e["timestamp"] >= t)
    if not acceptances:
        return "accepted_before_generated"
    acceptance = acceptances[-1]
    households = [h for h in tables["households"] if h["id"] == household_id]
    if not households:
        return "unknown_household"
    household = households[0]
    accepted = plan_of(acceptance["payload"], recipes)
    if accepted is None:
        return "invalid_plan"

    snapshots = [s for s in tables["pantry_snapshots"] if s["household_id"] == household_id and s["snapshot_time"] <= t]
    snapshot = max(snapshots, key=lambda s: (s["snapshot_time"], s["id"]), default=None)
    versions = [
        c for c in tables["household_constraints"]
        if c["household_id"] == household_id and (c["valid_from"] is None or c["valid_from"] <= t)
    ]  # fmt: skip
    # A valid_from of None stands for minus infinity.
    beginning = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    limits = max(versions, key=lambda c: c["valid_from"] or beginning, default={})

    previous = None
    for event in in_order(of_household):
        if event["event_type"] == "plan_accepted" and event["timestamp"] < t and event["plan_id"] != plan_id:
            plan = plan_of(event["payload"], None)
            previous = plan if plan is not None else previous

    edits = [
        edit_of(e) for e in in_order(of_plan)
        if e["event_type"] in EDITS and t <= e["timestamp"] <= acceptance["timestamp"]
    ]  # fmt: skip
    return {
        "input": {
            "household": {
                "id": household_id,
                "size": household["size"],
                "preferences": texts(household["preferences"]),
                "restrictions": texts(household["dietary_restrictions"]),
            },
            "pantry": {"items": items_of(loads(snapshot["items"]) if snapshot else [])},
            "constraints": {
                "budget": double(limits.get("budget")),
                "max_prep_time": limits.get("max_prep_time"),
                "excluded_ingredients": texts(limits.get("excluded_ingredients")),
            },
            "workflow_type": text_or(generation["context"].get("workflow_type"), "plan-first"),
            "mode": text_or(generation["context"].get("mode"), "autopilot"),
            "previous_plan": previous,
        },
        "target": {"accepted_plan": accepted, "user_edits": edits},
        "metadata": {
            "timestamp": acceptance["timestamp"],
            "generated_at": t,
            "policy_version_id": text_or(
                generation["context"].get("policy_version_id"),
                text_or(acceptance["context"].get("policy_version_id"), None),
            ),
            "event_id": acceptance["id"],
            "plan_id": plan_id,
            "region": household["region"],
            "generated_plan": plan_of(generation["payload"], recipes),
        },
        "split": split(household_id),
    }


EDITS = {
    "meal_swapped": ("swap_meal", ["day", "from", "to"]),
    "servings_adjusted": ("adjust_servings", ["day", "servings"]),
    "meal_added": ("add_meal", ["day", "recipe_id", "servings"]),
    "meal_removed": ("remove_meal", ["day"]),
}


def edit_of(event: Row) -> Row:
    name, members = EDITS[event["event_type"]]
    edit = {"type": name, "day": None, "from": None, "to": None, "recipe_id": None, "servings": None}
    for member in members:
        value = event["payload"].get(member)
        if member == "servings":
            edit[member] = whole(value)
        else:
            edit[member] = value if isinstance(value, str) else None
    return edit


def plan_of(payload: Row, recipes: set[str] | None) -> Row | None:
    plan = payload.get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("meals"), list) or not plan["meals"]:
        return None
    meals: list[Row] = []
    for meal in plan["meals"]:
        if not isinstance(meal, dict):
            return None
        day, recipe_id, servings = meal.get("day"), meal.get("recipe_id"), whole(meal.get("servings"))
        if not isinstance(day, str) or day not in DAYS or day in [m["day"] for m in meals]:
            return None
        if servings is None or servings < 1:
            return None
        if not isinstance(recipe_id, str) or (recipes is not None and recipe_id not in recipes):
            return None
        meals.append({"day": day, "recipe_id": recipe_id, "servings": servings})
    return {"meals": meals}


def items_of(value: Any) -> list[Row]:
    items = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            unit = item.get("unit")
            items.append(
                {
                    "name": item["name"],
                    "quantity": number(item.get("quantity")),
                    "unit": unit if isinstance(unit, str) else None,
                }
            )
    return items


def number(value: Any) -> float | None:
    if not isinstance(value, Decimal):
        return None
    as_double = float(value) + 0.0  # jsonb knows no negative zero
    return None if as_double in (float("inf"), float("-inf")) else as_double


def whole(value: Any) -> int | None:
    if isinstance(value, Decimal) and value == value.to_integral_value() and abs(value) < 2**31:
        return int(value)
    return None


def double(value: str | None) -> float | None:
    if value is None:
        return None
    as_double = float(Decimal(value))
    return as_double if as_double - as_double == 0 else None


def texts(value: list[str | None] | None) -> list[str]:
    return [text for text in value or [] if text is not None]


def text_or(value: Any, otherwise: str | None) -> str | None:
    return value if isinstance(value, str) else otherwise


def in_order(events: Any) -> list[Row]:
    return sorted(events, key=lambda e: (e["timestamp"], e["id"]))


def loads(text: str | None) -> Any:
    # Every number by its exact value: JSON has one kind of them.
    return None if text is None else json.loads(text, parse_int=Decimal, parse_float=Decimal)


def split(household_id: str) -> str:
    digest = hashlib.sha256(b"planner-split:" + household_id.encode("utf-8")).digest()
    number = int.from_bytes(digest[:8], "big") % 100
    return "test" if number < 10 else "validation" if number < 20 else "train"
