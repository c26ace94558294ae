"""Our training step beside TRL's `SFTTrainer`: the same base, rows and first adapter, in turn, in one process.

In: a base folder and the folder of a dataset version. Out: both on identical token sequences (tokens per CPU second,
wall time, loss), and TRL on JSON with ids, as its users would write it, beside our text (examples per CPU second); with
`--memory` the peak of a process of its own for each (Linux), with `--load` the CPU seconds of loading the base. TRL at
the settings that were its fastest here: single rows, fp32, nothing recomputed, loss on the targets alone by its own
chunked head. Ratios are medians over the steps, each beside TRL's time for the same rows.

Run: `pip install '.[benchmark]'`, then
`python -m benchmarks.training BASE DATASET [--rows 4] [--steps 4] [--threads 1] [--same-tokens | --memory | --load]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from planner.contracts.prompt import encode_prompt, encode_target
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from planner.decoding.base import BaseFiles, load_base
from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.batches import num_target_tokens
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows
from planner.training.fused_modules import fused
from planner.training.optimizer import build_optimizer, take_step
from planner.training.text import EncodedRow, encode_rows, text_rows

CONFIG = TrainConfig(model_base="benchmark", lr=1e-3)
OURS = {"ours, single rows": 1, "ours, packs of 512": 512, "ours, packs of 896": 896}
TRL = "TRL SFTTrainer"
Step = Callable[[Sequence[EncodedRow]], float]


@dataclass
class Times:
    """CPU and wall seconds and loss of each step."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("dataset")
    parser.add_argument("--rows", type=int, default=4, help="of an optimizer step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--same-tokens", action="store_true", help="the first table alone")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of times")
    parser.add_argument("--load", action="store_true", help="the base from its folder instead of training with it")
    parser.add_argument("--alone", help="run one step of one variant and print its peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if options.load:
        _load(options.base)
        return
    compact, as_json = _rows(options)
    if options.alone:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of reading the dataset
        _times(options, compact[: options.rows], [options.alone])
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 2**20)
        return
    if options.memory:
        _memory(options)
        return
    best, times = _same_tokens(options, compact)
    if not options.same_tokens:
        _end_to_end(options, compact, as_json, best, times)


def _same_tokens(options: argparse.Namespace, rows: Sequence[EncodedRow]) -> tuple[str, Times]:
    rates = [_matmul_rate()]
    found = _times(options, rows, [TRL, *OURS])
    rates.append(_matmul_rate())
    steps = [_of_step(rows, index, options.rows) for index in range(options.steps)]
    tokens, flops = [sum(row.num_tokens for row in step) for step in steps], _flops(options.base, steps)
    print(
        f"Identical tokens: {options.steps} steps of {options.rows} rows, {sum(tokens) / len(steps):,.0f} tokens each, "
        f"{options.threads} thread(s), matmul {max(rates) / 1e9:.0f} GFLOP per CPU second"
    )
    for name, times in found.items():
        speed = max(number / cpu for number, cpu in zip(tokens, times.cpu, strict=True))
        share = max(number / cpu for number, cpu in zip(flops, times.cpu, strict=True)) / max(rates)
        cpu, wall = _ratio(found[TRL].cpu, times.cpu), _ratio(found[TRL].wall, times.wall)
        losses = " ".join(f"{loss:.4f}" for loss in times.losses)
        print(f"  {name:22} {speed:6.0f} tokens/CPU s  x{cpu:.2f} CPU  "
              f"x{wall:.2f} wall  {share:.0%} of matmul  losses {losses}",
              flush=True)  # fmt: skip
    return min(((name, found[name]) for name in OURS), key=lambda item: min(item[1].cpu))


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast we are: the median over the steps, which were done in turn."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _load(base: str) -> None:
    files, seconds = BaseFiles(base, Path(base), "", "", ""), []
    for _ in range(5):
        started = time.process_time()
        loaded = load_base(files, device="cpu")
        seconds.append(time.process_time() - started)
        del loaded
    print(f"The base loads in {seconds[0]:.2f} CPU s the first time and {min(seconds):.2f} at best, imports apart")


def _memory(options: argparse.Namespace) -> None:
    print("Peak memory of a process of its own, base and libraries included")
    for name in (TRL, *OURS):
        command = [sys.executable, "-m", "benchmarks.training", options.base, options.dataset, "--alone", name]
        command += ["--rows", str(options.rows), "--steps", "1", "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {name:22} {float(done.stdout.split()[-1]):.2f} GiB", flush=True)


def _end_to_end(
    options: argparse.Namespace, compact: Sequence[EncodedRow], as_json: Sequence[EncodedRow], best: str, ours: Times
) -> None:
    theirs = _times(options, as_json, [TRL])[TRL]
    print("End to end: TRL on JSON with ids, ours on the rendered text, the same examples")
    for label, rows, times in ((f"{TRL}, JSON", as_json, theirs), (f"{best}, text", compact, ours)):
        length, cpu = sum(row.num_tokens for row in rows) / len(rows), min(times.cpu)
        ratio = min(theirs.cpu) / cpu
        print(f"  {label:28} {length:5.0f} tokens a row  {options.rows / cpu:6.2f} examples/CPU s  x{ratio:.2f}")


