"""Step `build_dataset`: from the events to an immutable dataset version.

In: the database and the window of the config. Out: a version folder, its summary and profile in the run, and the
version's URI and digest for the steps behind it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import mlflow

from planner.contracts.errors import DatasetError
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.fingerprint import database_fingerprint
from planner.dataset.versions import open_version
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console, StepResult
from planner.recipe.environment import current_database_url
from planner.recipe.fingerprint import step_fingerprint
from planner.recipe.lineage import dataset_cache, dataset_tags, log_dataset_input
from planner.recipe.tracking import StepRun

NEEDS_DATABASE = True
REPLICAS = "PLANNER_REPLICA_URLS"  # further servers that share the shards, separated by spaces


def fingerprint(config: ResolvedConfig) -> str:
    """Changes with the step's code, its config, and any change of a table that a build reads."""
    step = _config(config)
    inputs = {"database": database_fingerprint(current_database_url(), step)}
    return step_fingerprint("build_dataset", step.model_dump(mode="json"), inputs)


def run(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Build, log, and note the version in `run.outputs`."""
    report = build_dataset(
        current_database_url(),
        _config(config),
        replicas=os.environ.get(REPLICAS, "").split(),
        progress=console.progress,
        cache=dataset_cache(config),
    )
    version = report.version
    log_dataset_input(version, context="built")
    run.log_metrics(_metrics(report))
    for name in ("dataset_summary.md", "schema.json", "manifest.json", "checks.json", "card.html"):
        path = version.training_path.parent / name
        if path.is_file():
            mlflow.log_artifact(str(path), "dataset")
    run.outputs.update(
        dataset=version.uri,
        dataset_version=version.name,
        dataset_digest=version.digest,
        rows_in=report.num_plans_seen,
        rows_out=report.num_rows,
        unchanged=report.unchanged,
        rows_reused=report.reuse.num_rows,
        lines=[*([report.reuse.told] if report.reuse.told else []), *(f"Warning: {w}" for w in report.warnings)],
    )


def is_whole(config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
    """Whether the version is still there with the same bytes."""
    try:
        version = open_version(outputs["dataset"], cache=dataset_cache(config))
        return bool(version.digest == outputs["dataset_digest"])
    except DatasetError:
        return False


def tags_of(outputs: Mapping[str, Any]) -> Mapping[str, object]:
    """Version and digest."""
    return dataset_tags(outputs)


def result_of(outputs: Mapping[str, Any], *, seconds: float) -> StepResult:
    """Accepted plans seen, rows written."""
    note = "unchanged" if outputs["unchanged"] else ""
    return StepResult("build_dataset", outputs["rows_in"], outputs["rows_out"], seconds, outputs["dataset"], note)


def next_command(outputs: Mapping[str, Any]) -> str | None:
    """Train on it."""
    return f"mlflow run . -e train -P dataset={outputs['dataset']}"


def _config(config: ResolvedConfig) -> DatasetConfig:
    return config.recipe.build_dataset


def _metrics(report: BuildReport) -> dict[str, float]:
    figures: dict[str, float] = {"rows": report.num_rows, "households": report.num_households}
    figures["rows.reused"] = report.reuse.num_rows
    figures |= {f"rows.{split}": count for split, count in report.rows_by_split.items()}
    figures |= {f"excluded.{reason}": count for reason, count in report.exclusions.items()}
    figures |= {f"check.{check.name}": float(check.passed) for check in report.checks}
    return figures
