"""Training on one NVIDIA GPU: `pytest -m gpu -s tests/training`.

Llama-3-8B's real shape with random weights, held to 24 GiB in bf16 and to 12 GiB in 4 bits; and whole runs of the tiny
base.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from planner.training.__main__ import base_shape, weights_of
from planner.training.adapter import adapted, load_adapter, trainable
from planner.training.attention import packed_attention
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows, row_losses
from planner.training.loop import train
from planner.training.memory import GIB, MemoryPlan, activations_recomputed, memory_budget, plan_for
from planner.training.optimizer import build_optimizer, take_step
from planner.training.position import mean_loss
from planner.training.quantized import load_quantized
from planner.training.text import EncodedRow, encode_rows
from tests.gpu import NEEDS_GPU, gpu, random_llama_3_8b
from tests.training.test_legal_loss import some_legal

pytestmark = NEEDS_GPU
STEPS, ROW_TOKENS, PROMPT_TOKENS = 4, 1024, 800


@pytest.fixture
def device():
    with gpu() as device:
        yield device


@dataclass(frozen=True)
class Measured:
    """What some steps needed; `peak` holds all that the allocator took, and the plan's share for the CUDA context.

    `context` is what the whole device had in use beside the allocator: the context, where nobody else is on it.
    """

    plan: MemoryPlan
    peak: int
    context: int
    tokens_per_second: float
    losses: tuple[float, ...]

    def __str__(self) -> str:
        losses = ", ".join(f"{loss:.3f}" for loss in self.losses)
        return (
            f"{self.plan}\nmeasured: peak {self.peak / GIB:.2f} GiB, {self.tokens_per_second:,.0f} tokens/s on "
            f"{torch.cuda.get_device_name()}; context {self.context / GIB:.2f} GiB; losses {losses}"
        )


def random_rows(vocab_size, count):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (count, ROW_TOKENS), generator=generator).tolist()
    return [EncodedRow(str(i), tuple(row[:PROMPT_TOKENS]), tuple(row[PROMPT_TOKENS:])) for i, row in enumerate(ids)]


def take_steps(model, config, device):
    plan = plan_for(model, config, longest=ROW_TOKENS)
    rows = random_rows(model.config.vocab_size, config.batch_size)
    torch.cuda.reset_peak_memory_stats(device)
    losses = []
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
            loss_sum = backward_rows(peft_model, rows, micro_batch_tokens=plan.micro_batch_tokens)
            losses.append(loss_sum / (len(rows) * (ROW_TOKENS - PROMPT_TOKENS)))
            take_step(optimizer, config.lr, 1.0)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    free, whole = torch.cuda.mem_get_info(device)
    return Measured(
        plan=plan,
        peak=torch.cuda.max_memory_reserved(device) + plan.context,
        context=whole - free - torch.cuda.memory_reserved(device),
        tokens_per_second=(STEPS - 1) * len(rows) * ROW_TOKENS / seconds,
        losses=tuple(losses),
    )


def test_eight_billion_parameters_train_within_20_of_24_gib(device):
    config = TrainConfig(model_base="llama-3-8b", batch_size=16, lr=1e-4, micro_batch_tokens=None, memory_gib=24)
    memory_budget(device, config.memory_gib)
    measured = take_steps(random_llama_3_8b(device), config, device)
    print(f"\n{measured}")
    assert measured.peak <= 20 * GIB
    assert measured.peak <= 1.1 * measured.plan.total
    assert all(map(math.isfinite, measured.losses))


def test_eight_billion_parameters_in_four_bits_train_within_12_gib(device, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = TrainConfig(
        model_base="llama-3-8b",
        batch_size=16,
        lr=1e-4,
        micro_batch_tokens=None,
        memory_gib=12,
        quantize_base=True,
    )
    random_llama_3_8b(device).save_pretrained(tmp_path / "base")
    gc.collect()
    torch.cuda.empty_cache()
    budget = memory_budget(device, config.memory_gib)
    torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    model = load_quantized(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")  # 16 GB
    seconds, peak = time.perf_counter() - started, torch.cuda.max_memory_reserved(device)
    print(f"\nloaded in {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    torch.cuda.empty_cache()
    measured = take_steps(model, config, device)
    print(measured)
    counted = weights_of(base_shape("llama-3-8b"), quantized=True)  # as `python -m planner.training memory` does
    assert measured.plan.weights == pytest.approx(counted, rel=0.001)
    assert measured.peak <= budget
    assert measured.peak <= 1.1 * measured.plan.total
    assert all(map(math.isfinite, measured.losses))


@pytest.mark.filterwarnings("ignore:inner dimension:UserWarning")  # bitsandbytes has no fast kernel for a base so tiny
@pytest.mark.parametrize("quantize", [False, True], ids=["bf16", "nf4"])
def test_a_run_on_a_gpu_is_taken_up_and_learns_what_helps_the_base_in_bf16(
    device, base_folder, tokenizer, texts, config, tmp_path, quantize
):
    if quantize:
        pytest.importorskip("bitsandbytes")
    served = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16).to(device)
    model = load_quantized(base_folder) if quantize else served
    split, options = (texts[:16], texts[16:]), {"legal_tokens": some_legal}

    def break_off(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, *split, config, tmp_path, report_step=break_off, **options)
    report = train(model, tokenizer, *split, config, tmp_path, **options)
    assert report.resumed_from_step == 4
    losses = [epoch.validation_loss for epoch in report.epochs]
    rows = encode_rows(tokenizer, texts[16:], max_tokens=512, max_overlong_share=0, **options).rows
    with packed_attention(served), adapted(served, config) as learned:
        load_adapter(learned, load_file(report.adapter_folder / "adapter_model.safetensors"))
        found = mean_loss(row_losses(learned, rows, micro_batch_tokens=4096), rows)
    print(f"\nvalidation loss {', '.join(f'{loss:.3f}' for loss in losses)}; on the base in bf16 {found:.3f}")
    assert losses[-1] < losses[0] - 0.1
    assert found < losses[0] - 0.1