def _times(options: argparse.Namespace, rows: Sequence[EncodedRow], names: Sequence[str]) -> dict[str, Times]:
    """Each optimizer step by each variant in turn."""
    found = {name: Times() for name in names}
    with contextlib.ExitStack() as stack:
        steps = {name: stack.enter_context(_ours(options.base, most)) for name, most in OURS.items() if name in names}

        def others(index: int) -> None:
            for name, step in steps.items():
                _clock(found[name], lambda step=step: step(_of_step(rows, index, options.rows)))

        if TRL in names:
            _run_trl(options, rows, found[TRL], others)
        else:
            for index in range(len(rows) // options.rows):
                others(index)
    return found


@contextlib.contextmanager
def _ours(base: str, most_tokens: int) -> Iterator[Step]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with packed_attention(model), adapted(model, CONFIG) as peft_model, fused(peft_model):
        optimizer = build_optimizer(trainable(peft_model), CONFIG)
        peft_model.train()

        def step(rows: Sequence[EncodedRow]) -> float:
            total = backward_rows(peft_model, rows, micro_batch_tokens=most_tokens)
            take_step(optimizer, CONFIG.lr, CONFIG.max_grad_norm)
            return total / num_target_tokens(rows)

        yield step


def _run_trl(
    options: argparse.Namespace, rows: Sequence[EncodedRow], times: Times, others: Callable[[int], None]
) -> None:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class InTurn(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time(), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.cpu.append(time.process_time() - self.started[0])
            times.wall.append(time.perf_counter() - self.started[1])
            others(state.global_step - 1)

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    lora = LoraConfig(
        r=CONFIG.lora_r, lora_alpha=CONFIG.lora_alpha, target_modules=list(CONFIG.target_modules), task_type="CAUSAL_LM"
    )
    torch.manual_seed(CONFIG.seed)
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt_ids, *row.target_ids],
                "labels": [-100] * len(row.prompt_ids) + list(row.target_ids),
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, per_device_train_batch_size=1, gradient_accumulation_steps=options.rows,
            max_steps=len(rows) // options.rows, learning_rate=CONFIG.lr, lr_scheduler_type="constant",
            max_grad_norm=CONFIG.max_grad_norm, max_length=None, bf16=False, gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True}, logging_steps=1, report_to="none", save_strategy="no",
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(
            model=get_peft_model(model, lora), args=arguments, train_dataset=data, callbacks=[InTurn()],
            processing_class=AutoTokenizer.from_pretrained(options.base),
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
        times.losses.extend(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def _clock(times: Times, step: Callable[[], float]) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    times.losses.append(step())
    times.cpu.append(time.process_time() - cpu)
    times.wall.append(time.perf_counter() - wall)


def _of_step(rows: Sequence[EncodedRow], index: int, size: int) -> Sequence[EncodedRow]:
    return rows[index * size : (index + 1) * size]


def _flops(base: str, steps: Sequence[Sequence[EncodedRow]]) -> list[float]:
    """Forward and the gradient of the activations of each step; the base's own weights have no gradient."""
    with torch.device("meta"):
        from transformers import AutoConfig

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    head = model.get_output_embeddings().weight
    body = sum(w.numel() for name, w in model.named_parameters() if "embed" not in name and w is not head)
    return [
        4.0 * body * sum(row.num_tokens for row in rows) + 4.0 * head.numel() * num_target_tokens(rows)
        for rows in steps
    ]


def _matmul_rate() -> float:
    a, b = torch.randn(1024, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(20):
        started = time.process_time()
        for _ in range(4):
            a @ b
        best = max(best, 4 * 2 * 1024 * 576 * 1536 / (time.process_time() - started))
    return best


def _rows(options: argparse.Namespace) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """The same examples as our text and as JSON with ids."""
    version, most = open_version(options.dataset), options.rows * options.steps
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    texts = text_rows(iter_examples(version, split="train"), read_catalogue(version), most=most)
    chosen = {text.event_id for text in texts}
    examples = {e.event_id: e for e in iter_examples(version, split="train") if e.event_id in chosen}
    compact = encode_rows(tokenizer, texts, max_tokens=8192, max_overlong_share=0).rows
    as_json = []
    for text in texts:
        example = examples[text.event_id]
        prompt = json.dumps(example.request.to_dict()) + "\n"
        target = json.dumps(example.accepted_plan.to_dict())
        as_json.append(
            EncodedRow(text.event_id, tuple(encode_prompt(tokenizer, prompt)), tuple(encode_target(tokenizer, target)))
        )
    return list(compact), as_json


if __name__ == "__main__":
    main()
