"""Train in forked processes that kill themselves (SIGKILL) at a given moment, then run again; prints JSON.

Arguments: base folder, working folder, and per run a comma-separated list of moments, one a start: `step:3` (after
optimizer step 3), `sync:4` (at the fourth fsync, in a checkpoint's write), `replace:2` (before the second rename),
`epoch:1` (after epoch 1 is scored, before its checkpoint). After the last moment the run is started once more and
left alone. One thread, so that forking is safe. With an `s3://` address in `CHECKPOINTS` there are `put:3` and
`delete:1` (before the third put or first delete of a start) as well, and every start finds an empty disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from planner.recipe.s3_store import S3Store
from planner.training import checkpoint
from planner.training.config import TrainConfig
from planner.training.loop import train
from planner.training.text import text_rows
from tests.tiny import tiny_catalogue, tiny_examples


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    base, work, *runs = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    print(json.dumps({run: _run(model, tokenizer, Path(work) / str(i), run) for i, run in enumerate(runs)}))


def _run(model, tokenizer, folder: Path, moments: str) -> dict:
    for moment in [*filter(None, moments.split(",")), ""]:
        if "CHECKPOINTS" in os.environ:
            shutil.rmtree(folder, ignore_errors=True)
        child = os.fork()
        if child == 0:
            _train(model, tokenizer, folder, moment)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed if moment else status == 0, (moments, moment, status)
    return json.loads((folder / "result.json").read_text())


def _train(model, tokenizer, folder: Path, moment: str) -> None:
    kind, _, number = moment.partition(":")
    seen = dict.fromkeys(("sync", "replace", "step", "epoch", "put", "delete"), 0)

    def count(name: str) -> None:
        seen[name] += 1
        if name == kind and seen[name] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    sync, replace = checkpoint._sync, os.replace
    checkpoint._sync = lambda path: (count("sync"), sync(path))
    checkpoint.os.replace = lambda a, b: (count("replace"), replace(a, b))
    store = None
    if "CHECKPOINTS" in os.environ:
        store = S3Store(f"{os.environ['CHECKPOINTS']}/{folder.name}")
        put, delete = store.put, store.delete
        store.put = lambda name, content: (count("put"), put(name, content))
        store.delete = lambda name: (count("delete"), delete(name))
    texts = text_rows(tiny_examples(20), tiny_catalogue())
    config = TrainConfig(
        model_base="tiny", epochs=3, lr=1e-2, batch_size=3, checkpoint_every=2, lora_r=4, lora_dropout=0.2, seed=5
    )
    report = train(
        model,
        tokenizer,
        texts[:14],
        texts[14:],
        config,
        folder,
        store=store,
        report_step=lambda *_: count("step"),
        report_epoch=lambda _: count("epoch"),
    )
    result = {
        "adapter": hashlib.sha256((report.adapter_folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "losses": [[epoch.train_loss, epoch.validation_loss] for epoch in report.epochs],
        "best_epoch": report.best_epoch,
        "worst": [row.event_id for row in report.worst_rows],
        "num_steps": report.num_steps,
        "resumed_from_step": report.resumed_from_step,
        "left": sorted(path.name for path in (report.adapter_folder.parent / "checkpoints").iterdir()),
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
