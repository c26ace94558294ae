"""Training step of this project against a plain PEFT loop (single rows, all logits), alternating, in CPU seconds.

In: a base folder, and a pickle of (catalogue, examples) or nothing (then synthetic rows of 158 + 42 tokens).
Out: a line per variant: tokens per CPU second, ratio to the plain loop, loss, and the share of the matmul rate that the
step's model FLOPs reach. Run: `python -m benchmarks.training BASE_FOLDER [EXAMPLES.pkl] [--rows 8] [--threads 1]`.
"""

from __future__ import annotations

import argparse
import pickle
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from planner.training.adapter import adapted
from planner.training.attention import packed_attention
from planner.training.batches import num_target_tokens
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows
from planner.training.text import EncodedRow, encode_rows, text_rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("examples", nargs="?")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    rows = _rows(options)
    num_tokens = sum(row.num_tokens for row in rows)
    body = sum(w.numel() for name, w in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    # Forward and the gradient of the activations; the base's own weights have no gradient.
    flops = 4 * body * num_tokens + 4 * model.get_input_embeddings().weight.numel() * num_target_tokens(rows)

    variants = {
        "plain PEFT, single rows, all logits": lambda m: _plain(m, rows),
        "ours, single rows": lambda m: backward_rows(m, rows, micro_batch_tokens=1),
        "ours, packs of 1024": lambda m: backward_rows(m, rows, micro_batch_tokens=1024),
        "ours, packs of 2048": lambda m: backward_rows(m, rows, micro_batch_tokens=2048),
    }
    best: dict[str, float] = {}
    losses = {}
    rate = 0.0
    with adapted(model, TrainConfig()) as peft_model:
        for _ in range(options.repeats):
            rate = max(rate, _matmul_rate())
            for name, step in variants.items():
                peft_model.zero_grad()
                if name.startswith("plain"):
                    seconds, losses[name] = _cpu_seconds(step, peft_model)
                else:
                    with packed_attention(model):
                        seconds, losses[name] = _cpu_seconds(step, peft_model)
                best[name] = min(seconds, best.get(name, seconds))
    reference = best["plain PEFT, single rows, all logits"]
    print(f"{len(rows)} rows, {num_tokens} tokens, {options.threads} threads, matmul {rate / 1e9:.0f} GFLOP per CPU s")
    for name, seconds in best.items():
        share = flops / seconds / rate
        print(f"{name:36} {num_tokens / seconds:6.0f} tokens/CPU s  x{reference / seconds:.2f}  "
              f"loss {losses[name] / num_target_tokens(rows):.5f}  {share:.0%} of matmul")  # fmt: skip


def _plain(peft_model, rows) -> float:
    total = 0.0
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.target_ids])
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        loss = peft_model(input_ids=ids, labels=labels, use_cache=False).loss * len(row.target_ids)
        (loss / num_target_tokens(rows)).backward()
        total += loss.item()
    return total


def _cpu_seconds(step, peft_model) -> tuple[float, float]:
    started = time.process_time()
    loss = step(peft_model)
    return time.process_time() - started, loss


def _matmul_rate() -> float:
    a, b = torch.randn(1024, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(20):
        started = time.process_time()
        for _ in range(4):
            a @ b
        best = max(best, 4 * 2 * 1024 * 576 * 1536 / (time.process_time() - started))
    return best


def _rows(options) -> list[EncodedRow]:
    if options.examples:
        catalogue, examples = pickle.loads(Path(options.examples).read_bytes())
        texts = text_rows((e for e in examples if e.split == "train"), catalogue, most=options.rows)
        tokenizer = AutoTokenizer.from_pretrained(options.base)
        return list(encode_rows(tokenizer, texts, max_tokens=1024, max_overlong_share=0).rows)
    rng = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 49_000) for _ in range(rng.randint(low, high)))

    return [EncodedRow(str(i), ids(100, 216), ids(24, 60)) for i in range(options.rows)]


if __name__ == "__main__":
    main()
