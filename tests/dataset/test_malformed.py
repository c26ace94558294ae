"""Whatever stands in the JSON columns, the build gives what the brute-force reading of the contract gives."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
import uuid

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.contracts.errors import DatasetError
from planner.dataset.build import build_dataset
from planner.dataset.database import connect
from tests.dataset import reference, small, traps
from tests.dataset.payloads import CONTEXT, EDIT, PANTRY, PLAN
from tests.dataset.test_contract import difference, same, utc
from tests.dataset.traps import Row

AT = dt.datetime(2025, 1, 4, tzinfo=dt.UTC)


def payload(plan_id: str, plan: str | None) -> str:
    return f'{{"plan_id": "{plan_id}"}}' if plan is None else f'{{"plan_id": "{plan_id}", "plan": {plan}}}'


def tables_of(weeks: list[tuple[str | None, ...]]) -> dict[str, list[Row]]:
    """A household for each entry, with two plans: the first is the second's previous plan if it meets the contract."""
    tables = traps.trap_database(0) | {"household_constraints": []}
    tables |= {"events": [], "households": [], "pantry_snapshots": []}
    for number, (first, proposed, accepted, edit, context, other, pantry) in enumerate(weeks):
        home = f"home-{number}"
        steps = [("a", "plan_generated", first), ("a", "plan_accepted", first), ("b", "plan_generated", proposed)]
        steps += [("b", "meal_added", None), ("b", "plan_accepted", accepted)]
        for step, (plan_id, kind, plan) in enumerate(steps):
            text = payload(plan_id, plan)
            if kind == "meal_added" and edit is not None:
                text = f'{{"plan_id": "b", {edit[1:]}' if edit != "{}" else text
            tables["events"].append(
                {"id": str(uuid.UUID(int=100 * number + step)), "event_type": kind, "unit_type": "household",
                 "unit_id": home, "context": context if kind == "plan_generated" else other, "payload": text,
                 "timestamp": AT + dt.timedelta(minutes=step)}
            )  # fmt: skip
        tables["households"].append(
            {"id": home, "size": 2, "preferences": [], "dietary_restrictions": None, "region": None}
        )
        tables["pantry_snapshots"].append({"id": number, "household_id": home, "snapshot_time": AT, "items": pantry})
    return tables


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weeks=st.lists(st.tuples(PLAN, PLAN, PLAN, EDIT, CONTEXT, CONTEXT, PANTRY), min_size=1, max_size=25))
def test_malformed_payloads_are_read_as_the_contract_says(
    database_url: str, weeks: list[tuple[str | None, ...]]
) -> None:
    tables = tables_of(weeks)
    wanted, exclusions = reference.build(tables, traps.START, traps.END)
    with contextlib.closing(connect(database_url)) as connection:
        traps.load(connection, tables)
    with tempfile.TemporaryDirectory() as folder:
        config = small.config(folder, max_excluded_share=1.0)
        if not wanted:
            with pytest.raises(DatasetError, match="There is no row"):
                build_dataset(database_url, config)
            return
        report = build_dataset(database_url, config)
        found = utc(pq.read_table(report.version.training_path).to_pylist())
    assert len(found) == len(wanted) and dict(report.exclusions) == exclusions  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):  # type: ignore[call-overload]
        assert same(one, other), difference(one, other)
