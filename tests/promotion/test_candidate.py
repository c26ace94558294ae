from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from mlflow import MlflowClient
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import ModelError, PlannerError, PromotionError, TrackingError
from planner.contracts.gate import GateResult, Verdict
from planner.promotion import candidate
from planner.promotion.candidate import Promotion, mark_candidate, promote_candidate
from planner.promotion.config import PromoteConfig
from planner.promotion.results import fail_replay, record_replay

# MLflow's store uses a loader that SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
POLICY = "planner_policy"
DEFAULTS = {"temperature": 0.0, "max_tokens": 512}
Ask = Callable[..., list[tuple[Any, ...]]]
Gate = Callable[..., GateResult]


def replayed(db: Connection, registry: Any, gate: Gate, *, versions: int = 2, **changes: Any) -> str:
    """A model whose last version was replayed against its first."""
    name: str = registry.model(versions)
    result = gate(**{"model_name": name, "model_version": str(versions), **changes})
    record_replay(db, result, run_id=registry.run(), policy=POLICY, config_defaults=DEFAULTS)
    return name


def promote(db: Connection, registry: Any, name: str, version: str | None = "2", **changes: Any) -> Promotion:
    return promote_candidate(db, registry.client, PromoteConfig(model_name=name, model_version=version, **changes))


def test_marking_sets_tag_and_alias_once(registry: Any) -> None:
    name = registry.model(2)
    assert mark_candidate(registry.client, name, "2") == ("tag stage=candidate", "alias candidate")
    assert (registry.stage(name, "2"), registry.candidate(name)) == ("candidate", "2")
    assert mark_candidate(registry.client, name, "2") == ()
    assert mark_candidate(registry.client, name, "1") == ("tag stage=candidate", "alias candidate")
    assert registry.candidate(name) == "1"


@pytest.mark.parametrize("stage", ["experiment", "production"])
def test_a_version_that_is_further_on_keeps_its_stage(registry: Any, stage: str) -> None:
    name = registry.model(1)
    registry.client.set_model_version_tag(name, "1", "stage", stage)
    mark_candidate(registry.client, name, "1")
    assert registry.stage(name, "1") == stage


def test_an_archived_version_does_not_come_back(registry: Any) -> None:
    name = registry.model(1)
    registry.client.set_model_version_tag(name, "1", "stage", "archived")
    with pytest.raises(PromotionError, match="archived"):
        mark_candidate(registry.client, name, "1")
    assert registry.candidate(name) is None


@pytest.mark.parametrize(("version", "there"), [("4", "versions are 3, 2, 1"), ("x", "versions are 3, 2, 1")])
def test_a_version_that_does_not_exist_names_those_that_do(registry: Any, version: str, there: str) -> None:
    name = registry.model(3)
    with pytest.raises(ModelError, match=there):
        mark_candidate(registry.client, name, version)


def test_an_unknown_model_says_to_train_first(db: Connection, registry: Any) -> None:
    with pytest.raises(ModelError, match="no version of that model: run the train step"):
        promote(db, registry, "nobody")
    with pytest.raises(PromotionError, match="No version of nobody is a candidate"):
        promote(db, registry, "nobody", None)


def test_a_passed_version_becomes_candidate_with_a_policy_version(
    db: Connection, ask: Ask, registry: Any, gate: Gate
) -> None:
    name = replayed(db, registry, gate)
    done = promote(db, registry, name)
    assert (done.stage, done.policy_version.version, done.variant) == ("candidate", 2, None)
    assert done.written == ("tag stage=candidate", "alias candidate", "event model_promoted (candidate)")
    assert (registry.stage(name, "2"), registry.candidate(name)) == ("candidate", "2")
    [(unit_id, payload)] = ask("SELECT unit_id, payload FROM exp.events")
    assert (unit_id, payload["to_stage"], payload["model_version"]) == (done.policy_version.id, "candidate", "2")
    again = promote(db, registry, name, None)
    assert (again.model_version, again.written) == ("2", ())
    assert ask("SELECT count(*) FROM exp.events") == [(1,)]


