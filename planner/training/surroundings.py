"""What surrounds a run: which run it is, that it is alone in its folder, and that it leaves the process as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from planner.contracts.errors import TrainingError
from planner.training.config import TrainConfig
from planner.training.disk import written_to
from planner.training.text import EncodedRows

# Options that may change between two starts of one run, because they change nothing that is learned.
_FREE = {
    "dataset",
    "model_name",
    "decide",
    "beam",
    "repeats",
    "max_prep_time_by_day",
    "embed_base",
    "checkpoints",
    "checkpoint_every",
    "num_threads",
    "sharding",
    "max_overlong_share",
    "memory_gib",
    "gradient_checkpointing",
}
_ROOM = Path(__file__).parent
# Modules of this room that change nothing that is learned; what is not named here counts.
_FREE_CODE = {"__init__", "__main__", "disk", "plot", "remote", "token_cache"}


def run_fingerprint(
    model: PreTrainedModel, config: TrainConfig, train_rows: EncodedRows, validation_rows: EncodedRows, base: str | None
) -> str:
    """SHA-256 of all that decides the result: code, options, rows, base weights (`base`: their digest, if known)."""
    facts = {
        "code": code_hash(),
        "config": config.model_dump(mode="json", exclude=_FREE),
        "train": train_rows.digest,
        "validation": validation_rows.digest,
        "base": base or weights_digest(model),
        "type": str(model.dtype),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """Over the code and the libraries that decide what a step learns and what a checkpoint holds."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__} {peft.__version__}".encode())
    for path in sorted(_ROOM.glob("*.py")):
        if path.stem not in _FREE_CODE:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 over the names, shapes and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder for the block.

    Raises:
        TrainingError: another process trains in it, or it cannot be written.
    """
    lock = FileLock(folder / ".lock")
    with written_to(folder, "The training's folder"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(
                f"Another process trains in {folder} right now. Wait for it, or stop it.", folder=folder
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def process_as_it_was(model: PreTrainedModel, num_threads: int | None) -> Iterator[None]:
    """Put random state, thread number and the model's mode back after the block."""
    threads, training = torch.get_num_threads(), model.training
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            if num_threads is not None:
                torch.set_num_threads(num_threads)
            yield
    finally:
        torch.set_num_threads(threads)
        model.train(training)
