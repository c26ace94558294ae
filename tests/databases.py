"""Databases on the session's server: their URLs, and statements outside a transaction."""

from __future__ import annotations

import contextlib

import psycopg2


def of_database(url: str, database: str) -> str:
    return url.replace("/planner?", f"/{database}?")


def run_statement(url: str, statement: str) -> None:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
