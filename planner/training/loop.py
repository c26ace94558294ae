"""The training loop: batch, loss, step, checkpoint, metrics.

In: a loaded base model with its tokenizer, rows of text, a `TrainConfig` and a folder. Out: a `TrainingReport` whose
folder holds the adapter of the best epoch. Run again after a kill with the same input and folder, it goes on from the
newest whole checkpoint and ends, on a CPU, with the same bytes.

The loss of a step is the sum over all its target tokens divided by their number, however the rows are split over
forward passes and processes; prompt tokens have no loss; no row is padded or cut.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from planner.contracts.errors import TrainingError
from planner.contracts.prompt import Tokenizer
from planner.training.adapter import (
    adapted,
    adapter_of,
    adapter_tensors,
    load_adapter,
    trainable,
    write_adapter,
)
from planner.training.attention import packed_attention
from planner.training.batches import (
    epoch_order,
    num_target_tokens,
    pack_rows,
    rows_of_step,
    step_seed,
    steps_per_epoch,
)
from planner.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint
from planner.training.config import TrainConfig
from planner.training.disk import written_to
from planner.training.forward import backward_rows, row_losses
from planner.training.fused_modules import fused
from planner.training.memory import MemoryPlan, activations_recomputed, plan_for, smaller
from planner.training.optimizer import (
    build_optimizer,
    learning_rate_at,
    load_optimizer_tensors,
    optimizer_tensors,
    take_step,
)
from planner.training.position import Position, after_epoch, after_step, mean_loss
from planner.training.processes import Processes, current_processes
from planner.training.remote import Store, pull, push
from planner.training.report import EpochMetrics, RowLoss, TrainingReport
from planner.training.sharding import idle_rows, out_of_memory_together, shard_layers
from planner.training.surroundings import alone_in, process_as_it_was, run_fingerprint
from planner.training.text import EncodedRow, EncodedRows, LegalTokens, TextRow
from planner.training.token_cache import TokenCache, encoded_splits

ReportEpoch = Callable[[EpochMetrics], None]
ReportStep = Callable[[int, int, float, float], None]
ReportMemory = Callable[[MemoryPlan], None]
T = TypeVar("T")


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
    store: Store | None = None,
    token_cache: TokenCache | None = None,
    anew: bool = False,
    report_epoch: ReportEpoch | None = None,
    report_step: ReportStep | None = None,
    report_memory: ReportMemory | None = None,
) -> TrainingReport:
    """Fine-tune a LoRA adapter on the accepted plans and keep the epoch with the lowest validation loss.

    Under `accelerate launch` every process calls this with the same input; the first alone writes and reports.

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
        store: holds copies of the checkpoints, so that another machine can go on.
        token_cache: keeps the encoded rows for the next start; its key must name what the texts came from.
        anew: train once more what was trained to its end before; what was broken off goes on all the same.
        report_epoch: called after each epoch, 0 first; a start after a kill may call it again for the last one.
        report_step: called as (optimizer steps done, in all, loss of this step, tokens per second of this epoch).
        report_memory: called before the start, and again whenever the forward passes had to shrink.

    Raises:
        TrainingError: no training rows; too many overlong rows; a base without the target modules; a loss that is
            not a number; no room in memory or for a checkpoint; another process trains in this folder, or one of this
            run's own died.
    """
    train_rows, validation_rows = encoded_splits(
        tokenizer, train_texts, validation_texts, config, legal_tokens=legal_tokens, cache=token_cache
    )
    fingerprint = run_fingerprint(model, config, train_rows, validation_rows, base_sha256)
    run_folder, processes = folder / fingerprint[:16], current_processes()
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(alone_in(run_folder))
        stack.enter_context(process_as_it_was(model, config.num_threads))
        longest = max(row.num_tokens for row in (*train_rows.rows, *validation_rows.rows))
        memory = plan_for(model, config, longest=longest, num_processes=processes.count)
        stack.enter_context(packed_attention(model))
        peft_model = stack.enter_context(adapted(model, config))
        if config.sharding == "fsdp" and processes.count > 1:
            shard_layers(peft_model, processes)
        stack.enter_context(fused(peft_model))
        stack.enter_context(activations_recomputed(model, memory.gradient_checkpointing))
        run = _Run(
            peft_model, config, train_rows, validation_rows, run_folder, memory, processes, store,
            _Reports(report_step, report_epoch, report_memory) if processes.is_first else _Reports(),
        )  # fmt: skip
        resumed_from = run.resume(anew=anew)
        run.go_on()
        return run.finish(resumed_from)


@dataclass(frozen=True)
class _Reports:
    """Whom to tell; nobody where None."""

    step: ReportStep | None = None
    epoch: ReportEpoch | None = None
    memory: ReportMemory | None = None


class _Run:
    """One run: the model with its optimizer, and `position`, which says where it stands."""

    def __init__(
        self,
        peft_model: PeftModel,
        config: TrainConfig,
        train_rows: EncodedRows,
        validation_rows: EncodedRows,
        folder: Path,
        memory: MemoryPlan,
        processes: Processes,
        store: Store | None,
        reports: _Reports,
    ) -> None:
        self.peft_model, self.config, self.folder = peft_model, config, folder
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.memory, self.processes, self.store, self.reports = memory, processes, store, reports
        self.weights = trainable(peft_model)
        self.optimizer = build_optimizer(self.weights, config)
        self.steps_in_epoch = steps_per_epoch(len(train_rows.rows), config.batch_size)
        self.num_steps = config.epochs * self.steps_in_epoch
        self.position = Position(micro_batch_tokens=memory.micro_batch_tokens)

    def go_on(self) -> None:
        """Train from `position` to the end."""
        self._report_memory()
        if not self.position.epochs:
            self._end_epoch(0)
        while not self._is_done(self.position):
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
        """One optimizer step over the rows of all processes."""
        started, step = time.perf_counter(), self.position.step
        mine, num_targets = self.processes.share(rows), num_target_tokens(rows)
        self.peft_model.train()

        def backward(most_tokens: int) -> float:
            # The dropout is a function of (seed, step, process), so there is no random state to save.
            torch.manual_seed(step_seed(self.config.seed, step, self.processes.rank))
            self.optimizer.zero_grad(set_to_none=True)
            return backward_rows(
                self.peft_model,
                mine,
                micro_batch_tokens=most_tokens,
                num_targets=num_targets,
                idle=self._idle(rows, most_tokens),
            )

        loss_sum = self.processes.sum_step(self.weights.values(), self._within_memory(backward, mine))
        learning_rate = learning_rate_at(step, self.num_steps, self.config)
        norm = take_step(self.optimizer, learning_rate, self.config.max_grad_norm)
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise self._not_a_number(rows, loss_sum, norm)
        done = self.position = after_step(self.position, rows, loss_sum, time.perf_counter() - started)
        if self.reports.step is not None:
            self.reports.step(done.step, self.num_steps, loss_sum / max(1, num_targets), done.num_tokens / done.seconds)

    def _idle(self, rows: Sequence[EncodedRow], most_tokens: int) -> list[EncodedRow]:
        """The rows that keep this process in step with the others where they gather the base's layers together."""
        if self.config.sharding == "none" or not rows:
            return []
        return idle_rows(rows, self.processes, most_tokens=most_tokens)

    def _within_memory(self, work: Callable[[int], T], rows: Sequence[EncodedRow]) -> T:
        """Do the work on the rows; where the device's memory ends, again from its start with half the tokens a pass."""
        while True:
            tokens = self.position.micro_batch_tokens
            try:
                return work(tokens)
            except torch.OutOfMemoryError as error:
                if self.config.sharding == "fsdp" and self.processes.count > 1:
                    raise out_of_memory_together(tokens) from error
                reason = str(error).partition(". ")[0][:120]  # the error itself would keep tensors alive
            torch.cuda.empty_cache()
            lengths = [pack.lengths for pack in pack_rows(rows, most_tokens=tokens)]
            self.position = replace(
                self.position,
                micro_batch_tokens=smaller(tokens, lengths, reason),
                num_halvings=self.position.num_halvings + 1,
            )
            self._report_memory()

    def _end_epoch(self, epoch: int) -> None:
        """Score the validation rows, report the epoch, move on to the next one and write a checkpoint."""
        started, rows = time.perf_counter(), self.validation_rows.rows
        mine = self.processes.share(rows)

        def score(most: int) -> list[RowLoss]:
            return row_losses(self.peft_model, mine, micro_batch_tokens=most, idle=self._idle(rows, most))

        shared = self._within_memory(score, mine)
        losses, done = self.processes.gather(shared), self.position
        validation_loss = mean_loss(losses, rows)
        if validation_loss is not None and not math.isfinite(validation_loss):
            raise self._not_a_number((), validation_loss, 0.0)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=done.loss_sum / max(1, done.num_target_tokens) if epoch else None,
            validation_loss=validation_loss,
            learning_rate=learning_rate_at(done.step - 1, self.num_steps, self.config) if epoch else 0.0,
            num_target_tokens=done.num_target_tokens,
            tokens_per_second=done.num_tokens / done.seconds if epoch else 0.0,
            seconds=done.seconds + time.perf_counter() - started,
        )
        self.position = after_epoch(done, metrics, losses)
        if self.reports.epoch is not None:
            self.reports.epoch(metrics)
        self._write_checkpoint()

    def _is_done(self, position: Position) -> bool:
        patience = self.config.patience
        return position.epoch > self.config.epochs or (patience is not None and position.stale_epochs >= patience)

    def _write_checkpoint(self) -> None:
        if not self.processes.is_first:
            return
        tensors = adapter_tensors(self.peft_model) | optimizer_tensors(self.optimizer, self.weights)
        write_checkpoint(self.folder / "checkpoints", Checkpoint(self.position, tensors))
        if self.store is not None:
            push(self.store, self.folder.name, self.folder / "checkpoints")

    def resume(self, *, anew: bool) -> int | None:
        """Go back to the newest whole checkpoint; returns its step, None without one or where all begins anew."""
        checkpoint = self.processes.from_first(partial(self._newest, anew=anew))
        if checkpoint is None:
            return None
        tokens = min(checkpoint.position.micro_batch_tokens, self.memory.micro_batch_tokens)
        self.position = replace(checkpoint.position, micro_batch_tokens=tokens)
        load_adapter(self.peft_model, adapter_of(checkpoint.tensors))
        load_optimizer_tensors(self.optimizer, self.weights, checkpoint.tensors, checkpoint.position.step)
        return checkpoint.position.step

    def _newest(self, *, anew: bool) -> Checkpoint | None:
        folder = self.folder / "checkpoints"
        if self.store is not None:
            pull(self.store, self.folder.name, folder)
        newest = newest_checkpoint(folder)
        if newest is None or not (anew and self._is_done(newest.position)):
            return newest
        with written_to(folder, "The new start"):
            shutil.rmtree(folder)  # or a kill would be followed by what lay ahead, and not by what was done since
        return None

    def finish(self, resumed_from: int | None) -> TrainingReport:
        """Write the best epoch's adapter and say what was done."""
        done, adapter_folder = self.position, self.folder / "adapter"
        if self.processes.is_first:
            best = read_checkpoint(self.folder / "checkpoints", done.best_step)
            write_adapter(adapter_folder, adapter_of(best.tensors), self.peft_model, self.config.model_base)
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
            num_processes=self.processes.count,
            memory=replace(self.memory, micro_batch_tokens=done.micro_batch_tokens),
            num_halvings=done.num_halvings,
            resumed_from_step=resumed_from,
            stopped_early=done.epoch <= self.config.epochs,
            seconds=sum(epoch.seconds for epoch in done.epochs),
            worst_rows=done.worst_rows,
        )

    def _report_memory(self) -> None:
        if self.reports.memory is not None:
            self.reports.memory(replace(self.memory, micro_batch_tokens=self.position.micro_batch_tokens))

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
