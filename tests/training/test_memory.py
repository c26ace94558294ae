from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from planner.contracts.errors import TrainingError
from planner.training.__main__ import main, weights_of
from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.batches import pack_rows
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows
from planner.training.fused_modules import fused
from planner.training.memory import (
    ENOUGH_TOKENS,
    MOST_TOKENS,
    _LiveBytes,
    activations_recomputed,
    plan_memory,
    smaller,
    weight_bytes,
)
from planner.training.quantized import load_quantized
from planner.training.text import encode_rows

FREE = TrainConfig(model_base="tiny", lora_r=4, micro_batch_tokens=None)


def changed(**values):
    return FREE.model_copy(update=values)


def plan(model, config=FREE, **options):
    options = {"dtype": torch.float32, "weights": weight_bytes(model), "budget": None, **options}
    return plan_memory(model.config, config, **options)


@pytest.mark.parametrize("recompute", [False, True])
def test_planned_bytes_are_those_that_a_real_step_needs(model, tokenizer, texts, recompute):
    # The last layer holds the targets alone, which the plan, made before there are rows, does not count on.
    shape = copy.deepcopy(model.config)
    shape.num_hidden_layers = 8
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    rows = encode_rows(tokenizer, texts, max_tokens=512, max_overlong_share=0).rows
    found = plan(model, changed(gradient_checkpointing=recompute))
    with (
        packed_attention(model),
        adapted(model, FREE) as peft_model,
        fused(peft_model),
        activations_recomputed(model, recompute),
    ):
        peft_model.train()
        assert found.adapter == found.optimizer == 8 * sum(w.numel() for w in trainable(peft_model).values())
        with _LiveBytes(peft_model) as counted:
            backward_rows(peft_model, rows, micro_batch_tokens=10**6)
    (pack,) = pack_rows(rows, most_tokens=10**6)
    num_tokens = pack.ids_1T.numel()
    assert num_tokens > 1500
    # The plan holds the logits as well, and the gradients of the adapter twice.
    assert counted.peak <= found.bytes_per_token * num_tokens + found.logits
    assert counted.peak >= 0.8 * found.bytes_per_token * num_tokens


def test_recomputed_activations_cost_a_part_and_change_no_gradient(model, tokenizer, texts):
    rows = encode_rows(tokenizer, texts[:5], max_tokens=512, max_overlong_share=0).rows
    config, gradients = changed(lora_dropout=0.3), []
    for recompute in (False, True):
        with (
            packed_attention(model),
            adapted(model, config) as peft_model,
            fused(peft_model),
            activations_recomputed(model, recompute),
        ):
            for weight in trainable(peft_model).values():
                torch.nn.init.normal_(weight, std=0.1)
            torch.manual_seed(1)
            backward_rows(peft_model.train(), rows, micro_batch_tokens=400)
            gradients.append([weight.grad for weight in trainable(peft_model).values()])
        assert not model.is_activation_checkpointing
    assert all(torch.equal(kept, again) for kept, again in zip(*gradients, strict=True))
    costs = [plan(model, changed(gradient_checkpointing=recompute)).bytes_per_token for recompute in (False, True)]
    assert costs[1] < 0.8 * costs[0]


def test_without_a_limit_the_pass_is_as_large_as_asked_for_or_useful(model):
    assert plan(model).micro_batch_tokens == MOST_TOKENS
    assert plan(model, changed(micro_batch_tokens=300)).micro_batch_tokens == 300
    assert not plan(model).gradient_checkpointing


def test_passes_shrink_to_the_budget_and_then_activations_are_recomputed(model):
    kept, recomputed = plan(model), plan(model, changed(gradient_checkpointing=True))

    def room_for(of, tokens):
        return int((of.total - of.activations + tokens * of.bytes_per_token) / 0.92) + 1

    smaller_pass = plan(model, budget=room_for(kept, 3000), longest=500)
    assert (smaller_pass.micro_batch_tokens, smaller_pass.gradient_checkpointing) == (3000, False)
    assert plan(model, budget=room_for(kept, ENOUGH_TOKENS - 100), longest=500).gradient_checkpointing
    forbidden = changed(gradient_checkpointing=False)
    assert plan(model, forbidden, budget=room_for(kept, 600), longest=500).micro_batch_tokens == 600
    least = plan(model, budget=room_for(recomputed, 500), longest=500)
    assert (least.micro_batch_tokens, least.gradient_checkpointing) == (500, True)
    with pytest.raises(TrainingError, match=r"row of 500 tokens does not fit into .* MiB.*quantize_base.*max_tokens"):
        plan(model, budget=room_for(recomputed, 480), longest=500)


def test_planning_leaves_random_state_and_model_alone(model):
    state = torch.get_rng_state()
    implementation = model.config._attn_implementation
    plan(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == implementation


def test_split_layers_count_in_parts_with_two_gathered(model):
    whole, layer = weight_bytes(model), weight_bytes(model.model.layers[0])
    assert weight_bytes(model, parts=4) == whole - 2 * layer + 2 * layer / 4 + 2 * layer


def test_scales_of_a_weight_in_four_bits_count_as_its_own():
    layer = torch.nn.Linear(64, 32, bias=False)
    scales = {"absmax": torch.zeros(16, dtype=torch.uint8), "nested_absmax": torch.zeros(1), "quant_type": "nf4"}
    layer.weight.quant_state = SimpleNamespace(as_dict=lambda: scales)  # bitsandbytes' form
    assert weight_bytes(layer) == 64 * 32 * 4 + 16 + 4


@pytest.mark.slow
def test_eight_billion_parameters_fit_into_24_gib(capsys):
    assert main(["memory", "--base", "llama-3-8b", "--memory-gib", "24"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Memory: 18.32 GiB of 24.00 GiB: weights 14.96 GiB, adapter 52 MiB, optimizer 52 MiB")
    assert "4,096 tokens, activations recomputed" in text
    assert main(["memory", "--memory-gib", "12"]) == 1
    assert "does not fit into 12.00 GiB" in capsys.readouterr().err
    assert main(["memory", "--memory-gib", "12", "--quantize-base"]) == 0


def test_weights_are_counted_from_a_folder_too(model, base_folder):
    base = AutoConfig.from_pretrained(base_folder)
    assert weights_of(base, quantized=False) == weight_bytes(model) / 2
    assert weights_of(base, quantized=True) < weight_bytes(model) / 2


def test_pass_that_did_not_fit_is_halved_until_it_is_one_row(tokenizer, texts):
    rows = encode_rows(tokenizer, texts[:8], max_tokens=512, max_overlong_share=0).rows
    tokens = 10_000
    for _ in range(10):
        packs = [pack.lengths for pack in pack_rows(rows, most_tokens=tokens)]
        if all(len(lengths) == 1 for lengths in packs):
            break
        before, tokens = max(map(sum, packs)), smaller(tokens, packs, "full")
        assert tokens == before // 2
    with pytest.raises(TrainingError, match=r"no memory left for one row of \d+ tokens \(full\).*quantize_base"):
        smaller(tokens, packs, "full")


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_four_bit_base_without_a_gpu_is_refused(base_folder):
    with pytest.raises(TrainingError, match="quantize_base needs an NVIDIA GPU.*Set it to false"):
        load_quantized(base_folder)
