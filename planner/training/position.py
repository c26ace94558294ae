"""Where a run stands, as one frozen value: what a checkpoint holds beside the tensors.

In: what a step or an epoch gave. Out: the next `Position`; the best epoch is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.training.batches import num_target_tokens
from planner.training.report import EpochMetrics, RowLoss
from planner.training.text import EncodedRow

NUM_WORST_ROWS = 10


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` optimizer steps are done, `index` of them in epoch `epoch` (1, 2, …).

    `loss_sum` and `num_target_tokens`, `num_tokens`, `seconds` are those of the epoch so far; `best_step` is the step
    of the checkpoint of the best epoch, 0 before there is one; `stale_epochs` counts epochs since then;
    `micro_batch_tokens` bounds a forward pass and was halved `num_halvings` times for want of memory.
    """

    step: int = 0
    epoch: int = 1
    index: int = 0
    loss_sum: float = 0.0
    num_target_tokens: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_epoch: int = 0
    best_loss: float | None = None
    stale_epochs: int = 0
    epochs: tuple[EpochMetrics, ...] = ()
    worst_rows: tuple[RowLoss, ...] = ()
    micro_batch_tokens: int = 0
    num_halvings: int = 0


def after_step(done: Position, rows: Sequence[EncodedRow], loss_sum: float, seconds: float) -> Position:
    """The position behind one optimizer step over `rows`."""
    return replace(
        done,
        step=done.step + 1,
        index=done.index + 1,
        loss_sum=done.loss_sum + loss_sum,
        num_target_tokens=done.num_target_tokens + num_target_tokens(rows),
        num_tokens=done.num_tokens + sum(row.num_tokens for row in rows),
        seconds=done.seconds + seconds,
    )


def after_epoch(done: Position, metrics: EpochMetrics, losses: Sequence[RowLoss]) -> Position:
    """The position at the start of the next epoch, with the best epoch so far (without validation: the last).

    Epoch 0, the untrained adapter, is never the best.
    """
    fresh = replace(
        done,
        epoch=metrics.epoch + 1,
        index=0,
        loss_sum=0.0,
        num_target_tokens=0,
        num_tokens=0,
        seconds=0.0,
        stale_epochs=done.stale_epochs + 1 if metrics.epoch else 0,
        epochs=(*done.epochs, metrics),
    )
    loss = metrics.validation_loss
    if metrics.epoch == 0 or (loss is not None and done.best_loss is not None and loss >= done.best_loss):
        return fresh
    worst = sorted(losses, key=lambda row: (-row.loss, row.event_id))[:NUM_WORST_ROWS]
    return replace(
        fresh,
        best_step=done.step,
        best_epoch=metrics.epoch,
        best_loss=loss,
        stale_epochs=0,
        worst_rows=tuple(worst),
    )


def mean_loss(losses: Sequence[RowLoss], rows: Sequence[EncodedRow]) -> float | None:
    """Mean over all target tokens with a loss, as in training; None without rows."""
    if not rows:
        return None
    weighted = sum(found.loss * len(row.scored) for found, row in zip(losses, rows, strict=True))
    return weighted / max(1, num_target_tokens(rows))
