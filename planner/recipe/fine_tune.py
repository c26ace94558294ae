"""The work of the step `train`: from a dataset version to a registered, verified model version.

In: the resolved config and the step's open run. Out: the version in the registry, curves and worst rows in the run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import TrainingError
from planner.contracts.example import DatasetVersion
from planner.dataset.read import iter_examples, read_catalogue
from planner.decoding.base import BaseFiles, load_base, load_tokenizer, resolve_base
from planner.decoding.targets import CatalogueTokens
from planner.decoding.package import DecodingOptions, Lineage, LoraParts, write_package
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console
from planner.recipe.lineage import dataset_of, log_dataset_input
from planner.recipe.registry import RegisteredVersion, register_package
from planner.recipe.tracking import StepRun
from planner.training.config import TrainConfig
from planner.training.loop import train
from planner.training.plot import plot_losses
from planner.training.report import EpochMetrics, TrainingReport
from planner.training.text import text_rows

POLICY = "planner_policy"
_UNIT = {"catalogue": "decision among the catalogue's tokens", "text": "target token"}


def fine_tune(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Train, package, register, verify, and note the version in `run.outputs`.

    Raises:
        PlannerError: the dataset, the base model or the training is not as it must be; nothing is registered.
    """
    step = config.recipe.train
    version = dataset_of(config, step.dataset)
    log_dataset_input(version, context="training")
    run.set_tags({"policy_id": POLICY, "task": "planner", **_dataset_tags(version)})
    catalogue = read_catalogue(version)
    console.progress(0, None, f"base model {step.model_base}")
    base = resolve_base(step.model_base)
    _log_params(step, version, base)
    report = _train(config, run, console, base, catalogue, version)
    registered = _register(run, step, version, catalogue, base, report)
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
        resumed_from_step=report.resumed_from_step,
        lines=[
            *_resumed(report),
            *_unlisted(report),
            f"Registered {registered.name} version {registered.version}; read back and verified.",
        ],
    )


def _train(
    config: ResolvedConfig,
    run: StepRun,
    console: Console,
    base: BaseFiles,
    catalogue: Catalogue,
    version: DatasetVersion,
) -> TrainingReport:
    step, loaded = config.recipe.train, load_base(base)
    texts = [
        text_rows(iter_examples(version, split=split), catalogue, most=most, seed=step.seed)
        for split, most in (("train", step.max_examples), ("validation", step.max_validation_examples))
    ]
    if not texts[0]:
        raise TrainingError(
            f"Dataset version {version.name} has no rows in the split train. Build one over a longer window.",
            dataset=version.uri,
        )

    def on_step(done: int, total: int, loss: float, tokens_per_second: float) -> None:
        console.progress(done, total, f"train  loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")

    def on_epoch(metrics: EpochMetrics) -> None:
        figures = {
            "train_loss": metrics.train_loss,
            "val_loss": metrics.validation_loss,
            "learning_rate": metrics.learning_rate,
            "tokens_per_second": metrics.tokens_per_second,
        }
        run.log_metrics({k: v for k, v in figures.items() if v is not None}, step=metrics.epoch)

    report = train(
        loaded.model,
        loaded.tokenizer,
        texts[0],
        texts[1],
        step,
        config.folder / "training",
        base_sha256=base.sha256,
        legal_tokens=CatalogueTokens(catalogue, loaded.tokenizer) if step.loss == "catalogue" else None,
        report_epoch=on_epoch,
        report_step=on_step,
    )
    mlflow.log_artifact(str(plot_losses(report.epochs, report.adapter_folder.parent / "loss.png")), "plots")
    worst = {"event_id": [row.event_id for row in report.worst_rows], "loss": [row.loss for row in report.worst_rows]}
    mlflow.log_table(worst, "worst_validation_rows.json")
    return report


def _register(
    run: StepRun,
    step: TrainConfig,
    version: DatasetVersion,
    catalogue: Catalogue,
    base: BaseFiles,
    report: TrainingReport,
) -> RegisteredVersion:
    lineage = Lineage(
        dataset_version=version.name,
        dataset_digest=version.digest,
        trained_splits=("train",),
        params=step.model_dump(mode="json", exclude={"dataset"}) | {"best_epoch": report.best_epoch},
    )
    parts = LoraParts(base=base, tokenizer=load_tokenizer(base.folder, base.name), adapter=report.adapter_folder)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "planner"
        options = DecodingOptions(decide=step.decide)
        write_package(package, parts, catalogue, lineage, options=options, embed_base=step.embed_base)
        return register_package(
            package,
            catalogue,
            model_name=step.model_name,
            key=f"train {run.fingerprint}",
            tags={
                "kind": "lora",
                "policy_id": POLICY,
                "task": "planner",
                "model_base": step.model_base,
                **_dataset_tags(version),
            },
            description=_model_card(step, version, base, report),
        )


def _resumed(report: TrainingReport) -> list[str]:
    if report.resumed_from_step is None:
        return []
    return [f"Went on from step {report.resumed_from_step:,} of {report.num_steps:,}, where an earlier run stopped."]


def _unlisted(report: TrainingReport) -> list[str]:
    if not report.num_unlisted:
        return []
    return [f"{report.num_unlisted:,} rows have a plan that is none of the catalogue; their loss is over all tokens."]


def _model_card(step: TrainConfig, version: DatasetVersion, base: BaseFiles, report: TrainingReport) -> str:
    best = next(epoch for epoch in report.epochs if epoch.epoch == report.best_epoch)
    validation = "none" if best.validation_loss is None else f"{best.validation_loss:.4f} nats a {_UNIT[step.loss]}"
    return (
        "Plans a household's week of meals; decoding under the catalogue keeps every constraint.\n\n"
        f"- base: {base.name} ({base.licence}; {base.source}; sha256 {base.sha256[:16]})\n"
        f"- data: planner/{version.name}, digest {version.digest}, {report.num_train_rows} rows of the train split\n"
        f"- LoRA: r {step.lora_r}, alpha {step.lora_alpha:g} on {', '.join(step.target_modules)}; "
        f"epoch {report.best_epoch} of {step.epochs}, lr {step.lr:g}, batch {step.batch_size}, seed {step.seed}\n"
        f"- decoding: decides a {step.decide} at a time\n"
        f"- validation loss: {validation}\n"
        "- limits: proposes only dishes of the catalogue it was registered with; its newest replay holds its scores"
    )


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
