"""The training loop: batch, loss, step, checkpoint, metrics.

In: a loaded base model with its tokenizer, rows of text, a `TrainConfig` and a folder. Out: a `TrainingReport` whose
folder holds the adapter of the best epoch. Run again after a kill with the same input and folder, it goes on from the
newest whole checkpoint and ends, on a CPU, with the same bytes.

The loss of a step is the sum over all its target tokens divided by their number, however the rows are split over
forward passes; prompt tokens have no loss; no row is padded or cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from planner.contracts.errors import TrainingError
from planner.contracts.prompt import Tokenizer
from planner.training.adapter import adapted, load_adapter, read_adapter, trainable, write_adapter
from planner.training.attention import packed_attention
from planner.training.batches import epoch_order, num_target_tokens, rows_of_step, steps_per_epoch
from planner.training.checkpoint import Checkpoint, Position, newest_checkpoint, read_checkpoint, write_checkpoint
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows, row_losses
from planner.training.optimizer import (
    build_optimizer,
    learning_rate_at,
    load_optimizer_tensors,
    optimizer_tensors,
    take_step,
)
from planner.training.report import EpochMetrics, RowLoss, TrainingReport
from planner.training.surroundings import alone_in, process_as_it_was, run_fingerprint
from planner.training.text import EncodedRow, EncodedRows, LegalTokens, TextRow, encode_rows

ReportEpoch = Callable[[EpochMetrics], None]
ReportStep = Callable[[int, int, float, float], None]
NUM_WORST_ROWS = 10
_ADAPTER = "adapter/"


def train(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    train_texts: Sequence[TextRow],
    validation_texts: Sequence[TextRow],
    config: TrainConfig,
    folder: Path,
    *,
    base_sha256: str | None = None,
    legal_tokens: LegalTokens | None = None,
    report_epoch: ReportEpoch | None = None,
    report_step: ReportStep | None = None,
) -> TrainingReport:
    """Fine-tune a LoRA adapter on the accepted plans and keep the epoch with the lowest validation loss.

    Args:
        model: the base, on its device and in its type; it comes back without adapter, weights unchanged and frozen.
        tokenizer: the base's own.
        train_texts: of `planner.training.text.text_rows`.
        validation_texts: likewise; may be empty, then the last epoch is kept.
        config: the options.
        folder: gets a folder of its own for each run, named by a fingerprint of the base, the rows and the options,
            with `checkpoints/` and `adapter/`: different runs never mix.
        base_sha256: digest of the base's weights; computed from the model when not given.
        legal_tokens: what may stand at each place of a plan: the loss is then among those tokens alone, as the decoder
            chooses. None takes the whole vocabulary.
        report_epoch: called after each epoch, 0 first; a start after a kill may call it again for the last one.
        report_step: called as (optimizer steps done, in all, loss of this step, tokens per second of this epoch).

    Raises:
        TrainingError: no training rows; too many overlong rows; a base without the target modules; a loss that is
            not a number; no room for a checkpoint; another process trains in this folder.
    """
    train_rows = _encoded(tokenizer, train_texts, config, "train", legal_tokens)
    validation_rows = _encoded(tokenizer, validation_texts, config, "validation", legal_tokens)
    fingerprint = run_fingerprint(model, config, train_rows, validation_rows, base_sha256)
    run_folder = folder / fingerprint[:16]
    with ExitStack() as stack:
        stack.enter_context(alone_in(run_folder))
        stack.enter_context(process_as_it_was(model, config.num_threads))
        stack.enter_context(packed_attention(model))
        peft_model = stack.enter_context(adapted(model, config))
        run = _Run(peft_model, config, train_rows, validation_rows, run_folder, report_epoch, report_step)
        resumed_from = run.resume()
        run.go_on()
        return run.finish(resumed_from)


class _Run:
    """One run: the model with its optimizer, and `position`, which says where it stands."""

    def __init__(
        self,
        peft_model: PeftModel,
        config: TrainConfig,
        train_rows: EncodedRows,
        validation_rows: EncodedRows,
        folder: Path,
        report_epoch: ReportEpoch | None,
        report_step: ReportStep | None,
    ) -> None:
        self.peft_model, self.config, self.folder = peft_model, config, folder
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.report_epoch, self.report_step = report_epoch, report_step
        self.weights = trainable(peft_model)
        self.optimizer = build_optimizer(self.weights, config)
        self.steps_in_epoch = steps_per_epoch(len(train_rows.rows), config.batch_size)
        self.num_steps = config.epochs * self.steps_in_epoch
        self.position = Position()

    def go_on(self) -> None:
        """Train from `position` to the end."""
        if not self.position.epochs:
            self._end_epoch(0)
        while self.position.epoch <= self.config.epochs and not self._stopped_early():
            epoch = self.position.epoch
            order = epoch_order(len(self.train_rows.rows), seed=self.config.seed, epoch=epoch)
            for index in range(self.position.index, self.steps_in_epoch):
                rows = rows_of_step(self.train_rows.rows, order, index, self.config.batch_size)
                self._train_step(rows)
                last = index + 1 == self.steps_in_epoch
                if not last and self.position.step % self.config.checkpoint_every == 0:
                    self._write_checkpoint()
            self._end_epoch(epoch)

    def _train_step(self, rows: Sequence[EncodedRow]) -> None:
        """One optimizer step; the dropout is a function of (seed, step), so there is no random state to save."""
        started, before = time.perf_counter(), self.position
        torch.manual_seed(_step_seed(self.config.seed, before.step))
        self.peft_model.train()
        loss_sum = backward_rows(self.peft_model, rows, micro_batch_tokens=self.config.micro_batch_tokens)
        learning_rate = learning_rate_at(before.step, self.num_steps, self.config)
        norm = take_step(self.optimizer, learning_rate, self.config.max_grad_norm)
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise self._not_a_number(rows, loss_sum, norm)
        seconds = time.perf_counter() - started
        self.position = replace(
            before,
            step=before.step + 1,
            index=before.index + 1,
            loss_sum=before.loss_sum + loss_sum,
            num_target_tokens=before.num_target_tokens + num_target_tokens(rows),
            num_tokens=before.num_tokens + sum(row.num_tokens for row in rows),
            seconds=before.seconds + seconds,
        )
        if self.report_step is not None:
            done = self.position
            self.report_step(
                done.step, self.num_steps, loss_sum / num_target_tokens(rows), done.num_tokens / done.seconds
            )

    def _end_epoch(self, epoch: int) -> None:
        """Score the validation rows, report the epoch, move on to the next one and write a checkpoint."""
        started, done = time.perf_counter(), self.position
        losses = row_losses(
            self.peft_model, self.validation_rows.rows, micro_batch_tokens=self.config.micro_batch_tokens
        )
        validation_loss = _mean_loss(losses, self.validation_rows.rows)
        if validation_loss is not None and not math.isfinite(validation_loss):
            raise self._not_a_number((), validation_loss, 0.0)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=done.loss_sum / done.num_target_tokens if epoch else None,
            validation_loss=validation_loss,
            learning_rate=learning_rate_at(done.step - 1, self.num_steps, self.config) if epoch else 0.0,
            num_target_tokens=done.num_target_tokens,
            tokens_per_second=done.num_tokens / done.seconds if epoch else 0.0,
            seconds=done.seconds + time.perf_counter() - started,
        )
        self.position = _after_epoch(done, metrics, losses)
        if self.report_epoch is not None:
            self.report_epoch(metrics)
        self._write_checkpoint()

    def _stopped_early(self) -> bool:
        return self.config.patience is not None and self.position.stale_epochs >= self.config.patience

    def _write_checkpoint(self) -> None:
        tensors = {_ADAPTER + name: weight for name, weight in read_adapter(self.peft_model).items()}
        tensors |= optimizer_tensors(self.optimizer, self.weights)
        write_checkpoint(self.folder / "checkpoints", Checkpoint(self.position, tensors))

    def resume(self) -> int | None:
        """Go back to the newest whole checkpoint; returns its step, None without one."""
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return None
        self.position = checkpoint.position
        load_adapter(self.peft_model, _adapter_of(checkpoint))
        load_optimizer_tensors(self.optimizer, self.weights, checkpoint.tensors, checkpoint.position.step)
        return checkpoint.position.step

    def finish(self, resumed_from: int | None) -> TrainingReport:
        """Write the best epoch's adapter and say what was done."""
        done = self.position
        best = read_checkpoint(self.folder / "checkpoints", done.best_step)
        adapter_folder = self.folder / "adapter"
        write_adapter(adapter_folder, _adapter_of(best), self.peft_model, self.config.model_base)
        return TrainingReport(
            adapter_folder=adapter_folder,
            epochs=done.epochs,
            best_epoch=done.best_epoch,
            num_train_rows=len(self.train_rows.rows),
            num_validation_rows=len(self.validation_rows.rows),
            num_overlong=self.train_rows.num_overlong + self.validation_rows.num_overlong,
            num_unlisted=self.train_rows.num_unlisted + self.validation_rows.num_unlisted,
            num_steps=done.step,
            num_trainable=sum(weight.numel() for weight in self.weights.values()),
            resumed_from_step=resumed_from,
            stopped_early=done.epoch <= self.config.epochs,
            seconds=sum(epoch.seconds for epoch in done.epochs),
            worst_rows=done.worst_rows,
        )

    def _not_a_number(self, rows: Sequence[EncodedRow], loss: float, norm: float) -> TrainingError:
        done = self.position
        events = ", ".join(row.event_id for row in rows[:8]) or "the validation rows"
        return TrainingError(
            f"The loss is no longer a number at step {done.step + 1:,} of {self.num_steps:,}, epoch {done.epoch} "
            f"(loss {loss}, gradient norm {norm}; {events}). The last good checkpoint is kept. Lower train.lr.",
            step=done.step + 1,
            epoch=done.epoch,
            event_ids=tuple(row.event_id for row in rows),
            folder=self.folder,
        )