def test_an_allocation_makes_a_variant_and_moves_the_stage_on(
    db: Connection, ask: Ask, registry: Any, gate: Gate, experiment: str
) -> None:
    name = replayed(db, registry, gate)
    done = promote(db, registry, name, allocation=0.1, experiment=experiment)
    assert done.variant is not None
    assert (done.stage, done.variant.name, done.variant.allocation) == ("experiment", f"{name}-v2", Decimal("0.1000"))
    assert registry.stage(name, "2") == "experiment"
    again = promote(db, registry, name, allocation=0.1, experiment=experiment)
    assert (again.stage, again.written) == ("experiment", ())
    assert ask("SELECT sum(allocation), count(*) FROM exp.variants") == [(Decimal(1), 2)]


def test_no_replay_no_promotion_and_nothing_written(db: Connection, ask: Ask, registry: Any) -> None:
    name = registry.model(2)
    registry.client.set_model_version_tag(name, "2", "stage", "candidate")  # anybody can set a tag
    registry.client.set_registered_model_alias(name, "candidate", "2")
    with pytest.raises(PromotionError, match=f"no completed replay.*evaluate -P model_name={name} -P model_version=2"):
        promote(db, registry, name)
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_replay_that_did_not_pass_gives_its_reasons(
    db: Connection, ask: Ask, registry: Any, gate: Gate, verdict: Verdict
) -> None:
    name = replayed(db, registry, gate, verdict=verdict, reasons=("It needs 173 households.",))
    with pytest.raises(PromotionError, match=rf"{verdict.value}: It needs 173 households\..*evaluate") as refused:
        promote(db, registry, name)
    assert "\n" not in str(refused.value)
    assert refused.value.facts["reasons"] == (verdict.value, "It needs 173 households.")
    assert (registry.stage(name, "2"), registry.candidate(name)) == (None, None)
    assert ask("SELECT count(*) FROM exp.events") == [(0,)]


def test_a_replay_that_broke_off_is_told(db: Connection, registry: Any) -> None:
    name = registry.model(2)
    fail_replay(
        db,
        run_id=registry.run(),
        policy=POLICY,
        model_name=name,
        model_version="2",
        dataset_version="2025-01-03",
        config_defaults=DEFAULTS,
        message="No space left on device.",
    )
    with pytest.raises(PromotionError, match="the last one failed with: No space left"):
        promote(db, registry, name)


def test_a_newer_replay_that_failed_takes_the_older_pass_away(db: Connection, registry: Any, gate: Gate) -> None:
    name = replayed(db, registry, gate)
    worse = gate(model_name=name, verdict=Verdict.FAIL, reasons=("Worse.",))
    record_replay(db, worse, run_id=registry.run(), policy=POLICY, config_defaults=DEFAULTS)
    with pytest.raises(PromotionError, match=r"FAIL: Worse\."):
        promote(db, registry, name)


def test_evidence_of_another_registry_does_not_count(db: Connection, registry: Any, gate: Gate) -> None:
    name = registry.model(2)
    record_replay(db, gate(model_name=name), run_id="f" * 32, policy=POLICY, config_defaults=DEFAULTS)
    with pytest.raises(PromotionError, match="belongs to another registry"):
        promote(db, registry, name)
    assert registry.candidate(name) is None


def test_a_row_that_compares_a_version_with_itself_is_refused(
    db: Connection, ask: Ask, registry: Any, gate: Gate
) -> None:
    name = replayed(db, registry, gate)
    ask("UPDATE exp.offline_replay_results SET baseline_version_id = policy_version_id")
    with pytest.raises(PromotionError, match="against itself"):
        promote(db, registry, name)


def test_what_is_in_production_is_no_candidate(db: Connection, registry: Any, gate: Gate) -> None:
    name = replayed(db, registry, gate)
    registry.client.set_registered_model_alias(name, "production", "2")
    with pytest.raises(PromotionError, match="in production"):
        promote(db, registry, name)
    assert registry.candidate(name) is None


