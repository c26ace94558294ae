"""The demo's plans: within the household's limits, edits exact, from the past alone, the same on every run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from planner.contracts.catalogue import Catalogue, cents
from planner.contracts.plan import DAY_INDEX, WEEKDAYS, plan_problem
from planner.contracts.request import Constraints, Household, Request
from planner.dataset.demo.catalogue import cost_per_serving
from planner.dataset.demo.events import edit_rows, event_lines
from planner.dataset.demo.households import forbids, matches, version_of_week
from planner.dataset.demo.load import Demo, derive_demo
from planner.dataset.demo.pantry import MAX_ITEMS, pantry_lines
from planner.dataset.demo.plans import Plans
from planner.dataset.demo.policy import propose
from planner.dataset.demo.purchases import week_start
from planner.dataset.demo.support import MIN_SHARE
from planner.decoding.constraints import ConstraintIndex

EDITS = {
    "meal_swapped": {"plan_id", "day", "from", "to"},
    "servings_adjusted": {"plan_id", "day", "servings"},
    "meal_added": {"plan_id", "day", "recipe_id", "servings"},
    "meal_removed": {"plan_id", "day"},
}


@pytest.fixture(scope="module")
def demo() -> Demo:
    return derive_demo(households=300)


@pytest.fixture(scope="module")
def log(demo: Demo) -> dict[str, list[dict[str, Any]]]:
    """Events by plan_id, in the order written."""
    plans: dict[str, list[dict[str, Any]]] = {}
    for line in event_lines(demo.catalogue, demo.households, demo.proposed, demo.accepted):
        event_id, kind, unit_type, unit_id, context, payload, time, created_at = line.rstrip("\n").split("\t")
        assert unit_type == "household" and created_at == time
        event = {"id": event_id, "type": kind, "unit": unit_id, "context": json.loads(context)}
        event |= {"payload": json.loads(payload), "time": datetime.fromisoformat(time)}
        plans.setdefault(event["payload"]["plan_id"], []).append(event)
    return plans


def request_of(demo: Demo, household: int, week: int) -> Request:
    homes = demo.households
    version = int(version_of_week(np.array([week]))[0])
    return Request(
        household=Household(homes.ids[household], int(homes.size[household]), (), homes.restrictions[household]),
        constraints=Constraints(
            budget=float(homes.budget[household, version]),
            max_prep_time=int(homes.max_prep[household, version]) or None,
            excluded_ingredients=homes.excluded[household],
        ),
    )


@pytest.mark.parametrize("which", ["accepted", "proposed"])
def test_every_plan_keeps_to_the_limits_of_its_household(demo: Demo, which: str) -> None:
    plans: Plans = getattr(demo, which)
    catalogue = Catalogue.of(demo.recipes)
    index = ConstraintIndex(catalogue)  # the decoder's rules, written apart from the demo's
    costs = [cents(recipe.cost_per_serving) or 0 for recipe in catalogue.recipes]
    assert [recipe.id for recipe in catalogue.recipes] == [dish.id for dish in demo.catalogue.dishes]
    limited = 0
    for row in range(len(plans)):
        request = request_of(demo, int(plans.household[row]), int(plans.week[row]))
        allowed = index.allowed(request)
        used = [(int(d), int(s)) for d, s in zip(plans.dish[row], plans.servings[row], strict=True) if d >= 0]
        assert all(allowed.mask[dish] for dish, _ in used)
        assert allowed.budget is not None and sum(costs[dish] * servings for dish, servings in used) <= allowed.budget
        limited += bool(request.household.restrictions or request.constraints.excluded_ingredients)
    assert len(plans) > 1000 and limited > 20


def test_accepted_plans_hold_three_to_seven_dishes_that_the_weeks_kitchen_supports(demo: Demo) -> None:
    rows = {(int(h), int(w)): i for i, (h, w) in enumerate(zip(demo.support.household, demo.support.week, strict=True))}
    for h, week, dishes in zip(demo.accepted.household, demo.accepted.week, demo.accepted.dish, strict=True):
        row, used = rows[int(h), int(week)], dishes[dishes >= 0]
        assert 3 <= len(used) == len(set(used.tolist())) <= 7
        assert (demo.support.share[row, used] >= MIN_SHARE).all()


def test_a_piece_of_a_main_ingredient_serves_one_dish_and_is_gone_from_the_pantry_then(demo: Demo) -> None:
    support, accepted = demo.support, demo.accepted
    plan_of = {(int(h), int(w)): i for i, (h, w) in enumerate(zip(accepted.household, accepted.week, strict=True))}
    num_used_up = 0
    for home in range(40):
        left: Counter[int] = Counter()
        for week in range(support.pieces.shape[1]):
            for stock in [s for s in left if not support.keeping[home, week, s]]:
                del left[stock]
            kept = np.flatnonzero(support.keeping[home, week])
            assert [left[s] == 0 for s in kept.tolist()] == demo.used_up[home, week, kept].tolist()
            num_used_up += int(demo.used_up[home, week].sum())
            left.update({s: int(support.pieces[home, week, s]) for s in np.flatnonzero(support.pieces[home, week])})
            dishes = accepted.dish[plan_of[home, week]] if (home, week) in plan_of else np.array([-1])
            left.subtract(support.main[dishes[dishes >= 0]].tolist())
            assert min(left.values(), default=0) >= 0
    assert num_used_up > 100


def test_edits_turn_the_generated_plan_into_the_accepted_one_exactly(log: dict[str, list[dict[str, Any]]]) -> None:
    accepted = 0
    for events in log.values():
        assert events[0]["type"] == "plan_generated"
        meals = {m["day"]: (m["recipe_id"], m["servings"]) for m in events[0]["payload"]["plan"]["meals"]}
        for event in events[1:-1]:
            payload = event["payload"]
            assert set(payload) == EDITS[event["type"]]
            day = payload["day"]
            if event["type"] == "meal_swapped":
                assert meals[day][0] == payload["from"] != payload["to"]
                meals[day] = (payload["to"], meals[day][1])
            elif event["type"] == "servings_adjusted":
                assert meals[day][1] != payload["servings"]
                meals[day] = (meals[day][0], payload["servings"])
            elif event["type"] == "meal_added":
                assert day not in meals
                meals[day] = (payload["recipe_id"], payload["servings"])
            else:
                del meals[day]
        if len(events) > 1:
            assert events[-1]["type"] == "plan_accepted"
            final = {m["day"]: (m["recipe_id"], m["servings"]) for m in events[-1]["payload"]["plan"]["meals"]}
            assert meals == final
            accepted += 1
    assert accepted > 1000 and accepted < len(log)  # some plans are never accepted


def test_events_have_the_contracts_form_and_order(demo: Demo, log: dict[str, list[dict[str, Any]]]) -> None:
    known = {dish.id for dish in demo.catalogue.dishes}
    ids = [event["id"] for events in log.values() for event in events]
    assert len(ids) == len(set(ids))
    for events in log.values():
        times = [event["time"] for event in events]
        assert times == sorted(times) and len(set(times)) == len(times)
        assert all(datetime(2017, 1, 1, tzinfo=UTC) <= t < datetime(2018, 1, 1, tzinfo=UTC) for t in times)
        assert (times[-1] - times[0]).total_seconds() < 86_400
        for event in events:
            assert set(event["context"]) == {"policy_version_id", "workflow_type", "mode", "app_version"}
            if event["type"] in ("plan_generated", "plan_accepted"):
                plan = event["payload"]["plan"]
                if event["type"] == "plan_accepted" or plan["meals"]:
                    assert plan_problem(plan, known) is None
                days = [DAY_INDEX[meal["day"]] for meal in plan["meals"]]
                assert days == sorted(days)


def test_edit_rows_of_each_kind() -> None:
    none = (-1, 0)
    before = [(0, 2), (1, 2), (2, 2), none, (1, 2), none, none]
    after = [(0, 2), (2, 2), none, (0, 4), (1, 4), none, none]
    assert edit_rows(before, after, ["a", "b", "c"]) == [
        ("meal_swapped", '"day": "tuesday", "from": "b", "to": "c"'),
        ("meal_removed", '"day": "wednesday"'),
        ("meal_added", '"day": "thursday", "recipe_id": "a", "servings": 4'),
        ("servings_adjusted", '"day": "friday", "servings": 4'),
    ]
    assert edit_rows(after, after, ["a", "b", "c"]) == [] and len(WEEKDAYS) == 7


def test_the_logged_policy_knows_only_the_weeks_before(demo: Demo) -> None:
    """Taking away every acceptance from week 30 on leaves the proposals up to week 30 as they were."""
    keep = demo.accepted.week < 30
    past = Plans(*(getattr(demo.accepted, field.name)[keep] for field in dataclasses.fields(Plans)))
    costs = np.array([round(cost_per_serving(d, demo.purchases.prices) * 100) for d in demo.catalogue.dishes], float)
    rows = (demo.proposed.household, demo.proposed.week)
    again = propose(demo.catalogue, demo.households, past, rows, costs)
    early = demo.proposed.week <= 30
    assert (again.dish[early] == demo.proposed.dish[early]).all()
    assert (again.dish[~early] != demo.proposed.dish[~early]).any()


def test_pantries_hold_only_what_was_bought_before_and_is_still_good(demo: Demo) -> None:
    rows = (demo.proposed.household[:400], demo.proposed.week[:400])
    lines = list(pantry_lines(demo.catalogue, demo.purchases, demo.households.ids[:300], rows, demo.used_up))
    assert len(lines) == 400
    stocks = {food.name: (index, food.shelf_days) for index, food in enumerate(demo.catalogue.stocks)}
    bought = demo.purchases
    for line, h, week in zip(lines, *(part.tolist() for part in rows), strict=True):
        _, household, time, items = line.rstrip("\n").split("\t")
        assert household == demo.households.ids[h] and datetime.fromisoformat(time) == week_start(week)
        names = [item["name"] for item in json.loads(items)]
        assert len(names) == len(set(names)) <= MAX_ITEMS
        last_days = []
        for name in names:
            stock, shelf = stocks[name]
            days = bought.day[(bought.household == h) & (bought.stock == stock) & (bought.day < 7 * week)]
            assert 7 * week - days.max() <= shelf
            last_days.append(int(days.max()))
        assert last_days == sorted(last_days, reverse=True)


def test_deriving_twice_gives_the_same_rows(demo: Demo, log: dict[str, list[dict[str, Any]]]) -> None:
    again = derive_demo(households=300)
    first = event_lines(demo.catalogue, demo.households, demo.proposed, demo.accepted)
    second = event_lines(again.catalogue, again.households, again.proposed, again.accepted)
    assert "".join(first) == "".join(second)
    assert again.households.preferences == demo.households.preferences and again.recipes == demo.recipes


def test_exclusions_and_restrictions_are_given_only_where_nothing_of_the_kind_was_bought(demo: Demo) -> None:
    foods = demo.catalogue.stocks
    seen = 0
    for h, terms in enumerate(demo.households.excluded):
        own = {foods[s] for s in demo.purchases.stock[demo.purchases.household == h].tolist()}
        for term in terms:
            assert not [food.name for food in own if matches(term, food.name) or food.kind == term]
            assert not demo.households.allowed[h][[forbids(term, dish) for dish in demo.catalogue.dishes]].any()
            seen += 1
        if "nut-allergy" in demo.households.restrictions[h]:
            assert not [food.name for food in own if food.allergens & {"nuts", "peanuts"}]
    assert seen > 5
