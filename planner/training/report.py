"""What a training run hands back: figures and the folder of its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.training.memory import MemoryPlan


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch; epoch 0 is the untrained adapter, with a validation loss alone.

    Losses are nats a target token; `learning_rate` is that of the last step; `tokens_per_second` counts prompt and
    target tokens over the time spent in training steps; `seconds` holds the validation too.
    """

    epoch: int
    train_loss: float | None
    validation_loss: float | None
    learning_rate: float
    num_target_tokens: int
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class RowLoss:
    """A validation row and its loss, nats a target token."""

    event_id: str
    loss: float


@dataclass(frozen=True)
class TrainingReport:
    """A finished training run.

    `adapter_folder` is in PEFT's format, from the epoch `best_epoch`; `num_unlisted` are rows whose plan is none of the
    catalogue; `memory` is the plan with the forward passes of the end, after `num_halvings` for want of memory;
    `resumed_from_step` is the optimizer step of the checkpoint that the run went on from, None when it started anew;
    `seconds` is the time over all its starts.
    """

    adapter_folder: Path
    epochs: tuple[EpochMetrics, ...]
    best_epoch: int
    num_train_rows: int
    num_validation_rows: int
    num_overlong: int
    num_unlisted: int
    num_steps: int
    num_trainable: int
    num_processes: int
    memory: MemoryPlan
    num_halvings: int
    resumed_from_step: int | None
    stopped_early: bool
    seconds: float
    worst_rows: tuple[RowLoss, ...]
