"""Fixtures of every room: one real PostgreSQL for the session, and a fresh database with the tables for each test."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.dataset.database import connect, create_schema
from planner.dataset.embedded import embedded_postgres
from tests.databases import of_database, run_statement

_TEMPLATE = "planner_template"
_names = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server of this session's own; its database `planner` has the tables and stays empty."""
    # Not under tmp_path: pytest makes that private to us, and as root the server runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="planner-tests-"))
    folder.chmod(0o755)
    try:
        with embedded_postgres(folder, fsync=False) as url:
            run_statement(url, f"CREATE DATABASE {_TEMPLATE}")
            with contextlib.closing(connect(of_database(url, _TEMPLATE))) as connection:
                create_schema(connection)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """URL of a fresh database with empty tables, dropped after the test."""
    name = f"planner_test_{next(_names)}"
    run_statement(postgres_url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    yield of_database(postgres_url, name)
    run_statement(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")
