"""Connections: what is said when the database is not there, not ours, or not what the contract wants."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from pydantic import ValidationError

from planner.contracts.errors import CatalogueError, DatabaseError
from planner.dataset import collect, parts
from planner.dataset.build import build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.database import TABLES, connect, create_schema, masked, require_tables, unindexed_tables
from planner.dataset.fingerprint import database_fingerprint
from tests.databases import run_statement
from tests.dataset import small

SECRET = "s3cret/word"


def error_of(url: str) -> str:
    with pytest.raises(DatabaseError) as caught:
        connect(url)
    message = str(caught.value)
    assert "\n" not in message and "s3cret" not in message
    return message


def test_session_is_utc_and_read_only_refuses_writes(database_url: str) -> None:
    with contextlib.closing(connect(database_url, read_only=True)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TimeZone")
        assert cursor.fetchone() == ("UTC",)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("INSERT INTO households (id) VALUES ('h')")


def test_keyword_form_is_taken_too(database_url: str) -> None:
    parts = urlsplit(database_url)
    host = parts.query.removeprefix("host=")
    with contextlib.closing(connect(f"host={host} user=planner dbname={parts.path[1:]}")) as connection:
        assert connection.info.dbname == parts.path[1:]


def test_no_server_wrong_database_wrong_user(postgres_url: str) -> None:
    message = error_of(f"postgresql://me:{SECRET.replace('/', '%2F')}@127.0.0.1:1/db")
    assert "No connection to the database postgresql://me@127.0.0.1:1/db" in message
    assert "PLANNER_DATABASE_URL" in message
    assert "There is no database 'absent'" in error_of(postgres_url.replace("/planner?", "/absent?"))
    assert "No connection" in error_of(postgres_url.replace("planner@", "stranger@"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "No database URL"),
        ("mysql://u:s3cret@h/db", "starts with postgresql://"),
        ("postgresql+psycopg2://u:s3cret@h/db", "starts with postgresql://"),
        ("postgresql://u:s3cret/x@h:80/db", "cannot be read"),
        ("postgresql://u:x@s3cret@h/db", "cannot be read"),
        ("nonsense s3cret", "cannot be read"),
    ],
)
def test_url_that_is_none(url: str, told: str) -> None:
    assert told in error_of(url)


def test_masked_shows_no_password() -> None:
    assert masked("postgresql://me:s3cret@db.example:5433/meals") == "postgresql://me@db.example:5433/meals"
    assert masked("host=db password=s3cret user=me dbname=x") == "postgresql://me@db/x"
    assert "s3cret" not in masked("postgresql://me:s3cret/x@h/db")


def test_wrong_password_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**parts: str) -> None:
        raise psycopg2.OperationalError(f'FATAL:  password authentication failed for user "me" {parts["password"]}\n')

    monkeypatch.setattr(psycopg2, "connect", refuse)
    assert "refused the user or password" in error_of("postgresql://me:s3cret@h/db")


@pytest.mark.parametrize("table", list(TABLES))
def test_missing_table_and_column_are_named_with_the_view_to_write(database_url: str, table: str) -> None:
    with contextlib.closing(connect(database_url)) as connection, connection.cursor() as cursor:
        create_schema(connection)
        require_tables(connection)
        column = list(TABLES[table])[-1]
        cursor.execute(f'ALTER TABLE {table} RENAME COLUMN "{column}" TO other')
        with pytest.raises(DatabaseError, match=f'{table} has no column "{column}".*CREATE VIEW {table}'):
            require_tables(connection)
        cursor.execute(f'ALTER TABLE {table} RENAME COLUMN other TO "{column}"')
        cursor.execute(f"ALTER TABLE {table} RENAME TO other_table")
        with pytest.raises(DatabaseError, match=f"has no table {table}.*CREATE VIEW {table} AS SELECT"):
            require_tables(connection)


def test_column_of_another_type_and_without_permission(database_url: str) -> None:
    with contextlib.closing(connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE pantry_snapshots ALTER COLUMN items TYPE json")
        with pytest.raises(DatabaseError, match='pantry_snapshots."items" is json, not jsonb'):
            require_tables(connection)
        connection.rollback()
        cursor.execute("CREATE ROLE reader; SET ROLE reader")
        with pytest.raises(DatabaseError, match="No permission to read exp.events.*GRANT SELECT ON exp.events"):
            require_tables(connection)
        connection.rollback()


def test_a_sites_views_give_the_same_rows(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    digest = build_dataset(database_url, small.config(tmp_path / "tables")).version.digest
    before = database_fingerprint(database_url, small.config(tmp_path))
    small.run(database_url, "ALTER TABLE households RENAME TO site; CREATE VIEW households AS SELECT * FROM site")
    assert build_dataset(database_url, small.config(tmp_path / "views")).version.digest == digest
    viewed = database_fingerprint(database_url, small.config(tmp_path))
    assert viewed != before
    small.run(database_url, "UPDATE site SET size = 3 WHERE id = 'home-1'")
    assert database_fingerprint(database_url, small.config(tmp_path)) != viewed


def test_duplicate_titles_are_refused(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    small.run(database_url, "INSERT INTO recipes (id, title) VALUES ('x', 'SOUP'), ('y', ' soup ')")
    with pytest.raises(CatalogueError, match="share the title"):
        build_dataset(database_url, small.config(tmp_path))
    assert list((tmp_path / "planner").glob("[!.]*")) == []


@pytest.mark.parametrize(("nameless", "told"), [("'x', NULL", "'x' has no title"), ("NULL, 'Soup'", "has no id")])
def test_recipe_of_a_view_without_id_or_title_is_named(
    database_url: str, tmp_path: Path, nameless: str, told: str
) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "ALTER TABLE recipes RENAME TO site; CREATE VIEW recipes AS SELECT * FROM site UNION ALL "
        f"SELECT {nameless}, NULL, NULL, NULL, NULL, NULL, true",
    )
    with pytest.raises(CatalogueError, match=told):
        build_dataset(database_url, small.config(tmp_path))


def test_schema_is_created_around_a_sites_views(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    digest = build_dataset(database_url, small.config(tmp_path / "tables")).version.digest
    small.run(
        database_url,
        "ALTER TABLE exp.events RENAME TO log; CREATE VIEW exp.events AS SELECT * FROM exp.log; ALTER TABLE "
        "pantry_snapshots RENAME TO snaps; CREATE VIEW pantry_snapshots AS SELECT * FROM snaps",
    )
    with contextlib.closing(connect(database_url)) as connection:
        create_schema(connection)
    assert build_dataset(database_url, small.config(tmp_path / "views")).version.digest == digest


def test_payloads_of_ten_megabytes_change_no_byte(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    digest = build_dataset(database_url, small.config(tmp_path / "a")).version.digest
    many = "jsonb_build_object('log', repeat('x', 10000000), 'deep', jsonb_build_array(jsonb_build_object('a', 1)))"
    small.run(
        database_url,
        f"UPDATE exp.events SET payload = payload || {many}, context = context || {many} WHERE unit_id = 'home-3'",
    )
    assert build_dataset(database_url, small.config(tmp_path / "b")).version.digest == digest


def test_connection_that_is_cut_among_its_queries_publishes_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.fill(database_url)
    items = "jsonb_build_array(jsonb_build_object('name', repeat('x', 1000000)))"
    small.run(
        database_url,
        f"INSERT INTO pantry_snapshots SELECT n, 'home-' || n % 12, '2025-01-04'::timestamptz + n * interval '1 hour', "
        f"{items} FROM generate_series(1, 80) n",
    )
    cut: list[str] = []

    def progress(_: int, __: int | None, what: str) -> None:
        if what == "join the parts" and not cut:
            cut.append(what)
            run_statement(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
                "pg_backend_pid() AND query LIKE 'COPY%'",
            )

    monkeypatch.setattr(collect, "PART_BYTES", 500)
    monkeypatch.setattr(parts, "PART_EVENTS", 1)
    with pytest.raises(DatabaseError, match="The database went away while reading the pantries"):
        build_dataset(database_url, small.config(tmp_path), progress=progress)
    assert cut and list((tmp_path / "planner").glob("[!.]*")) == []
    assert build_dataset(database_url, small.config(tmp_path)).num_rows == small.ROWS


@pytest.mark.parametrize("table", list(TABLES))
def test_fingerprint_follows_every_table(database_url: str, table: str) -> None:
    small.fill(database_url)
    small.run(database_url, "INSERT INTO pantry_snapshots (household_id, snapshot_time) VALUES ('h', '2025-01-01')")
    small.run(database_url, "INSERT INTO household_constraints (household_id) VALUES ('home-1')")
    config = small.config("anywhere")
    first = database_fingerprint(database_url, config)
    assert database_fingerprint(database_url, config) == first
    column = list(TABLES[table])[-1]
    small.run(database_url, f'UPDATE {table} SET "{column}" = "{column}"')
    second = database_fingerprint(database_url, config)
    small.run(database_url, f"DELETE FROM {table}")
    assert len({first, second, database_fingerprint(database_url, config)}) == 3


def test_fingerprint_leaves_out_what_the_build_cannot_see(database_url: str) -> None:
    small.fill(database_url)
    first = database_fingerprint(database_url, small.config("anywhere"))
    small.run(
        database_url,
        "INSERT INTO exp.events (event_type, unit_type, unit_id, timestamp) "
        "VALUES ('a', 'user', 'b', '2025-01-10 00:00Z')",
    )
    assert database_fingerprint(database_url, small.config("anywhere")) == first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"start_date": "2025-1-3"}, "YYYY-MM-DD"),
        ({"start_date": "2025-02-30"}, "date"),
        ({"start_date": 20250103}, "YYYY-MM-DD"),
        ({"start_date": dt.datetime(2025, 1, 3)}, "YYYY-MM-DD"),
        ({"start_date": "2025-01-10"}, "must be before end_date"),
        ({"start_date": "2025-01-11"}, "must be before end_date"),
        ({"date": "../x"}, "name"),
        ({"date": "a\nb"}, "name"),
        ({"date": "v1\n"}, "name"),
        ({"date": "A"}, "name"),
        ({"date": "x" * 65}, "name"),
        ({"date": "latest"}, "stands for the newest"),
        ({"datasets": ""}, "at least 1"),
        ({"datasets": "s3://"}, "s3://bucket"),
        ({"datasets": "http://x"}, "s3://bucket"),
        ({"min_rows": 0}, "greater"),
        ({"min_rows": "5"}, "integer"),
        ({"max_excluded_share": 1.5}, "less"),
        ({"checks": {"nulls": "warn"}}, "there is no check 'nulls'"),
        ({"checks": {"no_nulls": "off"}}, "'error' or 'warn'"),
        ({"shards": 0}, "greater"),
        ({"processes": 1.5}, "integer"),
        ({"reuse": "../x"}, "name of a version"),
        ({"partitions": 3}, "not permitted"),
    ],
)
def test_config_refuses(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        small.config(**{"datasets": "folder", **changes})


def test_empty_name_means_the_end_date() -> None:
    config = DatasetConfig(start_date="2025-01-01", end_date="2025-01-08", date="", datasets="x")  # type: ignore[arg-type]
    assert config.version == "2025-01-08"


def test_statement_timeout_is_named_and_publishes_nothing(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    small.run(
        database_url,
        "ALTER TABLE households RENAME TO site; "
        "CREATE VIEW households AS SELECT site.* FROM site, (SELECT pg_sleep(20)) AS slow",
    )
    with pytest.raises(DatabaseError, match="statement_timeout ended fingerprinting the tables"):
        database_fingerprint(f"{database_url}&options=-c%20statement_timeout%3D300", small.config(tmp_path))
    with pytest.raises(DatabaseError, match="statement_timeout ended reading the households"):
        build_dataset(f"{database_url}&options=-c%20statement_timeout%3D300", small.config(tmp_path))
    assert list((tmp_path / "planner").glob("[!.]*")) == []


def test_missing_index_on_an_id_is_named_and_none_is_created(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)
    whole = build_dataset(database_url, small.config(tmp_path, date="a"))
    assert whole.warnings == ()
    small.run(database_url, "ALTER TABLE exp.events DROP CONSTRAINT events_pkey CASCADE")
    small.run(database_url, "ALTER TABLE pantry_snapshots DROP CONSTRAINT pantry_snapshots_pkey")
    report = build_dataset(database_url, small.config(tmp_path, date="b", reuse=None))
    assert report.version.digest == whole.version.digest
    (warning,) = report.warnings  # events are never looked up by id
    assert warning.startswith("public.pantry_snapshots has no index")
    assert "CREATE UNIQUE INDEX CONCURRENTLY ON public.pantry_snapshots (id)" in warning
    with contextlib.closing(connect(database_url)) as connection:
        assert unindexed_tables(connection) == ("public.pantry_snapshots",)
