"""The event log: what the policy proposed, the edits that the household made to it, and what it accepted.

In: proposed and accepted plans. Out: rows of `exp.events` as COPY text, in the order of plans and time. The edits
are exactly the difference of the two plans, day by day.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import numpy as np

from planner.contracts.plan import WEEKDAYS
from planner.dataset.demo.catalogue import DemoCatalogue
from planner.dataset.demo.households import Households
from planner.dataset.demo.plans import Plans
from planner.dataset.demo.policy import modes_of, workflows_of
from planner.dataset.demo.purchases import Ints, week_start
from planner.dataset.demo.support import unit_hash

NAMESPACE = uuid.UUID("6f0c2a52-5d0e-5b0c-9f0e-2a6d1c9b7e10")  # of every id in the demo
POLICY_NAME = "logged"
APP_VERSION = "1.4.0"
EVENT_COLUMNS = 'id, event_type, unit_type, unit_id, context, payload, "timestamp", created_at'
Day = tuple[int, int]  # dish and servings; dish -1 where nothing is cooked
EditRow = tuple[str, str]  # event type and the payload's members after plan_id, as JSON text


def stable_id(*parts: object) -> str:
    """A UUID that depends on the text of its parts alone."""
    return str(uuid.uuid5(NAMESPACE, "|".join(map(str, parts))))


def policy_ids() -> tuple[str, str]:
    """Ids of the logged policy and of its one version."""
    return stable_id("policy", POLICY_NAME), stable_id("policy version", POLICY_NAME, 1)


def event_lines(catalogue: DemoCatalogue, households: Households, proposed: Plans, accepted: Plans) -> Iterator[str]:
    """Yield the rows of `exp.events`: each plan's generation, then its edits and acceptance if there was one."""
    context = _contexts(households)
    dish_ids = [dish.id for dish in catalogue.dishes]
    match = match_plans(proposed, accepted)
    for row in range(len(proposed)):
        h, week = int(proposed.household[row]), int(proposed.week[row])
        plan_id = stable_id("plan", households.ids[h], week)
        generated_at, accepted_at = plan_times(households.ids[h], week)
        before = list(zip(proposed.dish[row].tolist(), proposed.servings[row].tolist(), strict=True))
        events = [("plan_generated", f'"plan": {_plan_json(before, dish_ids)}', generated_at)]
        if match[row] >= 0:
            at = int(match[row])
            after = list(zip(accepted.dish[at].tolist(), accepted.servings[at].tolist(), strict=True))
            edits = edit_rows(before, after, dish_ids)
            events += [
                (kind, members, accepted_at - timedelta(seconds=40 * (len(edits) - number)))
                for number, (kind, members) in enumerate(edits)
            ]
            events.append(("plan_accepted", f'"plan": {_plan_json(after, dish_ids)}', accepted_at))
        for number, (kind, members, time) in enumerate(events):
            event_id = stable_id("event", plan_id, number)
            payload = f'{{"plan_id": "{plan_id}", {members}}}'
            stamp = time.isoformat()
            yield "\t".join((event_id, kind, "household", households.ids[h], context[h], payload, stamp, stamp)) + "\n"


def match_plans(proposed: Plans, accepted: Plans) -> Ints:
    """For each proposed plan the row of the accepted one of that household and week, -1 where there is none."""
    key = accepted.household * 64 + accepted.week
    wanted = proposed.household * 64 + proposed.week
    at = np.minimum(np.searchsorted(key, wanted), max(0, len(key) - 1))
    found = key[at] == wanted if len(key) else np.zeros(len(wanted), dtype=bool)
    return np.where(found, at, -1)


def plan_times(household: str, week: int) -> tuple[datetime, datetime]:
    """When a week's plan was generated (in the first minute of the week) and accepted (6 to 12 hours later), UTC."""
    start = week_start(week)
    generated_at = start + timedelta(seconds=int(unit_hash("generated", household, week) * 60))
    accepted_at = start + timedelta(seconds=6 * 3600 + int(unit_hash("accepted", household, week) * 6 * 3600))
    return generated_at, accepted_at


def edit_rows(before: Sequence[Day], after: Sequence[Day], dish_ids: Sequence[str]) -> list[EditRow]:
    """The edits that turn one plan into the other, Monday first; a swap keeps the servings of the meal it replaces."""
    edits: list[EditRow] = []
    for day, (old, new) in zip(WEEKDAYS, zip(before, after, strict=True), strict=True):
        at = f'"day": "{day}"'
        if old[0] >= 0 and new[0] < 0:
            edits.append(("meal_removed", at))
        elif old[0] < 0 and new[0] >= 0:
            edits.append(("meal_added", f'{at}, "recipe_id": "{dish_ids[new[0]]}", "servings": {new[1]}'))
        elif old[0] >= 0:
            if old[0] != new[0]:
                edits.append(("meal_swapped", f'{at}, "from": "{dish_ids[old[0]]}", "to": "{dish_ids[new[0]]}"'))
            if old[1] != new[1]:
                edits.append(("servings_adjusted", f'{at}, "servings": {new[1]}'))
    return edits


def _plan_json(days: Sequence[Day], dish_ids: Sequence[str]) -> str:
    meals = ", ".join(
        f'{{"day": "{WEEKDAYS[day]}", "recipe_id": "{dish_ids[dish]}", "servings": {servings}}}'
        for day, (dish, servings) in enumerate(days)
        if dish >= 0
    )
    return f'{{"meals": [{meals}]}}'


def _contexts(households: Households) -> list[str]:
    version = policy_ids()[1]
    return [
        f'{{"policy_version_id": "{version}", "workflow_type": "{workflow}", "mode": "{mode}", '
        f'"app_version": "{APP_VERSION}"}}'
        for workflow, mode in zip(workflows_of(households), modes_of(households), strict=True)
    ]
