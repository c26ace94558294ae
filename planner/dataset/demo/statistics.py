"""The figures of docs/demo-data.md: how much there is, and how well simple guesses foresee the accepted plans.

In: a derived demo. Out: rows of (what, value) for the command `python -m planner.dataset.demo`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.dataset.demo.events import edit_rows, match_plans
from planner.dataset.demo.households import plan_limits
from planner.dataset.demo.load import Demo
from planner.dataset.demo.plans import Plans, choose_accepted
from planner.dataset.demo.purchases import Bools, Floats, Ints


def demo_statistics(demo: Demo) -> list[tuple[str, str]]:
    """Count and compare; every Jaccard is a mean over accepted plans of sets of dishes."""
    accepted, homes = demo.accepted, demo.households
    sets = dish_sets(accepted, len(demo.catalogue.dishes))
    meals = sets.sum(1)
    per_home = np.bincount(accepted.household, minlength=len(homes.ids))
    before = np.flatnonzero(accepted.household[1:] == accepted.household[:-1]) + 1
    median = int(np.median(meals))
    popular = {k: jaccard(popular_sets(demo, k), sets) for k in (3, median, 7)}
    repeat = jaccard(sets[before - 1], sets[before])
    logged = _logged_sets(demo)
    rows = [
        ("households", f"{len(homes.ids):,}"),
        ("dishes", f"{len(demo.catalogue.dishes):,}"),
        ("shopping weeks", f"{len(demo.support.week):,}"),
        ("generated plans", f"{len(demo.proposed):,}"),
        ("accepted plans", f"{len(accepted):,}"),
        ("households with an accepted plan", f"{int((per_home > 0).sum()):,}"),
        ("accepted plans per such household (mean)", f"{per_home[per_home > 0].mean():.1f}"),
        ("meals per accepted plan (mean)", f"{meals.mean():.2f}"),
        ("dishes ever accepted", f"{int(sets.any(0).sum()):,}"),
        ("edits per accepted plan (mean)", f"{_num_edits(demo) / max(1, len(accepted)):.2f}"),
        ("households with a restriction", f"{sum(map(bool, homes.restrictions)):,}"),
        ("households with an exclusion", f"{sum(map(bool, homes.excluded)):,}"),
        ("Jaccard: previous plan of the household", f"{_mean(repeat):.4f}  (over {len(before):,} plans that have one)"),
    ]
    for k, scores in popular.items():
        same = f"; on plans with a previous one {_mean(scores[before]):.4f}"
        rows.append((f"Jaccard: the {k} most popular allowed dishes", f"{_mean(scores):.4f}{same}"))
    scores = jaccard(logged, sets)
    same = f"; on plans with a previous one {_mean(scores[before]):.4f}"
    rows.append(("Jaccard: what the logged policy proposed", f"{_mean(scores):.4f}{same}"))
    return rows + _without_habit(demo)


def _without_habit(demo: Demo) -> list[tuple[str, str]]:
    """The same two guesses if the week's share of ingredients alone ranked the dishes."""
    other, _ = choose_accepted(demo.catalogue, demo.support, demo.households, demo.cost_D, by_habit=False)
    sets = dish_sets(other, len(demo.catalogue.dishes))
    before = np.flatnonzero(other.household[1:] == other.household[:-1]) + 1
    popular = jaccard(popular_sets(replace(demo, accepted=other), 7), sets)
    return [
        ("without habit: previous plan", f"{_mean(jaccard(sets[before - 1], sets[before])):.4f}"),
        ("without habit: 7 most popular", f"{_mean(popular):.4f}"),
    ]


def dish_sets(plans: Plans, num_dishes: int) -> Bools:
    """Which dishes each plan holds, shape (plan, dish)."""
    sets = np.zeros((len(plans), num_dishes), dtype=bool)
    row, day = np.nonzero(plans.dish >= 0)
    sets[row, plans.dish[row, day]] = True
    return sets


def jaccard(left: Bools, right: Bools) -> Floats:
    """Jaccard of each pair of rows; two empty sets give 0, as in the replay."""
    return np.asarray((left & right).sum(1) / np.maximum(1, (left | right).sum(1)))


def popular_sets(demo: Demo, k: int) -> Bools:
    """For each accepted plan the k dishes most often accepted over all plans that its household's limits allow.

    The ranking has seen the very plans it is scored on, which favours it a little.
    """
    accepted, homes = demo.accepted, demo.households
    counts = dish_sets(accepted, len(demo.catalogue.dishes)).sum(0)
    _, max_prep = plan_limits(homes, accepted.household, accepted.week)
    minutes = np.array([dish.prep_time for dish in demo.catalogue.dishes])
    allowed = homes.allowed[accepted.household] & (minutes[None, :] <= max_prep[:, None])
    order: Ints = np.argsort(np.where(allowed, -counts[None, :], 1), axis=1, kind="stable")[:, :k]
    sets = np.zeros(allowed.shape, dtype=bool)
    sets[np.arange(len(sets))[:, None], order] = True
    return sets & allowed


def _logged_sets(demo: Demo) -> Bools:
    match = match_plans(demo.proposed, demo.accepted)
    at = np.flatnonzero(match >= 0)
    sets = np.zeros((len(demo.accepted), len(demo.catalogue.dishes)), dtype=bool)
    sets[match[at]] = dish_sets(demo.proposed, len(demo.catalogue.dishes))[at]
    return sets


def _num_edits(demo: Demo) -> int:
    match = match_plans(demo.proposed, demo.accepted)
    dish_ids = [dish.id for dish in demo.catalogue.dishes]
    total = 0
    for row in np.flatnonzero(match >= 0).tolist():
        before = list(zip(demo.proposed.dish[row].tolist(), demo.proposed.servings[row].tolist(), strict=True))
        at = int(match[row])
        after = list(zip(demo.accepted.dish[at].tolist(), demo.accepted.servings[at].tolist(), strict=True))
        total += len(edit_rows(before, after, dish_ids))
    return total


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0
