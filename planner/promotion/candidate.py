"""From a replay that passed to a candidate, and from a candidate to a variant of an experiment.

In: the evidence in Postgres and the MLflow registry. Out: the version's tag `stage` and alias `candidate`, its policy
version, and a variant where an allocation is asked for. Every write is idempotent and they go in a fixed order, so
that a call after a kill completes what the killed one began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from planner.contracts.errors import ModelError, PromotionError
from planner.promotion.config import PromoteConfig
from planner.promotion.events import write_promoted
from planner.promotion.policy import PolicyVersion, find_or_create, policy_lock
from planner.promotion.registry import alias_version, check_not_found, unreachable
from planner.promotion.results import Evidence, latest_attempt, latest_evidence
from planner.promotion.transactions import run_serialised
from planner.promotion.variants import Variant, check_allocation, create_variant

ALIAS = "candidate"
STAGE = "stage"
_LATER_STAGES = ("experiment", "production")


@dataclass(frozen=True)
class Promotion:
    """Where a version stands after a promotion; `written` names what this call changed: nothing the second time."""

    model_name: str
    model_version: str
    stage: str
    policy_version: PolicyVersion
    evidence: Evidence
    variant: Variant | None
    written: tuple[str, ...]


def mark_candidate(client: MlflowClient, model_name: str, model_version: str) -> tuple[str, ...]:
    """Set the version's tag `stage=candidate` and point the alias `candidate` at it; says which it had to write.

    A version that is further on (`experiment`, `production`) keeps its tag. The tag goes first: whoever follows the
    alias finds it there. The alias moves away from an older candidate, whose tag stays.

    Raises:
        ModelError: the version is not in the registry, or not complete.
        PromotionError: the version is archived.
        TrackingError: the registry cannot be reached.
    """
    version = _complete_version(client, model_name, model_version)
    stage = version.tags.get(STAGE)
    if stage == "archived":
        raise PromotionError(
            f"{model_name} version {model_version} is archived and does not come back. Train and register a new one."
        )
    written = []
    if stage not in (ALIAS, *_LATER_STAGES):
        _write_twice(lambda: client.set_model_version_tag(model_name, model_version, STAGE, ALIAS))
        written.append(f"tag {STAGE}={ALIAS}")
    if alias_version(client, model_name, ALIAS) != model_version:
        _write_twice(lambda: client.set_registered_model_alias(model_name, ALIAS, model_version))
        written.append(f"alias {ALIAS}")
    return tuple(written)


def promote_candidate(connection: Connection, client: MlflowClient, config: PromoteConfig) -> Promotion:
    """Make a version whose newest replay passed the candidate, with a policy version, and a variant if asked for.

    The evidence is read from Postgres and never from a tag, which anybody who reaches the registry can set. Order of
    writes: policy version, tag, alias, event; then variant with its event, and the tag `stage=experiment` last.

    Args:
        connection: idle; see `run_serialised`.
        client: of the registry that holds the version and of the store that holds its replay's run.
        config: an allocation of 0 makes no variant.

    Raises:
        PromotionError: no replay passed, the version is a baseline of its own, in production or archived, or the
            variant cannot be made; says why and what to run next.
        ModelError: the version is not in the registry; names those that are.
        DatabaseError, TrackingError: Postgres or MLflow refused or went away; run again to go on.
    """
    if config.allocation > 0:
        check_allocation(config.allocation)
    model_version = config.model_version or _candidate_version(client, config.model_name)
    version = _complete_version(client, config.model_name, model_version)
    _check_not_production(client, config.model_name, model_version)
    evidence = _passed_evidence(connection, config.model_name, model_version)
    _check_run(client, evidence, config.model_name, model_version)
    reason = f"passed the replay of run {evidence.run_id} on dataset {evidence.dataset_version}"

    policy_version = _ensure_active(connection, config, model_version)
    written = [f"policy version {policy_version.version} of {config.policy}"] if policy_version.created else []
    written += _mark_and_record(connection, client, policy_version, reason)
    stage = version.tags.get(STAGE)
    stage = stage if stage in _LATER_STAGES else ALIAS
    variant = None
    if config.allocation > 0:
        variant = _add_variant(connection, config, policy_version, reason)
        if variant.created:
            written.append(f"variant {variant.name} of {variant.experiment} at {variant.allocation}")
        if stage == ALIAS:
            stage = "experiment"
            _set_stage(client, config.model_name, model_version, stage)
            written.append(f"tag {STAGE}={stage}")
    return Promotion(config.model_name, model_version, stage, policy_version, evidence, variant, tuple(written))


def _passed_evidence(connection: Connection, model_name: str, model_version: str) -> Evidence:
    evidence = latest_evidence(connection, model_name, model_version)
    again = f"`mlflow run . -e evaluate -P model_name={model_name} -P model_version={model_version}`"
    named = f"{model_name} version {model_version}"
    if evidence is None:
        attempt = latest_attempt(connection, model_name, model_version)
        fate = {None: "", "running": "; one is marked running", "failed": "; the last one failed"}
        how = fate[attempt.status if attempt else None]
        if attempt is not None and attempt.reasons:
            how += f" with: {attempt.reasons[0]}"
        raise PromotionError(
            f"{named} has no completed replay in exp.offline_replay_results{how}. Run {again}.", reasons=()
        )
    if evidence.baseline_version == model_version and evidence.baseline_name == model_name:
        raise PromotionError(f"{named} was replayed against itself, which is no evidence. Run {again}.", reasons=())
    if not evidence.passed:
        reasons = evidence.reasons or ("the row lacks a score, a baseline or is_better_than_baseline",)
        verdict = ": ".join([reasons[0], " ".join(reasons[1:])]) if len(reasons) > 1 else f"{reasons[0]}."
        raise PromotionError(
            f"{named} did not pass its newest replay (run {evidence.run_id}): {verdict} "
            f"Train a better version, or replay more households with {again}.",
            reasons=reasons,
        )
    return evidence


def _check_run(client: MlflowClient, evidence: Evidence, model_name: str, model_version: str) -> None:
    # Another registry can hold another model under the same name and number: its evidence is not this version's.
    try:
        client.get_run(evidence.run_id or "")
    except MlflowException as error:
        check_not_found(error)
        raise PromotionError(
            f"The replay of {model_name} version {model_version} ran in run {evidence.run_id}, which this MLflow store "
            "does not have: the evidence belongs to another registry. Run evaluate against this one.",
            run_id=evidence.run_id,
        ) from error


def _ensure_active(connection: Connection, config: PromoteConfig, model_version: str) -> PolicyVersion:
    def work(cursor: Cursor) -> PolicyVersion:
        found = find_or_create(cursor, config.policy, config.model_name, model_version, config.config_defaults)
        if found.status != "active":
            raise PromotionError(
                f"Policy version {found.version} of {config.policy} ({config.model_name} version {model_version}) is "
                f"{found.status} and does not come back. Train and register a new version."
            )
        return found

    what = f"the policy version of {config.model_name} version {model_version}"
    return run_serialised(connection, policy_lock(config.policy), work, what=what)


def _mark_and_record(
    connection: Connection, client: MlflowClient, policy_version: PolicyVersion, reason: str
) -> list[str]:
    def work(cursor: Cursor) -> list[str]:
        # Inside the lock: of two promoters, the late one then sees the tag of the early one and does not set it back.
        written = list(mark_candidate(client, policy_version.model_name, policy_version.model_version))
        if write_promoted(cursor, policy_version, to_stage=ALIAS, reason=reason):
            written.append(f"event model_promoted ({ALIAS})")
        return written

    lock = policy_lock(policy_version.policy)
    return run_serialised(connection, lock, work, what="the event model_promoted")


def _add_variant(connection: Connection, config: PromoteConfig, policy_version: PolicyVersion, reason: str) -> Variant:
    assert config.experiment is not None, "PromoteConfig demands it with an allocation"
    return create_variant(
        connection,
        experiment=config.experiment,
        policy_version=policy_version,
        name=config.variant or f"{config.model_name}-v{policy_version.model_version}",
        allocation=config.allocation,
        params=config.config_defaults,
        reason=reason,
    )


def _candidate_version(client: MlflowClient, model_name: str) -> str:
    found = alias_version(client, model_name, ALIAS)
    if found is None:
        raise PromotionError(
            f"No version of {model_name} is a candidate. Run `mlflow run . -e evaluate -P model_name={model_name} "
            "-P model_version=…` first, or give a model_version that passed."
        )
    return found


def _complete_version(client: MlflowClient, model_name: str, model_version: str) -> ModelVersion:
    try:
        version = client.get_model_version(model_name, model_version)
    except MlflowException as error:
        check_not_found(error)
        raise _no_such_version(client, model_name, model_version) from error
    if version.status != "READY":
        raise ModelError(
            f"{model_name} version {model_version} is {version.status} and not READY in the registry: its upload broke "
            "off. Register it again."
        )
    return version


def _no_such_version(client: MlflowClient, model_name: str, model_version: str) -> ModelError:
    try:
        versions = [v.version for v in client.search_model_versions(f"name='{model_name}'", max_results=1000)]
    except MlflowException:
        versions = []
    numbers = sorted((int(v) for v in versions), reverse=True)
    there = ", ".join(str(n) for n in numbers[:10]) + (", …" if len(numbers) > 10 else "")
    known = f"its versions are {there}" if numbers else "the registry has no version of that model: run the train step"
    return ModelError(f"{model_name} version {model_version} is not in the registry; {known}.", versions=tuple(numbers))


def _check_not_production(client: MlflowClient, model_name: str, model_version: str) -> None:
    if alias_version(client, model_name, "production") == model_version:
        raise PromotionError(
            f"{model_name} version {model_version} is in production and cannot be a candidate against itself. "
            "Give the version that is to follow it."
        )


def _set_stage(client: MlflowClient, model_name: str, model_version: str, stage: str) -> None:
    _write_twice(lambda: client.set_model_version_tag(model_name, model_version, STAGE, stage))


def _write_twice(write: Callable[[], None]) -> None:
    # MLflow looks whether the tag or alias is there and then inserts or updates it: of two first writers one fails on
    # the unique key, and succeeds with an update when it tries again.
    try:
        write()
    except MlflowException:
        try:
            write()
        except MlflowException as error:
            raise unreachable(error) from error
