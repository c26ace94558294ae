"""The backward passes written out: against finite differences in float64, and where they stay away."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows, row_losses
from planner.training.fused import AdaptedLinear, Attention, FrozenLinear, GatedMlp, Norm
from planner.training.fused_modules import fused
from planner.training.text import encode_rows

CONFIG = TrainConfig(model_base="tiny", lora_r=4)
NORM_WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, 0.1], dtype=torch.float64)
EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def rows(tokenizer, texts):
    return encode_rows(tokenizer, texts[:4], max_tokens=512, max_overlong_share=0).rows


def matrix(*shape, learned=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=learned)


def test_each_backward_pass_is_the_gradient():
    torch.manual_seed(0)
    x = matrix(1, 5, 6, learned=True)
    mlp = (matrix(7, 6), matrix(7, 6), matrix(6, 7))
    adapter = (matrix(2, 6, learned=True), matrix(4, 2, learned=True))
    assert torch.autograd.gradcheck(lambda x: Norm.apply(x, NORM_WEIGHTS, 1e-5), (x,))
    assert torch.autograd.gradcheck(GatedMlp.apply, (x, *mlp))
    assert torch.autograd.gradcheck(AdaptedLinear.apply, (x, matrix(4, 6), *adapter, 0.7))
    assert torch.autograd.gradcheck(AdaptedLinear.apply, (x.detach(), matrix(4, 6), *adapter, 0.7))
    assert torch.autograd.gradcheck(FrozenLinear.apply, (x, matrix(4, 6)))


@pytest.mark.parametrize("lengths", [(0, 5), (0, 3, 2), (2, 3, 1)])
def test_the_backward_pass_of_attention_is_the_gradient(lengths):
    torch.manual_seed(0)
    states = [matrix(sum(lengths), heads, 4, learned=True) for heads in (4, 2, 2)]
    angles = matrix(sum(lengths), 1, 2)

    def attend(query, key, value):
        # It turns queries and keys where they lie, so it gets copies.
        return Attention.apply(query.clone(), key.clone(), value, (angles.cos(), angles.sin()), lengths, 0.5)

    assert torch.autograd.gradcheck(attend, states)


def changed_modules(peft_model: PeftModel) -> set[str]:
    return {name.rpartition(".")[2] for name, module in peft_model.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), EVERYWHERE])
def test_losses_and_gradients_are_those_of_the_modules(model, rows, modules):
    config = CONFIG.model_copy(update={"target_modules": modules})
    with packed_attention(model), adapted(model, config) as peft_model:
        for weight in trainable(peft_model).values():
            torch.nn.init.normal_(weight, std=0.1)
        losses = row_losses(peft_model, rows, micro_batch_tokens=400)
        backward_rows(peft_model.train(), rows, micro_batch_tokens=400)
        expected = {name: weight.grad.clone() for name, weight in trainable(peft_model).items()}
        peft_model.zero_grad()
        with fused(peft_model):
            mlp = {"mlp"} if modules != EVERYWHERE else set()
            norms, layers = {"input_layernorm", "post_attention_layernorm", "norm"}, {"0", "1"}
            linear = {*EVERYWHERE, "base_layer", "lm_head"}
            assert changed_modules(peft_model) == linear | norms | layers | mlp
            for a, b in zip(row_losses(peft_model, rows, micro_batch_tokens=400), losses, strict=True):
                assert a.loss == pytest.approx(b.loss, rel=1e-6)
            backward_rows(peft_model.train(), rows, micro_batch_tokens=400)
        assert changed_modules(peft_model) == set()
        for name, weight in trainable(peft_model).items():
            assert (weight.grad - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_modules_that_the_functions_do_not_know_stay_as_they_are(model):
    dropped = CONFIG.model_copy(update={"lora_dropout": 0.1})
    with adapted(model, dropped) as peft_model, fused(peft_model):
        assert not changed_modules(peft_model) & {"q_proj", "v_proj"}
    model.model.layers[0].self_attn.k_proj.bias = torch.nn.Parameter(torch.zeros(24))
    model.model.layers[1].self_attn.attention_dropout = 0.1
    with adapted(model, CONFIG) as peft_model, fused(peft_model):
        assert not changed_modules(peft_model) & {"0", "1"}
    with torch.no_grad():
        model.model.norm.weight[3] = 0
        model.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(96))
    with adapted(model, CONFIG) as peft_model, fused(peft_model):
        plain = {name for name, module in peft_model.named_modules() if "forward" not in vars(module)}
        assert {name.removeprefix("base_model.model.model.") for name in plain if name.endswith(("mlp", "norm"))} == {
            "norm",
            "layers.0.mlp",
        }
    with adapted(model.bfloat16(), CONFIG) as peft_model, fused(peft_model):
        assert changed_modules(peft_model) == set()
