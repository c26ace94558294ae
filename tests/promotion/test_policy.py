from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError, PromotionError
from planner.promotion.policy import PolicyVersion, ensure_policy_version

POLICY = "planner_policy"
DEFAULTS = {"temperature": 0.0, "max_tokens": 512}
Ask = Callable[..., list[tuple[Any, ...]]]


def ensure(connection: Connection, model_version: str = "1", **changes: Any) -> PolicyVersion:
    options = {"policy": POLICY, "model_name": "planner_model", "config_defaults": DEFAULTS, **changes}
    return ensure_policy_version(connection, model_version=model_version, **options)


def test_versions_count_up_and_link_the_model_version(db: Connection, ask: Ask) -> None:
    versions = [ensure(db, v) for v in ("7", "9")]
    assert [(v.version, v.created, v.status) for v in versions] == [(1, True, "active"), (2, True, "active")]
    assert ask(
        "SELECT policy_name, version, mlflow_model_name, mlflow_model_version, config_defaults, status"
        " FROM exp.v_policy_versions ORDER BY version"
    ) == [
        (POLICY, 1, "planner_model", "7", DEFAULTS, "active"),
        (POLICY, 2, "planner_model", "9", DEFAULTS, "active"),
    ]


def test_asking_twice_gives_the_same_version_with_its_first_defaults(db: Connection, ask: Ask) -> None:
    first = ensure(db)
    again = ensure(db, config_defaults={"temperature": 0.7, "max_tokens": 9})
    assert (again.id, again.version, again.created) == (first.id, first.version, False)
    assert again.config_defaults == DEFAULTS
    assert ask("SELECT count(*) FROM exp.policy_versions") == [(1,)]


def test_another_policy_counts_for_itself(db: Connection) -> None:
    ensure(db, "1"), ensure(db, "2")
    assert ensure(db, "2", policy="other").version == 1


def test_a_version_written_by_another_tool_is_found(db: Connection, ask: Ask) -> None:
    [(policy,)] = ask("INSERT INTO exp.policies (name) VALUES (%s) RETURNING id", POLICY)
    [(id,)] = ask(
        "INSERT INTO exp.policy_versions (policy_id, version, mlflow_model_name, mlflow_model_version, status)"
        " VALUES (%s, 4, 'planner_model', '1', 'deprecated') RETURNING id",
        policy,
    )
    found = ensure(db)
    assert (found.id, found.version, found.status, found.created) == (id, 4, "deprecated", False)
    assert ensure(db, "2").version == 5


@pytest.mark.parametrize("constrained", [True, False])
def test_eight_concurrent_callers_get_one_version(
    connect: Callable[..., Connection], ask: Ask, constrained: bool
) -> None:
    if not constrained:  # a production database need not have them
        ask("ALTER TABLE exp.policy_versions DROP CONSTRAINT policy_versions_policy_id_version_key")
        ask("ALTER TABLE exp.policies DROP CONSTRAINT policies_name_key")
    connections = [connect() for _ in range(8)]
    barrier = Barrier(8)

    def call(connection: Connection) -> PolicyVersion:
        barrier.wait(timeout=30)
        return ensure(connection)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(call, connections))
    assert len({v.id for v in versions}) == 1
    assert sum(v.created for v in versions) == 1
    assert ask("SELECT count(*), max(version) FROM exp.policy_versions") == [(1, 1)]
    assert ask("SELECT count(*) FROM exp.policies") == [(1,)]


def test_concurrent_model_versions_get_distinct_numbers(connect: Callable[..., Connection], ask: Ask) -> None:
    connections = [connect() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(ensure, connections, map(str, range(1, 7))))
    assert sorted(v.version for v in versions) == [1, 2, 3, 4, 5, 6]


def test_a_serializable_connection_sees_what_the_last_holder_of_the_lock_wrote(
    connect: Callable[..., Connection],
) -> None:
    connections = [connect() for _ in range(4)]
    for connection in connections:
        connection.set_session(isolation_level=ISOLATION_LEVEL_SERIALIZABLE)
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(ensure, connections))
    assert len({v.id for v in versions}) == 1


def test_no_transaction_is_left_open(db: Connection, ask: Ask) -> None:
    ensure(db)
    ensure(db)
    assert ask("SELECT state FROM pg_stat_activity WHERE pid = %s", db.info.backend_pid) == [("idle",)]


@pytest.mark.parametrize("model_version", ["", "9" * 51])
def test_a_version_that_does_not_fit_its_column_is_refused(db: Connection, ask: Ask, model_version: str) -> None:
    with pytest.raises(PromotionError, match="1 to 50"):
        ensure(db, model_version)
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]


def test_a_database_without_the_tables_says_which_is_missing(db: Connection, ask: Ask) -> None:
    ask("DROP TABLE exp.policy_versions CASCADE")
    with pytest.raises(DatabaseError, match=r"exp\.policy_versions.*schema\.sql"):
        ensure(db)
