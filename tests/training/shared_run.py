"""Train the tiny base in as many processes as `accelerate launch` starts; the first prints JSON.

Arguments: base folder, working folder, `-` or `RANK:STEP`, where that process kills itself (SIGKILL), and the sharding.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from planner.contracts.errors import TrainingError
from planner.training import loop
from planner.training.config import TrainConfig
from planner.training.processes import current_processes
from planner.training.text import text_rows
from tests.tiny import tiny_catalogue, tiny_examples


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    base, work, moment, sharding = sys.argv[1:]
    rank = current_processes().rank
    real, steps = loop._Run._train_step, []

    def step(run, rows):
        real(run, rows)
        steps.append(rows)
        if moment == f"{rank}:{len(steps)}":
            os.kill(os.getpid(), signal.SIGKILL)

    loop._Run._train_step = step
    # 13 rows in batches of 4: the last step of an epoch has one row, so one of two processes has none.
    texts = text_rows(tiny_examples(20), tiny_catalogue())
    config = TrainConfig(
        model_base="tiny", epochs=2, lr=1e-2, batch_size=4, checkpoint_every=2, lora_r=4, seed=5, sharding=sharding,
        micro_batch_tokens=150,
    )  # fmt: skip
    losses, told = [], []
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        report = loop.train(
            model,
            AutoTokenizer.from_pretrained(base),
            texts[:13],
            texts[13:],
            config,
            Path(work),
            report_step=lambda done, total, loss, _: losses.append(loss),
            report_epoch=lambda epoch: told.append(epoch.epoch),
        )
    except TrainingError as error:
        sys.exit(f"TrainingError: {error}")
    result = {
        "rank": rank,
        "held": sum(getattr(w, "_local_tensor", w).numel() for w in model.model.layers.parameters()),
        "losses": losses,
        "told": told,
        "validation": [epoch.validation_loss for epoch in report.epochs],
        "train": [epoch.train_loss for epoch in report.epochs],
        "targets": [epoch.num_target_tokens for epoch in report.epochs],
        "worst": [row.event_id for row in report.worst_rows],
        "num_processes": report.num_processes,
        "resumed_from_step": report.resumed_from_step,
        "adapter": str(report.adapter_folder),
    }
    (Path(work) / f"result-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
