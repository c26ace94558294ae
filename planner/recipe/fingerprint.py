"""What a step's result depends on, as one short text: code, configuration and inputs.

Content is hashed, never file times: an edited helper module counts, a `touch` does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.recipe.config import PROJECT

# Rooms whose code decides a step's result, and modules of other rooms that do.
ROOMS_OF_STEP: Mapping[str, tuple[str, ...]] = {
    "build_dataset": ("contracts", "dataset"),
    "train": ("contracts", "training", "decoding"),
    "evaluate": ("contracts", "decoding", "evaluation"),
    "promote": ("contracts", "promotion"),
}
MODULES_OF_STEP: Mapping[str, tuple[str, ...]] = {
    "build_dataset": ("recipe/build_dataset.py",),
    "train": (
        "recipe/train.py", "recipe/fine_tune.py", "recipe/training_log.py", "recipe/resumption.py",
        "recipe/s3_store.py", "dataset/read.py",
    ),
    "evaluate": (
        "recipe/evaluate.py", "recipe/workers.py", "dataset/read.py", "promotion/candidate.py", "promotion/results.py",
    ),
    "promote": ("recipe/promote.py",),
}  # fmt: skip
SHARED_CODE = ("recipe/lineage.py", "recipe/registry.py", "recipe/tracking.py", "promotion/registry.py")


def step_fingerprint(step: str, config: Mapping[str, Any], inputs: Mapping[str, Any], project: Path = PROJECT) -> str:
    """32 hex digits that change when the step's code, its pins, its configuration or its inputs change.

    Args:
        step: one of the recipe's steps.
        config: the step's resolved values, JSON types.
        inputs: what the step reads, by content (`{"dataset_digest": …}`), JSON types.
    """
    parts = {"code": code_hash(step, project), "config": config, "inputs": inputs}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code_hash(step: str, project: Path = PROJECT) -> str:
    """SHA-256 over the names and bytes of every source file that the step runs, and the project's pins."""
    rooms = project / "planner"
    files = {project / "pyproject.toml", *(rooms / name for name in (*SHARED_CODE, *MODULES_OF_STEP[step]))}
    for room in ROOMS_OF_STEP[step]:
        files |= {p for p in (rooms / room).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(project).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
