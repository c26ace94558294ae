"""The work of the step `train`: from a dataset version to a registered, verified model version.

In: the resolved config and the step's open run. Out: the version in the registry, curves and worst rows in the run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.tracking import MlflowClient

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import TrainingError
from planner.contracts.example import DatasetVersion
from planner.dataset.read import iter_examples, read_catalogue
from planner.decoding.base import BaseFiles, load_base, load_tokenizer, resolve_base
from planner.decoding.package import DecodingOptions, Lineage, LoraParts, write_package
from planner.decoding.targets import CatalogueTokens
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console
from planner.recipe.environment import is_forced
from planner.recipe.fingerprint import code_hash
from planner.recipe.lineage import dataset_of, log_dataset_input
from planner.recipe.registry import RegisteredVersion, register_package
from planner.recipe.s3_store import S3Store
from planner.recipe.tracking import StepRun
from planner.recipe.training_log import TrainingLog
from planner.training.config import TrainConfig
from planner.training.loop import train
from planner.training.processes import current_processes
from planner.training.quantized import load_quantized
from planner.training.remote import Store
from planner.training.report import TrainingReport
from planner.training.text import text_rows
from planner.training.token_cache import TokenCache

POLICY = "planner_policy"
_UNIT = {"catalogue": "decision among the catalogue's tokens", "text": "target token"}


def fine_tune(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Train, package, register, verify, and note the version in `run.outputs`.

    Under `accelerate launch` this is the first process's part; the others `follow`.

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
    _log_params(run, step, version, base)
    log = TrainingLog(run, console, step)
    report = _train(config, log, base, catalogue, version)
    log.finish(report)
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
            *_halved(report),
            *_resumed(report),
            *_unlisted(report),
            f"Registered {registered.name} version {registered.version}; read back and verified.",
        ],
    )


def follow(config: ResolvedConfig) -> None:
    """The part of every process of `accelerate launch` but the first: its share of each step's rows, nothing else."""
    step = config.recipe.train
    version = dataset_of(config, step.dataset)
    _train(config, None, resolve_base(step.model_base), read_catalogue(version), version)


def _train(
    config: ResolvedConfig, log: TrainingLog | None, base: BaseFiles, catalogue: Catalogue, version: DatasetVersion
) -> TrainingReport:
    step = config.recipe.train
    folder, store = _checkpoints(config)
    model, tokenizer = _load(step, base)
    texts = [
        text_rows(iter_examples(version, split=split), catalogue, most=most, seed=step.seed)
        for split, most in (("train", step.max_examples), ("validation", step.max_validation_examples))
    ]
    if not texts[0]:
        raise TrainingError(
            f"Dataset version {version.name} has no rows in the split train. Build one over a longer window.",
            dataset=version.uri,
        )
    tokens = CatalogueTokens(catalogue, tokenizer)  # whatever the loss: it finds titles that do not read back
    return train(
        model,
        tokenizer,
        texts[0],
        texts[1],
        step,
        folder,
        base_sha256=base.sha256,
        legal_tokens=tokens if step.loss == "catalogue" else None,
        store=store,
        token_cache=TokenCache(config.folder / "tokens", _token_key(step, version, base)),
        anew=is_forced("train"),
        report_epoch=log.epoch if log else None,
        report_step=log.step if log else None,
        report_memory=log.memory if log else None,
    )


def _token_key(step: TrainConfig, version: DatasetVersion, base: BaseFiles) -> str:
    """All that the token ids of a split depend on."""
    names = {"max_examples", "max_validation_examples", "seed", "max_tokens", "max_overlong_share", "loss"}
    return f"{code_hash('train')} {version.digest} {base.sha256} {step.model_dump_json(include=names)}"


def _load(step: TrainConfig, base: BaseFiles) -> tuple[Any, Any]:
    current_processes()  # gives each process a GPU of its own
    if step.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "train.device is cuda, and PyTorch finds no NVIDIA GPU. Run where there is one, or set it to auto or cpu."
        )
    if step.quantize_base:
        return load_quantized(base.folder), load_tokenizer(base.folder, base.name)
    loaded = load_base(base, device=step.device)
    return loaded.model, loaded.tokenizer


def _checkpoints(config: ResolvedConfig) -> tuple[Path, Store | None]:
    """The folder of the runs, and the store of their copies, found to work before anything relies on it."""
    wanted, folder = config.recipe.train.checkpoints, config.folder / "training"
    if wanted is None:
        return folder, None
    if not wanted.startswith("s3://"):
        return Path(wanted).expanduser().resolve(), None
    store = S3Store(wanted)
    store.probe()
    return folder, store


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
        options = DecodingOptions(
            repeats=step.repeats,
            decide=step.decide,
            beam=step.beam,
            max_prep_time_by_day=step.max_prep_time_by_day.by_day(),
        )
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


def _halved(report: TrainingReport) -> list[str]:
    if not report.num_halvings:
        return []
    tokens = report.memory.micro_batch_tokens
    return [f"The memory ran out; forward passes were halved {report.num_halvings} times, to {tokens:,} tokens."]


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
        f"epoch {report.best_epoch} of {step.epochs}, lr {step.lr:g}, batch {step.batch_size}, seed {step.seed}"
        f"{', on the base in 4 bits' if step.quantize_base else ''}\n"
        f"- decoding: decides a {step.decide} at a time{f', beam of {step.beam}' if step.beam > 1 else ''}\n"
        f"{_day_limits(step)}"
        f"- validation loss: {validation}\n"
        "- limits: proposes only dishes of the catalogue it was registered with"
    )


def _day_limits(step: TrainConfig) -> str:
    limits = step.max_prep_time_by_day.by_day()
    named = ", ".join(f"{day} {minutes}" for day, minutes in limits.items())
    return f"- most minutes by day: {named}; the others without a limit of their own\n" if limits else ""


def _log_params(run: StepRun, step: TrainConfig, version: DatasetVersion, base: BaseFiles) -> None:
    known = MlflowClient().get_run(run.run_id).data.params  # of a killed start: a param is never written again
    params = {
        "dataset_version": version.name,
        "dataset_digest": version.digest,
        "learning_rate": step.lr,
        "fine_tuning_method": "lora",
        "base_sha256": base.sha256,
    }
    mlflow.log_params({name: value for name, value in params.items() if name not in known})


def _dataset_tags(version: DatasetVersion) -> dict[str, object]:
    return {"dataset_version": version.name, "dataset_digest": version.digest}
