"""Llama-3-8B's real shape with random weights on one NVIDIA GPU, held to 24 GiB: `pytest -m gpu -s tests/training`."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from planner.training.__main__ import base_shape
from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows
from planner.training.memory import GIB, activations_recomputed, memory_budget, plan_memory, weight_bytes
from planner.training.optimizer import build_optimizer, take_step
from planner.training.text import EncodedRow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 4


def test_eight_billion_parameters_train_within_20_of_24_gib():
    device = torch.device("cuda", torch.cuda.current_device())
    config = TrainConfig(model_base="llama-3-8b", batch_size=16, micro_batch_tokens=None, memory_gib=24)
    budget = memory_budget(device, config.memory_gib)
    base = base_shape("llama-3-8b")
    with device:
        model = AutoModelForCausalLM.from_config(base, dtype=torch.bfloat16)
    plan = plan_memory(
        base,
        config,
        dtype=torch.bfloat16,
        weights=weight_bytes(model),
        budget=budget,
        device=device.type,
        longest=1024,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, base.vocab_size, (config.batch_size, 1024), generator=generator).tolist()
    rows = [EncodedRow(str(i), tuple(row[:800]), tuple(row[800:])) for i, row in enumerate(ids)]
    torch.cuda.reset_peak_memory_stats(device)
    with (
        packed_attention(model),
        adapted(model, config) as peft_model,
        activations_recomputed(model, plan.gradient_checkpointing),
    ):
        optimizer = build_optimizer(trainable(peft_model), config)
        peft_model.train()
        for step in range(STEPS):
            if step == 1:  # the first one chooses kernels
                torch.cuda.synchronize()
                started = time.perf_counter()
            backward_rows(peft_model, rows, micro_batch_tokens=plan.micro_batch_tokens)
            take_step(optimizer, 1e-4, 1.0)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_reserved(device) + plan.context
    speed = (STEPS - 1) * sum(row.num_tokens for row in rows) / seconds
    print(f"\n{plan}\nmeasured: peak {peak / GIB:.2f} GiB, {speed:,.0f} tokens/s on {torch.cuda.get_device_name()}")
    assert peak <= 20 * GIB
    assert peak <= 1.1 * plan.total
