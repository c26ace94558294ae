"""Checkpoints that are whole or not there: tensors and figures under a manifest of hashes that is written last.

In: a `Checkpoint` (adapter, Adam's moments, where the run stands). Out: folders `step-000123`, of which the newest
whole one is found again after any kill. No pickle: safetensors and JSON alone. The order of rows, the learning rate and
the dropout are functions of (seed, epoch, step), so there is no other state to save.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from planner.contracts.errors import TrainingError
from planner.training.disk import written_to
from planner.training.position import Position
from planner.training.report import EpochMetrics, RowLoss

MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
FIGURES = "state.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A position with the tensors that belong to it, by name (`adapter/…`, `moment/…`, `square/…`)."""

    position: Position
    tensors: Mapping[str, torch.Tensor] = field(repr=False)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write one checkpoint and remove those that are no longer needed.

    Kept are the newest two and, for each of them, the best epoch's. A kill at any moment leaves those before whole.

    Raises:
        TrainingError: the disk is full or the folder cannot be written.
    """
    position = checkpoint.position
    target = _folder(folder, position.step)
    temporary = folder / f".{target.name}.part"
    try:
        with written_to(folder, f"The checkpoint of step {position.step:,}", step=position.step):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(dict(checkpoint.tensors), temporary / TENSORS)
            (temporary / FIGURES).write_text(json.dumps(asdict(position)), encoding="utf-8")
            _write_manifest(temporary)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            _sync(folder)
    except TrainingError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _remove_old(folder, position)
    return target


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole and whose best epoch's checkpoint is whole as well; None without one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        checkpoint = _read(path)
        if checkpoint is None:
            continue
        best = checkpoint.position.best_step
        if best in (0, checkpoint.position.step) or _read(_folder(folder, best)) is not None:
            return checkpoint
    return None


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step.

    Raises:
        TrainingError: it is missing or damaged.
    """
    checkpoint = _read(_folder(folder, step))
    if checkpoint is None:
        raise TrainingError(
            f"The checkpoint of step {step:,} in {folder.name} is missing or damaged. "
            "Run the same command again: it goes on from the newest one that is whole.",
            step=step,
        )
    return checkpoint


def is_whole(path: Path) -> bool:
    """Whether the folder of one checkpoint holds just what its manifest says."""
    return _read(path) is not None


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _write_manifest(folder: Path) -> None:
    hashes = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    temporary = folder / f"{MANIFEST}.part"
    temporary.write_text(json.dumps({"files": hashes}, indent=2), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    _sync(folder)


def _read(folder: Path) -> Checkpoint | None:
    """Read a checkpoint; None when a file is missing, is not what the manifest says, or is of another form."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if sorted(hashes) != [FIGURES, TENSORS]:
            return None
        for name, expected in hashes.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                return None
        values = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        position = replace(
            Position(**values),
            epochs=tuple(EpochMetrics(**epoch) for epoch in values["epochs"]),
            worst_rows=tuple(RowLoss(**row) for row in values["worst_rows"]),
        )
        return Checkpoint(position, load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _remove_old(folder: Path, position: Position) -> None:
    # A damaged checkpoint may stand ahead of a run that went on from an earlier one.
    last = _folder(folder, position.step).name
    paths = sorted((path for path in folder.glob("step-*") if path.name <= last), reverse=True)
    needed = {*paths[:KEEP], *(_folder(folder, _best_step(path)) for path in paths[:KEEP])}
    for path in (*(path for path in paths if path not in needed), *folder.glob(".step-*.part")):
        shutil.rmtree(path, ignore_errors=True)


def _best_step(path: Path) -> int:
    """The best epoch's step as a checkpoint of this run's own writing says, 0 if it cannot be read."""
    try:
        return int(json.loads((path / FIGURES).read_text(encoding="utf-8"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
