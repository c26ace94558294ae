"""Databases filled with a part of the demo, and sandboxes that hold a checkout and a tiny base model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planner.dataset.database import connect, create_schema
from planner.dataset.demo import load_demo
from tests.databases import of_database, run_statement
from tests.recipe.project import Sandbox, new_sandbox
from tests.tiny import tiny_base_folder

HOUSEHOLDS = 150
# One accepted plan of the window that no build can make a row of, so that there is something to be left out.
LOSE_A_GENERATION = """
DELETE FROM exp.events WHERE event_type = 'plan_generated' AND payload ->> 'plan_id' = (
    SELECT payload ->> 'plan_id' FROM exp.events WHERE event_type = 'plan_accepted' AND "timestamp" >= '2017-10-01'
    ORDER BY "timestamp", id LIMIT 1
)
"""
_DEMO = "planner_demo_template"
_names = itertools.count(1)


@pytest.fixture(scope="session")
def new_database(postgres_url: str) -> Callable[[], str]:
    """Makes databases that hold the demo of the first households; they go with the server of this session."""
    run_statement(postgres_url, f"CREATE DATABASE {_DEMO}")
    with contextlib.closing(connect(of_database(postgres_url, _DEMO))) as connection:
        create_schema(connection)
        load_demo(connection, households=HOUSEHOLDS)
        with connection, connection.cursor() as cursor:
            cursor.execute(LOSE_A_GENERATION)

    def create() -> str:
        name = f"planner_recipe_{next(_names)}"
        run_statement(postgres_url, f"CREATE DATABASE {name} TEMPLATE {_DEMO}")
        return of_database(postgres_url, name)

    return create


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model with random weights."""
    return tiny_base_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def sandbox(new_database: Callable[[], str], tiny_base: Path) -> Iterator[Sandbox]:
    """A checkout with a database, a store and a base model of its own."""
    with new_sandbox(new_database()) as made:
        (made.root / "base").symlink_to(tiny_base)
        yield made
