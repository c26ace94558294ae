"""Databases on the session's server: their URLs, and statements outside a transaction."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg2


def of_database(url: str, database: str) -> str:
    return url.replace("/planner?", f"/{database}?")


def run_statement(url: str, statement: str) -> None:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def value_of(url: str, query: str) -> Any:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        (value,) = cursor.fetchone() or (None,)
        return value