@pytest.mark.parametrize("status", ["archived", "deprecated"])
def test_a_policy_version_that_was_taken_back_stays_back(
    db: Connection, ask: Ask, registry: Any, gate: Gate, status: str
) -> None:
    name = replayed(db, registry, gate)
    ask("UPDATE exp.policy_versions SET status = %s WHERE mlflow_model_version = '2'", status)
    with pytest.raises(PromotionError, match=status):
        promote(db, registry, name)
    assert registry.candidate(name) is None


def test_a_wrong_experiment_leaves_a_candidate_and_no_variant(
    db: Connection, ask: Ask, registry: Any, gate: Gate, experiment: str
) -> None:
    name = replayed(db, registry, gate)
    with pytest.raises(PromotionError, match="no experiment 'monthly'.*'weekly'"):
        promote(db, registry, name, allocation=0.1, experiment="monthly")
    assert registry.stage(name, "2") == "candidate"
    assert ask("SELECT name, allocation FROM exp.variants") == [("control", Decimal(1))]


class Killed(BaseException):
    """Stands for a kill: nothing in the project catches it."""


STEPS = ["_ensure_active", "mark_candidate", "write_promoted", "_add_variant", "_set_stage"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_between_two_writes_is_completed_by_the_next_call(
    db: Connection,
    connect: Callable[..., Connection],
    ask: Ask,
    registry: Any,
    gate: Gate,
    experiment: str,
    step: str,
    before: bool,
) -> None:
    name = replayed(db, registry, gate)
    real = getattr(candidate, step)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if not before:
            real(*args, **kwargs)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, step, killed)
        with pytest.raises(Killed):
            promote(db, registry, name, allocation=0.1, experiment=experiment)
    if registry.stage(name, "2") == "experiment":  # never said before it is so
        assert ask("SELECT count(*) FROM exp.variants") == [(2,)]
    done = promote(connect(), registry, name, allocation=0.1, experiment=experiment)
    assert done.stage == registry.stage(name, "2") == "experiment"
    assert registry.candidate(name) == "2"
    assert ask("SELECT count(*) FROM exp.policy_versions") == [(2,)]
    assert ask("SELECT payload->>'to_stage' FROM exp.events ORDER BY 1") == [("candidate",), ("experiment",)]
    assert ask("SELECT name, allocation FROM exp.variants ORDER BY 2") == [
        (f"{name}-v2", Decimal("0.1000")),
        ("control", Decimal("0.9000")),
    ]


def test_a_registry_that_fails_between_tag_and_alias_is_completed_by_the_next_call(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.model(1)
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise Killed

        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(Killed):
            mark_candidate(registry.client, name, "1")
    assert mark_candidate(registry.client, name, "1") == ("alias candidate",)


def test_eight_evaluations_that_mark_one_version_at_once_all_succeed(registry: Any) -> None:
    name = registry.model(1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: mark_candidate(registry.client, name, "1"), range(8)))
    assert (registry.stage(name, "1"), registry.candidate(name)) == ("candidate", "1")


def test_eight_concurrent_promoters_give_one_of_everything(
    db: Connection, connect: Callable[..., Connection], ask: Ask, registry: Any, gate: Gate, experiment: str
) -> None:
    name = replayed(db, registry, gate)
    connections = [connect() for _ in range(8)]

    def call(connection: Connection) -> Promotion:
        return promote(connection, registry, name, allocation=0.1, experiment=experiment)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(call, connections))
    assert len({(p.policy_version.id, p.variant and p.variant.id, p.stage) for p in done}) == 1
    assert ask("SELECT count(*) FROM exp.policy_versions") == [(2,)]
    assert ask("SELECT count(*) FROM exp.events") == [(2,)]
    assert ask("SELECT allocation FROM exp.variants ORDER BY 1") == [(Decimal("0.1000"),), (Decimal("0.9000"),)]


def test_a_registry_out_of_reach_is_said_in_one_line(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = MlflowClient(tracking_uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as failed:
        promote_candidate(db, client, PromoteConfig(model_version="1"))
    assert isinstance(failed.value, PlannerError) and "\n" not in str(failed.value)
