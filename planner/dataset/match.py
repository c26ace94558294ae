"""Which rows belong together, as of plan time: numbers only, whatever the tables they stand for.

In: numpy columns of one part of the households. Out: positions in them. Equal times are settled by the order (time, id)
everywhere: "latest" takes the highest, "earliest" the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.dataset.queries import ACCEPTED, EDIT, GENERATED

_Numbers = np.ndarray


@dataclass(frozen=True)
class Events:
    """Events in the order (time, id): household and plan by their numbers in the part, `us` since 1970.

    A plan belongs to one household: the same plan id of two households is two plans.
    """

    home: _Numbers
    plan: _Numbers
    us: _Numbers
    kind: _Numbers


@dataclass(frozen=True)
class Plans:
    """Accepted plans of the window, by number of the plan: positions of their events, -1 for none.

    `accepted` is the latest acceptance at or after `generated`, the earliest generation.
    """

    plan: _Numbers
    home: _Numbers
    generated: _Numbers
    accepted: _Numbers


def order_by_time(us: _Numbers, high: _Numbers, low: _Numbers) -> _Numbers:
    """The order (time, id), ids as two halves of 64 bits without sign."""
    order = np.argsort(us, kind="stable")
    ends = np.diff(us[order]) != 0
    if not ends.all():
        tied = np.append(~ends, False) | np.insert(~ends, 0, False)
        run = np.insert(np.cumsum(ends), 0, 0)[tied]
        places = order[tied]
        order[tied] = places[np.lexsort((low[places], high[places], run))]
    return order


def accepted_plans(events: Events, start_us: int) -> Plans:
    """The plans that were accepted in the window, whether or not they become rows; no event is behind its end."""
    num_plans = int(events.plan.max(initial=-1)) + 1
    generated, accepted = (np.full(num_plans, -1) for _ in range(2))
    # The last one that is written stays.
    backwards = np.flatnonzero(events.kind == GENERATED)[::-1]
    generated[events.plan[backwards]] = backwards
    forwards = np.flatnonzero(events.kind == ACCEPTED)
    accepted[events.plan[forwards]] = forwards
    plan = np.flatnonzero(accepted >= 0)
    plan = plan[events.us[accepted[plan]] >= start_us]
    first, last = generated[plan], accepted[plan]
    home = events.home[last]
    # The latest acceptance of all is the latest at or after the generation, or there is none.
    last = np.where((first >= 0) & (events.us[last] >= events.us[first]), last, -1)
    return Plans(plan, home, first, last)


def latest_as_of(home: _Numbers, us: _Numbers, at_home: _Numbers, at_us: _Numbers) -> _Numbers:
    """The last entry of the same household that is not newer: its position per asked time, -1 where there is none.

    Args:
        home: of the entries, which come in the order (household, time) with the one to prefer last.
        us: their times.
        at_home: of the asked times.
        at_us: the asked times; an entry of this very time is not newer.
    """
    begins = np.searchsorted(home, np.arange(at_home.max(initial=-1) + 2))
    low, high = begins[at_home], begins[at_home + 1]
    begin = low
    while len(home):
        open_ = low < high
        if not open_.any():
            break
        middle = np.where(open_, (low + high) // 2, 0)
        older = open_ & (us[middle] <= at_us)
        low, high = np.where(older, middle + 1, low), np.where(open_ & ~older, middle, high)
    return np.where(low > begin, low - 1, -1)


def previous_acceptances(events: Events, plans: Plans, valid: _Numbers) -> _Numbers:
    """The latest acceptance of the household strictly before plan time, of another plan, that is valid; -1 for none.

    Args:
        events: all of the part.
        plans: with a generation each.
        valid: per event whether it is an acceptance whose plan meets the contract.
    """
    chosen = np.flatnonzero(valid)
    chosen = chosen[np.argsort(events.home[chosen], kind="stable")]
    home, plan = events.home[chosen], events.plan[chosen]
    at = latest_as_of(home, events.us[chosen], plans.home, events.us[plans.generated] - 1)
    while True:
        own = np.flatnonzero((at >= 0) & (plan[at] == plans.plan)) if len(chosen) else at[:0]
        if not len(own):
            break
        back = at[own] - 1
        at[own] = np.where((back >= 0) & (home[back] == plans.home[own]), back, -1)
    return np.where(at >= 0, chosen[at], -1) if len(chosen) else at


def edits_between(events: Events, plans: Plans) -> tuple[_Numbers, _Numbers]:
    """Edits of each plan from its generation to its acceptance, ends included.

    Returns:
        The positions of all, plan by plan and in the order (time, id), and how many each of `plans` has.
    """
    num_plans = int(events.plan.max(initial=-1)) + 1
    row_of = np.full(num_plans, -1)
    row_of[plans.plan] = np.arange(len(plans.plan))
    edits = np.flatnonzero(events.kind >= EDIT)
    rows = row_of[events.plan[edits]]
    edits, rows = edits[rows >= 0], rows[rows >= 0]
    us = events.us[edits]
    within = (us >= events.us[plans.generated[rows]]) & (us <= events.us[plans.accepted[rows]])
    edits, rows = edits[within], rows[within]
    return edits[np.argsort(rows, kind="stable")], np.bincount(rows, minlength=len(plans.plan))
