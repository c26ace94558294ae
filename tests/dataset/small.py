"""A small clean database: 12 households with four accepted plans each, and the config that builds it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import uuid
from pathlib import Path
from typing import Any

from planner.dataset.config import DatasetConfig
from planner.dataset.database import connect
from tests.dataset import traps

ROWS = 48


def fill(url: str) -> None:
    """Load it."""
    with contextlib.closing(connect(url)) as connection:
        traps.load(connection, tables())


def tables() -> dict[str, list[traps.Row]]:
    """Its rows."""
    events: list[dict[str, Any]] = []
    for home in range(12):
        for week in range(4):
            at = dt.datetime(2025, 1, 4, home, tzinfo=dt.UTC) + dt.timedelta(days=week)
            plan = {"meals": [{"day": "monday", "recipe_id": f"r{week}", "servings": 2}]}
            for n, kind in enumerate(("plan_generated", "plan_accepted")):
                events.append(
                    {
                        "id": str(uuid.UUID(int=len(events) + 1)),
                        "event_type": kind,
                        "unit_type": "household",
                        "unit_id": f"home-{home}",
                        "context": json.dumps({"policy_version_id": "v1"}),
                        "payload": json.dumps({"plan_id": f"p-{home}-{week}", "plan": plan}),
                        "timestamp": at + dt.timedelta(minutes=n),
                    }
                )
    homes = [
        {"id": f"home-{home}", "size": 2, "preferences": [], "dietary_restrictions": [], "region": None}
        for home in range(12)
    ]
    filled = traps.trap_database(0) | {"events": events, "households": homes, "household_constraints": []}
    filled["pantry_snapshots"] = []
    return filled


def run(url: str, statement: str) -> None:
    """Execute and commit one statement."""
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def config(datasets: Path | str, **changes: Any) -> DatasetConfig:
    """The config of `v1`."""
    values = {"start_date": traps.START, "end_date": traps.END, "date": "v1", "datasets": str(datasets)}
    return DatasetConfig(**{**values, **changes})
