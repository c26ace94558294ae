"""Step `train`: fine-tune the base model on a dataset version and register the result.

In: a dataset version. Out: a version of the registered model, read back and checked, with its curves in the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError, TrainingError
from planner.contracts.example import DatasetVersion, Example
from planner.contracts.split import stable_order
from planner.dataset.read import iter_examples, read_catalogue
from planner.decoding.base import BaseFiles, load_base, resolve_base
from planner.decoding.package import write_package
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console, StepResult
from planner.recipe.fingerprint import step_fingerprint
from planner.recipe.lineage import dataset_of, dataset_tags, log_dataset_input
from planner.recipe.registry import RegisteredVersion, read_back, register_package
from planner.recipe.tracking import StepRun
from planner.training.batches import encode_rows
from planner.training.config import TrainConfig
from planner.training.loop import EpochMetrics, TrainingReport, train
from planner.training.plot import plot_losses

NEEDS_DATABASE = False
POLICY = "planner_policy"


def fingerprint(config: ResolvedConfig) -> str:
    """Changes with the step's code, its config, the dataset's bytes and a local base model's files."""
    step = config.recipe.train
    inputs = {"dataset_digest": dataset_of(config, step.dataset).digest, "base": _base_identity(step.model_base)}
    return step_fingerprint("train", step.model_dump(mode="json", exclude={"dataset"}), inputs)


def run(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Train, package, register, verify."""
    step = config.recipe.train
    version = dataset_of(config, step.dataset)
    log_dataset_input(version, context="training")
    run.set_tags({"policy_id": POLICY, "task": "planner", **_dataset_tags(version)})
    catalogue = read_catalogue(version)
    console.progress(0, None, f"base model {step.model_base}")
    base = resolve_base(step.model_base, cache=base_cache())
    _log_params(step, version, base)
    report = _train(config, run, console, base, catalogue, version)
    registered = _register(config, run, version, catalogue, base, report)
    run.outputs.update(
        dataset=version.uri,
        dataset_version=version.name,
        dataset_digest=version.digest,
        model_name=registered.name,
        model_version=registered.version,
        package_sha256=registered.package_sha256,
        rows_in=report.num_train_rows + report.num_overlong,
        rows_out=report.num_train_rows,
        best_epoch=report.best_epoch,
        lines=[f"Registered {registered.name} version {registered.version}; read back and verified."],
    )


def is_whole(config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
    """Whether the registered version is still there with the same hashes."""
    try:
        found = read_back(outputs["model_name"], outputs["model_version"])
    except ModelError:
        return False
    return found.package_sha256 == outputs["package_sha256"]


def tags_of(outputs: Mapping[str, Any]) -> Mapping[str, object]:
    """Data and model."""
    return {
        **dataset_tags(outputs),
        "model_name": outputs.get("model_name"),
        "model_version": outputs.get("model_version"),
    }


def result_of(outputs: Mapping[str, Any], *, seconds: float) -> StepResult:
    """Rows selected, rows trained on."""
    artefact = f"models:/{outputs['model_name']}/{outputs['model_version']}"
    return StepResult("train", outputs["rows_in"], outputs["rows_out"], seconds, artefact)


def next_command(outputs: Mapping[str, Any]) -> str | None:
    """Replay it."""
    return (
        f"mlflow run . -e evaluate -P model_name={outputs['model_name']} -P model_version={outputs['model_version']} "
        f"-P dataset={outputs['dataset']}"
    )


def base_cache() -> Path:
    """Where converted base models are kept, for all checkouts of this user: `PLANNER_CACHE` or `~/.cache/planner`."""
    return Path(os.environ.get("PLANNER_CACHE") or Path.home() / ".cache" / "planner") / "bases"


def select_examples(version: DatasetVersion, split: str, limit: int | None, seed: int) -> list[Example]:
    """Rows of a split in a stable random order, at most `limit`."""
    # The key and the row alone are held; a run that limits its rows does not hold the others for long.
    rows = sorted(iter_examples(version, split=split), key=lambda e: (stable_order(e.event_id, seed), e.event_id))
    return rows[:limit] if limit is not None else rows


def _train(
    config: ResolvedConfig,
    run: StepRun,
    console: Console,
    base: BaseFiles,
    catalogue: Catalogue,
    version: DatasetVersion,
) -> TrainingReport:
    step = config.recipe.train
    train_rows = select_examples(version, "train", step.max_examples, step.seed)
    if not train_rows:
        raise TrainingError(
            f"Dataset version {version.name} has no rows in the split train. Build one over a longer window.",
            dataset=version.uri,
        )
    validation_rows = select_examples(version, "validation", step.max_validation_examples, step.seed)
    loaded = load_base(base)
    encoded = [
        encode_rows(loaded.tokenizer, rows, catalogue, step, split=name)
        for name, rows in (("train", train_rows), ("validation", validation_rows))
    ]
    folder = config.folder / "training" / (run.fingerprint or run.run_id)

    def on_step(done: int, total: int, loss: float, tokens_per_second: float) -> None:
        console.progress(done, total, f"train  loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")

    def on_epoch(metrics: EpochMetrics) -> None:
        run.log_metrics(
            {
                "train_loss": metrics.train_loss,
                "val_loss": metrics.validation_loss,
                "learning_rate": metrics.learning_rate,
                "tokens_per_second": metrics.tokens_per_second,
            },
            step=metrics.epoch,
        )

    report = train(
        loaded.model, loaded.tokenizer, encoded[0], encoded[1], step, folder, report_epoch=on_epoch, report_step=on_step
    )
    mlflow.log_artifact(str(plot_losses(report.epochs, folder / "loss.png")), "plots")
    mlflow.log_table([{"event_id": e, "loss": loss} for e, loss in report.worst_validation], "worst_validation.json")
    return report


def _register(
    config: ResolvedConfig,
    run: StepRun,
    version: DatasetVersion,
    catalogue: Catalogue,
    base: BaseFiles,
    report: TrainingReport,
) -> RegisteredVersion:
    raise NotImplementedError


def _log_params(step: TrainConfig, version: DatasetVersion, base: BaseFiles) -> None:
    mlflow.log_params(
        {
            "dataset_version": version.name,
            "dataset_digest": version.digest,
            "learning_rate": step.lr,
            "fine_tuning_method": "lora",
            "base_sha256": base.sha256,
        }
    )


def _dataset_tags(version: DatasetVersion) -> dict[str, object]:
    return {"dataset_version": version.name, "dataset_digest": version.digest}


def _base_identity(name: str) -> object:
    folder = Path(name)
    if not folder.is_dir():
        return name
    return sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file())
