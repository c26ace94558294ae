"""Hypothesis strategies of jsonb texts as PostgreSQL prints them: plans, pantries, edits, contexts, good and bad."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from planner.contracts.plan import WEEKDAYS

KNOWN = ["r1", "r2", "é🍅", 'quo"te', ""]
NUMBERS = st.sampled_from(
    ["0", "1", "-1", "2", "2.0", "2.50", "0.1", "-0.0", "12345678901234567890", "9007199254740993", "2147483647",
     "2147483648", "999999999", "123456789012345.123456789012345", "0.333333333333333333", "1" + "0" * 400, "1e2"]
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([*KNOWN, "r9", "null", "}, {", '"}]', "back\\slash", "\\N", "line\nbreak", "]", "x" * 300]),
    st.text(max_size=8).filter(lambda text: "\x00" not in text),
)
SCALARS = st.one_of(NUMBERS, TEXTS.map(lambda t: json.dumps(t, ensure_ascii=False)), st.sampled_from(["null", "true"]))
# Members that the contract does not know: as long as those that it knows, before and behind them, flat and deep.
MORE = ("id", "tag", "note", "more", "day2", "shelf", "category", "allergens", "expires_at")
DEEP = st.sampled_from(["[]", '["x", "}, {", 1]', '[["x"]]', "{}", '{"name": "y"}', '[{"day": "monday"}]'])


def members(usual: dict[str, Any]) -> st.SearchStrategy[str]:
    """An object as jsonb prints it, mostly of the usual members."""
    some = st.fixed_dictionaries({}, optional={**usual, "more": SCALARS, "day2": SCALARS})
    others = st.dictionaries(st.sampled_from(MORE), st.one_of(SCALARS, SCALARS, DEEP), min_size=1, max_size=2)
    with_more = st.tuples(st.fixed_dictionaries(usual), others).map(lambda both: {**both[1], **both[0]})
    drawn = st.one_of(st.fixed_dictionaries(usual), st.fixed_dictionaries(usual), some, with_more)
    order = lambda member: (len(member[0]), member[0])  # noqa: E731
    return drawn.map(lambda d: "{" + ", ".join(f'"{k}": {v}' for k, v in sorted(d.items(), key=order)) + "}")


def listed(element: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(element, max_size=4).map(lambda entries: "[" + ", ".join(entries) + "]")


QUOTED = TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False))
ITEM = members({"name": QUOTED, "unit": st.one_of(QUOTED, SCALARS), "quantity": st.one_of(NUMBERS, SCALARS)})
GOOD_ITEM = members({"name": QUOTED, "quantity": st.sampled_from(["1", "2.5"])})
# Usual but for a value at a time: what the pattern alone must tell apart.
NEAR_ITEM = st.tuples(st.sampled_from(["rice", "é"]), st.sampled_from(["null", '"kg"']), NUMBERS).map(
    lambda item: f'{{"name": "{item[0]}", "unit": {item[1]}, "quantity": {item[2]}}}'
)
NEAR_MEAL = st.tuples(
    st.sampled_from(WEEKDAYS[:3]),
    st.sampled_from(["1", "2", "2", "0", "2147483648"]),
    st.sampled_from(["r1", "r1", "r9"]),
).map(lambda meal: f'{{"day": "{meal[0]}", "servings": {meal[1]}, "recipe_id": "{meal[2]}"}}')
PANTRY = st.one_of(
    st.none(), SCALARS, listed(ITEM), listed(NEAR_ITEM), listed(GOOD_ITEM), listed(st.one_of(ITEM, SCALARS))
)
DAY = st.one_of(st.sampled_from(WEEKDAYS).map(json.dumps), st.sampled_from(WEEKDAYS).map(json.dumps), SCALARS)
ID = st.one_of(st.sampled_from(KNOWN).map(lambda text: json.dumps(text, ensure_ascii=False)), SCALARS)
MEAL = members({"day": DAY, "servings": st.one_of(st.sampled_from("1234"), SCALARS), "recipe_id": ID})
GOOD_MEAL = members({"day": st.sampled_from(WEEKDAYS).map(json.dumps), "servings": st.just("2"), "recipe_id": QUOTED})
MEALS = st.one_of(st.none(), SCALARS, *map(listed, (MEAL, GOOD_MEAL, NEAR_MEAL, NEAR_MEAL)))
PLAN = st.one_of(
    st.none(),
    SCALARS,
    MEALS.filter(bool),
    MEALS.filter(bool).map(lambda text: f'{{"meals": {text}}}'),
    MEALS.filter(bool).map(lambda text: f'{{"id": 7, "meals": {text}, "notes": ["x"]}}'),
)
EDIT = members({"day": DAY, "from": ID, "to": ID, "servings": SCALARS, "recipe_id": ID})
CONTEXT = st.one_of(
    st.none(), SCALARS, members({"mode": ID, "workflow_type": ID, "policy_version_id": SCALARS}), st.just("[]")
)