def _encoded(
    tokenizer: Tokenizer, texts: Sequence[TextRow], config: TrainConfig, split: str, legal: LegalTokens | None
) -> EncodedRows:
    encoded = encode_rows(
        tokenizer,
        texts,
        max_tokens=config.max_tokens,
        max_overlong_share=config.max_overlong_share,
        split=split,
        legal_tokens=legal,
    )
    if split == "train" and not encoded.rows:
        raise TrainingError(
            f"There are no rows to train on: {len(texts)} in the train split, {encoded.num_overlong} of them too long. "
            "Build the dataset over a longer window, or raise train.max_tokens.",
            num_overlong=encoded.num_overlong,
        )
    return encoded


def _after_epoch(done: Position, metrics: EpochMetrics, losses: Sequence[RowLoss]) -> Position:
    """The position at the start of the next epoch, with the best epoch so far (without validation: the last)."""
    fresh = Position(
        step=done.step,
        epoch=metrics.epoch + 1,
        best_step=done.best_step,
        best_epoch=done.best_epoch,
        best_loss=done.best_loss,
        stale_epochs=done.stale_epochs + 1,
        epochs=(*done.epochs, metrics),
        worst_rows=done.worst_rows,
    )
    loss = metrics.validation_loss
    if metrics.epoch == 0:
        return replace(fresh, stale_epochs=0)
    if loss is not None and done.best_loss is not None and loss >= done.best_loss:
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


def _mean_loss(losses: Sequence[RowLoss], rows: Sequence[EncodedRow]) -> float | None:
    """Mean over all target tokens, as in training; None without rows."""
    if not rows:
        return None
    weighted = sum(found.loss * len(row.scored) for found, row in zip(losses, rows, strict=True))
    return weighted / num_target_tokens(rows)


def _adapter_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(_ADAPTER): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_ADAPTER)
    }


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(sha256(f"step:{seed}:{step}".encode()).digest()[:8], "big") >> 1
