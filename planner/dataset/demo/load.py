"""Derive the demo and load it into an empty database, in one transaction.

In: a psycopg2 connection to a database in which `planner/dataset/schema.sql` has been run. Out: the rows of the demo
in all tables that a dataset build reads, and a `DemoReport`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection

from planner.contracts.catalogue import Recipe
from planner.contracts.errors import DatabaseError
from planner.dataset.database import query_error
from planner.dataset.demo.catalogue import DemoCatalogue, cost_per_serving, load_catalogue
from planner.dataset.demo.events import EVENT_COLUMNS, POLICY_NAME, event_lines, policy_ids
from planner.dataset.demo.households import LIMITS_FROM_WEEKS, Households, derive_households
from planner.dataset.demo.pantry import PANTRY_COLUMNS, pantry_lines
from planner.dataset.demo.plans import Plans, choose_accepted
from planner.dataset.demo.policy import propose
from planner.dataset.demo.purchases import Bools, Floats, Ints, Purchases, read_purchases, week_start
from planner.dataset.demo.support import Support, compute_support, unit_hash

Progress = Callable[[int, int | None, str], None]

UNUSED_SHARE = 0.2  # of the shopping weeks that support no plan, those for which one was proposed all the same
CREATED_AT = datetime(2017, 1, 1, tzinfo=UTC)
CHUNK = 20_000  # rows of one COPY
_TABLES = (
    "exp.events",
    "public.households",
    "public.pantry_snapshots",
    "public.household_constraints",
    "public.recipes",
)


@dataclass(frozen=True)
class Demo:
    """Everything that is derived, before it becomes rows.

    `cost_D` is the cost of a serving of each dish in cents; `used_up` as `choose_accepted` returns it.
    """

    catalogue: DemoCatalogue
    purchases: Purchases
    recipes: tuple[Recipe, ...]
    support: Support
    households: Households
    cost_D: Floats
    accepted: Plans
    proposed: Plans
    used_up: Bools


@dataclass(frozen=True)
class DemoReport:
    """Rows loaded by kind; `plans` counts the accepted plans, `proposals` the generated ones."""

    households: int
    recipes: int
    plans: int
    proposals: int
    events: int
    snapshots: int
    constraints: int


def is_empty(connection: Connection) -> bool:
    """Whether none of the tables that the demo fills has a row; leaves an open transaction of the caller alone.

    Raises:
        DatabaseError: a table is missing, or may not be read.
    """
    idle = connection.info.transaction_status == TRANSACTION_STATUS_IDLE
    try:
        with connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(f"(SELECT 1 FROM {table} LIMIT 1)" for table in _TABLES))
            return cursor.fetchone() is None
    except psycopg2.Error as error:
        raise query_error(error, "looking whether the demo is loaded") from None
    finally:
        if idle:
            connection.rollback()


def load_demo(connection: Connection, *, progress: Progress | None = None, households: int | None = None) -> DemoReport:
    """Derive the demo and load it; all or nothing.

    Args:
        connection: to a database with the project's tables, all of them empty.
        progress: told what is being done.
        households: only the first so many, for tests.

    Raises:
        DatabaseError: the tables hold rows already, or the database refused the rows.
    """
    tell = progress or (lambda done, total, what: None)
    if not is_empty(connection):
        raise DatabaseError("The demo is loaded into an empty database only, and this one holds rows. Use another one.")
    demo = derive_demo(progress=tell, households=households)
    try:
        with connection, connection.cursor() as cursor:
            # The demo can be derived again at any time, so it need not wait for the disk.
            cursor.execute("SET LOCAL synchronous_commit = off")
            report = _load(cursor, demo, tell)
    except psycopg2.Error as error:
        raise query_error(error, "loading the demo") from None
    tell(6, 6, "demo loaded")
    return report


def derive_demo(*, progress: Progress | None = None, households: int | None = None) -> Demo:
    """Derive households, accepted plans and proposals from the purchases; the same on every run."""
    tell = progress or (lambda done, total, what: None)
    tell(0, 6, "reading a year of purchases")
    catalogue = load_catalogue()
    purchases = read_purchases(catalogue, households=households)
    tell(1, 6, "deriving households and plans")
    support = compute_support(catalogue, purchases)
    homes = derive_households(catalogue, purchases, support)
    cost_D = np.array(
        [round(cost_per_serving(dish, purchases.prices) * 100) for dish in catalogue.dishes], dtype=np.float64
    )
    accepted, used_up = choose_accepted(catalogue, support, homes, cost_D)
    rows = _proposal_rows(support, homes, accepted)
    proposed = propose(catalogue, homes, accepted, rows, cost_D)
    return Demo(
        catalogue, purchases, catalogue.recipes(purchases.prices), support, homes, cost_D, accepted, proposed, used_up
    )


def _proposal_rows(support: Support, households: Households, accepted: Plans) -> tuple[Ints, Ints]:
    key = support.household * 64 + support.week
    used = np.isin(key, accepted.household * 64 + accepted.week)
    extra = [
        unit_hash("unused", households.ids[h], w) < UNUSED_SHARE
        for h, w in zip(support.household.tolist(), support.week.tolist(), strict=True)
    ]
    keep = used | np.array(extra, dtype=bool)
    return support.household[keep], support.week[keep]


def _load(cursor: psycopg2.extensions.cursor, demo: Demo, tell: Progress) -> DemoReport:
    tell(2, 6, "loading households and recipes")
    _load_policy(cursor)
    num_recipes = _copy(cursor, "public.recipes", _RECIPE_COLUMNS, _recipe_lines(demo.recipes))
    num_households = _copy(cursor, "public.households", _HOUSEHOLD_COLUMNS, _household_lines(demo.households))
    num_constraints = _copy(cursor, "public.household_constraints", _LIMIT_COLUMNS, _limit_lines(demo.households))
    tell(3, 6, "loading pantry snapshots")
    rows = (demo.proposed.household, demo.proposed.week)
    snapshots = pantry_lines(demo.catalogue, demo.purchases, demo.households.ids, rows, demo.used_up)
    num_snapshots = _copy(cursor, "public.pantry_snapshots", PANTRY_COLUMNS, snapshots)
    cursor.execute(
        "SELECT setval(pg_get_serial_sequence('public.pantry_snapshots', 'id'), %s)", (max(1, num_snapshots),)
    )
    tell(4, 6, "loading events")
    lines = event_lines(demo.catalogue, demo.households, demo.proposed, demo.accepted)
    num_events = _copy(cursor, "exp.events", EVENT_COLUMNS, lines)
    tell(5, 6, "committing")
    return DemoReport(
        households=num_households,
        recipes=num_recipes,
        plans=len(demo.accepted),
        proposals=len(demo.proposed),
        events=num_events,
        snapshots=num_snapshots,
        constraints=num_constraints,
    )


def _load_policy(cursor: psycopg2.extensions.cursor) -> None:
    policy, version = policy_ids()
    about = "The demo's simple logged policy: dishes that the household and everybody accepted before"
    cursor.execute(
        "INSERT INTO exp.policies (id, name, description, created_at) VALUES (%s, %s, %s, %s)",
        (policy, POLICY_NAME, about, CREATED_AT),
    )
    cursor.execute(
        "INSERT INTO exp.policy_versions (id, policy_id, version, config_defaults, status, created_at) "
        "VALUES (%s, %s, 1, '{}', 'active', %s)",
        (version, policy, CREATED_AT),
    )


def _copy(cursor: psycopg2.extensions.cursor, table: str, columns: str, lines: Iterable[str]) -> int:
    lines, count = iter(lines), 0
    while chunk := list(islice(lines, CHUNK)):
        cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN", io.StringIO("".join(chunk)))
        count += len(chunk)
    return count


_RECIPE_COLUMNS = "id, title, ingredients, prep_time, cost_per_serving, tags, allergens"
_HOUSEHOLD_COLUMNS = "id, size, preferences, dietary_restrictions, region"
_LIMIT_COLUMNS = "household_id, valid_from, budget, max_prep_time, excluded_ingredients"


def _recipe_lines(recipes: Iterable[Recipe]) -> Iterator[str]:
    for recipe in recipes:
        row = recipe.to_dict()
        ingredients = json.dumps(row["ingredients"])
        yield (
            f"{recipe.id}\t{recipe.title}\t{ingredients}\t{recipe.prep_time}\t{recipe.cost_per_serving:.2f}\t"
            f"{_array(recipe.tags)}\t{_array(recipe.allergens)}\n"
        )


def _household_lines(homes: Households) -> Iterator[str]:
    for h, name in enumerate(homes.ids):
        needs = _array(homes.restrictions[h])
        yield f"{name}\t{homes.size[h]}\t{_array(homes.preferences[h])}\t{needs}\t{homes.region[h]}\n"


def _limit_lines(homes: Households) -> Iterator[str]:
    """A row for each version that differs from the one before; the first holds from before the first plan."""
    for h, name in enumerate(homes.ids):
        before = None
        for version, week in enumerate(LIMITS_FROM_WEEKS):
            limits = (int(homes.budget[h, version]), int(homes.max_prep[h, version]) or "\\N")
            if limits != before:
                yield f"{name}\t{week_start(week).isoformat()}\t{limits[0]}\t{limits[1]}\t{_array(homes.excluded[h])}\n"
            before = limits


def _array(texts: Iterable[str]) -> str:
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"
