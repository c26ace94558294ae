"""Step `train`: fine-tune the base model on a dataset version and register the result.

In: a dataset version. Out: a version of the registered model, read back and checked, with its curves in the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.contracts.errors import ModelError
from planner.decoding.files import SUFFIXES, sha256_of_file
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console, StepResult
from planner.recipe.fingerprint import step_fingerprint
from planner.recipe.lineage import dataset_of, dataset_tags
from planner.recipe.parents import LAUNCHER
from planner.recipe.registry import read_back
from planner.recipe.resumption import same_run
from planner.recipe.tracking import StepRun

NEEDS_DATABASE = False
# One machine; accelerate calls it multi_gpu, on CPUs as well. Any free port.
_LAUNCH = "--multi_gpu --num_machines 1 --main_process_port 0 --mixed_precision no --dynamo_backend no".split()


def fingerprint(config: ResolvedConfig) -> str:
    """Changes with the step's code, its config, the dataset's bytes and a local base model's files."""
    step = config.recipe.train
    inputs = {"dataset_digest": dataset_of(config, step.dataset).digest, "base": _base_identity(step.model_base)}
    return step_fingerprint("train", step.model_dump(mode="json", exclude={"dataset"}), inputs)


def run(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Train, package, register, verify; in the run of a killed start of the same training, where there is one."""
    # Loads torch and transformers: seconds that a reused step does not have to wait for.
    from planner.recipe.fine_tune import fine_tune

    with same_run(config, run, tags_of) as taken:
        fine_tune(config, taken, console)


def share(config: ResolvedConfig) -> bool:
    """Go on as several processes where the options ask for them; True in one that only follows, once it is done.

    The first process is the one that works on with its MLflow run.
    """
    number = config.recipe.train.num_processes
    if number > 1 and "WORLD_SIZE" not in os.environ:
        command = [sys.executable, "-m", LAUNCHER, *_LAUNCH, "--num_processes", str(number), "-m", "steps.train"]
        os.environ["ACCELERATE_USE_CPU"] = str(not _has_gpu()).lower()
        os.execv(sys.executable, [*command, *sys.argv[1:]])
    if os.environ.get("RANK", "0") == "0":
        return False
    from planner.recipe.fine_tune import follow

    follow(config)
    return True


def is_whole(config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
    """Whether the registered version is still there with the same hashes."""
    try:
        found = read_back(outputs["model_name"], outputs["model_version"])
    except ModelError:
        return False
    return bool(found.package_sha256 == outputs["package_sha256"])


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


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _base_identity(name: str) -> object:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    # Each start of the step hashes them as well: half a second for 540 MB.
    return {p.name: sha256_of_file(p) for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES}
