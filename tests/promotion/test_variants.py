from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError, PromotionError
from planner.promotion.policy import PolicyVersion, ensure_policy_version
from planner.promotion.variants import UNIT, Variant, create_variant, read_policy_version_id, scale_allocations

DEFAULTS = {"temperature": 0.0, "max_tokens": 512}
Ask = Callable[..., list[tuple[Any, ...]]]
SHARES = "SELECT name, allocation FROM exp.variants ORDER BY created_at, name"


def policy_version(connection: Connection, model_version: str = "2") -> PolicyVersion:
    return ensure_policy_version(
        connection,
        policy="planner_policy",
        model_name="planner_model",
        model_version=model_version,
        config_defaults=DEFAULTS,
    )


def create(connection: Connection, experiment: str, version: PolicyVersion, **changes: Any) -> Variant:
    options: dict[str, Any] = {"name": f"v{version.model_version}", "allocation": 0.1, "params": DEFAULTS, **changes}
    return create_variant(connection, experiment=experiment, policy_version=version, **options)


@st.composite
def wholes(draw: st.DrawFn) -> list[Decimal]:
    """Allocations in steps of 0.0001 that sum to exactly 1, zeros and single units among them."""
    cuts = sorted(draw(st.lists(st.integers(0, 10_000), min_size=0, max_size=40)))
    return [(b - a) * UNIT for a, b in zip([0, *cuts], [*cuts, 10_000], strict=True)]


@given(wholes(), st.integers(1, 1000))
def test_scaled_allocations_leave_exactly_the_new_share(allocations: list[Decimal], new_units: int) -> None:
    new = new_units * UNIT
    scaled = scale_allocations(allocations, new)
    assert sum(scaled) + new == 1
    for before, after in zip(allocations, scaled, strict=True):
        assert abs(after - before * (1 - new)) < UNIT
        assert 0 <= after <= before
        assert after == after.quantize(UNIT)
    by_size = sorted(zip(allocations, scaled, strict=True))
    assert all(a[1] <= b[1] for a, b in zip(by_size, by_size[1:], strict=False) if a[0] < b[0])


def test_a_variant_takes_its_share_from_all_others(db: Connection, ask: Ask, experiment: str) -> None:
    ask("UPDATE exp.variants SET allocation = 0.3333")
    ask("INSERT INTO exp.variants (experiment_id, name, allocation) SELECT id, 'old', 0.6667 FROM exp.experiments")
    version = policy_version(db)
    variant = create(db, experiment, version, allocation=0.05)
    assert (variant.created, variant.allocation) == (True, Decimal("0.0500"))
    assert ask(SHARES) == [("control", Decimal("0.3166")), ("old", Decimal("0.6334")), ("v2", Decimal("0.0500"))]
    assert ask("SELECT config FROM exp.variants WHERE name = 'v2'") == [
        (
            {
                "execution_strategy": "mlflow_model",
                "mlflow_model": {"policy_version_id": version.id, "model_name": "planner_model"},
                "params": DEFAULTS,
            },
        )
    ]


def test_the_event_names_policy_version_model_version_and_reason(db: Connection, ask: Ask, experiment: str) -> None:
    version = policy_version(db)
    variant = create(db, experiment, version, reason="passed run r1")
    [(event_type, unit_type, unit_id, experiments, context, payload)] = ask(
        "SELECT event_type, unit_type, unit_id, experiments, context, payload FROM exp.events"
    )
    assert (event_type, unit_type, unit_id) == ("model_promoted", "policy_version", version.id)
    assert experiments == [{"experiment_id": variant.experiment_id, "variant_id": variant.id}]
    assert context == {"policy_version_id": version.id}
    assert payload == {
        "policy": "planner_policy",
        "policy_version_id": version.id,
        "policy_version": 1,
        "model_name": "planner_model",
        "model_version": "2",
        "to_stage": "experiment",
        "allocation": "0.1000",
        "reason": "passed run r1",
    }


def test_asking_twice_keeps_the_first_variant_and_its_event(db: Connection, ask: Ask, experiment: str) -> None:
    version = policy_version(db)
    first = create(db, experiment, version, allocation=0.05)
    again = create(db, experiment, version, allocation=0.1, name="another")
    assert (again.id, again.name, again.allocation, again.created) == (first.id, "v2", Decimal("0.0500"), False)
    assert ask(SHARES) == [("control", Decimal("0.9500")), ("v2", Decimal("0.0500"))]
    assert ask("SELECT count(*) FROM exp.events") == [(1,)]


