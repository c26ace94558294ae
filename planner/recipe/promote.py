"""Step `promote`: make a version whose newest replay passed the candidate.

In: the evidence in Postgres and the registry. Out: tag and alias `candidate`, a policy version, and a variant where an
allocation is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from mlflow.tracking import MlflowClient

from planner.contracts.errors import PlannerError
from planner.dataset.database import connect
from planner.promotion.candidate import ALIAS, promote_candidate
from planner.promotion.config import PromoteConfig
from planner.promotion.results import Evidence, latest_evidence
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console, StepResult
from planner.recipe.environment import current_database_url
from planner.recipe.fingerprint import step_fingerprint
from planner.recipe.lineage import dataset_tags
from planner.recipe.registry import find_alias, get_version, newest_trained
from planner.recipe.tracking import StepRun

NEEDS_DATABASE = True


def fingerprint(config: ResolvedConfig) -> str:
    """Changes with the step's code, its config and the newest evidence on the version."""
    step = _resolved(config)
    assert step.model_version is not None
    with closing(connect(current_database_url())) as connection:
        evidence = latest_evidence(connection, step.model_name, step.model_version)
    inputs = {"evidence": evidence.id if evidence else None, "passed": bool(evidence and evidence.passed)}
    return step_fingerprint("promote", step.model_dump(mode="json"), inputs)


def run(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Check the evidence, promote, and note what was written."""
    step = _resolved(config)
    with closing(connect(current_database_url())) as connection:
        promotion = promote_candidate(connection, MlflowClient(), step)
    written = "; ".join(promotion.written) or "nothing: it was promoted before"
    policy = promotion.policy_version
    run.set_tags({"policy_version_id": policy.id, "policy_version": policy.version})
    run.outputs.update(
        model_name=promotion.model_name,
        model_version=promotion.model_version,
        stage=promotion.stage,
        **_dataset_of_replay(promotion.evidence),
        policy_version_id=policy.id,
        policy_version=policy.version,
        variant=promotion.variant.name if promotion.variant else None,
        lines=[f"Wrote {written}."],
    )


def is_whole(config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
    """Whether tag and alias still stand."""
    try:
        version = get_version(outputs["model_name"], outputs["model_version"])
    except PlannerError:
        return False
    stands = bool(version.tags.get("stage") == outputs["stage"])
    return stands and find_alias(outputs["model_name"], ALIAS) == outputs["model_version"]


def tags_of(outputs: Mapping[str, Any]) -> Mapping[str, object]:
    """Data and model."""
    return {**dataset_tags(outputs), "model_name": outputs["model_name"], "model_version": outputs["model_version"]}


def result_of(outputs: Mapping[str, Any], *, seconds: float) -> StepResult:
    """The version with its alias and policy version."""
    artefact = f"models:/{outputs['model_name']}@{ALIAS} = version {outputs['model_version']}"
    return StepResult(
        "promote", None, None, seconds, artefact, f"{outputs['stage']}, policy version {outputs['policy_version']}"
    )


def next_command(outputs: Mapping[str, Any]) -> str | None:
    """Serve it."""
    return f"mlflow models serve -m models:/{outputs['model_name']}@{ALIAS} --env-manager local"


def _dataset_of_replay(evidence: Evidence) -> dict[str, str | None]:
    """On what the version passed; the digest stands in the replay's run alone."""
    tags = MlflowClient().get_run(evidence.run_id or "").data.tags
    return {"dataset_version": evidence.dataset_version, "dataset_digest": tags.get("dataset_digest")}


def _resolved(config: ResolvedConfig) -> PromoteConfig:
    """The config with the version that is meant: the one given, else the newest trained one."""
    step = config.recipe.promote
    if step.model_version is None:
        return step.model_copy(update={"model_version": str(newest_trained(step.model_name).version)})
    return step.model_copy(update={"model_version": str(get_version(step.model_name, step.model_version).version)})