def test_a_variant_of_the_older_form_is_recognised(db: Connection, ask: Ask, experiment: str) -> None:
    version = policy_version(db)
    config = json.dumps({"execution_strategy": "mlflow_model", "policy_version_id": version.id.upper()})
    ask("UPDATE exp.variants SET config = %s", config)
    found = create(db, experiment, version)
    assert (found.name, found.created) == ("control", False)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"mlflow_model": {"policy_version_id": "a"}, "policy_version_id": "b"}, "a"),
        ({"policy_version_id": "b"}, "b"),
        ({"mlflow_model": {"model_name": "m"}, "policy_version_id": "b"}, "b"),
        ({"mlflow_model": "m"}, None),
        ({}, None),
        (None, None),
        (["b"], None),
        ("b", None),
    ],
)
def test_both_forms_of_a_config_are_read(config: Any, found: str | None) -> None:
    assert read_policy_version_id(config) == found


def test_concurrent_promotions_keep_the_sum_at_one(
    db: Connection, connect: Callable[..., Connection], ask: Ask, experiment: str
) -> None:
    versions = [policy_version(db, str(number)) for number in range(1, 7)]
    connections = [connect() for _ in versions]
    barrier = Barrier(len(versions))

    def call(connection: Connection, version: PolicyVersion) -> Variant:
        barrier.wait(timeout=30)
        return create(connection, experiment, version)

    with ThreadPoolExecutor(len(versions)) as pool:
        variants = list(pool.map(call, connections, versions))
    assert all(v.created for v in variants)
    shares = dict(ask(SHARES))
    assert sum(shares.values()) == 1
    assert max(share for name, share in shares.items() if name != "control") <= Decimal("0.1000")
    assert abs(shares["control"] - Decimal("0.9") ** 6) < 6 * UNIT


def test_eight_concurrent_promotions_of_one_version_give_one_variant(
    db: Connection, connect: Callable[..., Connection], ask: Ask, experiment: str
) -> None:
    version = policy_version(db)
    connections = [connect() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        variants = list(pool.map(lambda c: create(c, experiment, version), connections))
    assert sum(v.created for v in variants) == 1
    assert ask(SHARES) == [("control", Decimal("0.9000")), ("v2", Decimal("0.1000"))]
    assert ask("SELECT count(*) FROM exp.events") == [(1,)]


@pytest.mark.parametrize("allocation", [0, -0.1, 0.1001, 1, 0.00001, float("nan"), Decimal("0.10001")])
def test_a_share_outside_of_the_rule_is_refused(
    db: Connection, ask: Ask, experiment: str, allocation: Decimal | float
) -> None:
    with pytest.raises(PromotionError, match="0.1000"):
        create(db, experiment, policy_version(db), allocation=allocation)
    assert ask(SHARES) == [("control", Decimal(1))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE exp.variants SET allocation = 0.9", "sum to 0.9000"),
        ("DELETE FROM exp.variants", "control variant"),
        ("UPDATE exp.experiments SET status = 'completed'", "is completed"),
        ("UPDATE exp.experiments SET name = 'monthly'", "open ones are: 'monthly'"),
        ("UPDATE exp.variants SET name = 'v2'", "another policy version"),
    ],
)
def test_an_experiment_that_cannot_take_it_says_why(
    db: Connection, ask: Ask, experiment: str, change: str, message: str
) -> None:
    version = policy_version(db)
    ask(change)
    before = ask(SHARES)
    with pytest.raises(PromotionError, match=message):
        create(db, experiment, version)
    assert ask(SHARES) == before
    assert ask("SELECT count(*) FROM exp.events") == [(0,)]


def test_a_failure_in_the_middle_leaves_the_allocations_as_they_were(db: Connection, ask: Ask, experiment: str) -> None:
    version = policy_version(db)
    ask("ALTER TABLE exp.events ADD CONSTRAINT none_yet CHECK (event_type <> 'model_promoted')")
    with pytest.raises(DatabaseError, match="Nothing of it was written"):
        create(db, experiment, version)
    assert ask(SHARES) == [("control", Decimal(1))]
    ask("ALTER TABLE exp.events DROP CONSTRAINT none_yet")
    assert create(db, experiment, version).created
    assert ask(SHARES) == [("control", Decimal("0.9000")), ("v2", Decimal("0.1000"))]


def test_it_works_where_events_are_partitioned_by_time(db: Connection, ask: Ask, experiment: str) -> None:
    ask(
        "DROP TABLE exp.events; CREATE TABLE exp.events (id uuid, event_type varchar(100), unit_type varchar(50),"
        ' unit_id varchar(255), experiments jsonb, context jsonb, metrics jsonb, payload jsonb, "timestamp"'
        ' timestamptz, created_at timestamptz, PRIMARY KEY (id, "timestamp")) PARTITION BY RANGE ("timestamp");'
        " CREATE TABLE exp.events_all PARTITION OF exp.events DEFAULT"
    )
    version = policy_version(db)
    create(db, experiment, version)
    create(db, experiment, version)
    assert ask("SELECT count(*) FROM exp.events") == [(1,)]
