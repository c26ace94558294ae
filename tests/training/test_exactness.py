"""Loss and gradients of packed rows against a plain transformers forward, one row at a time, all logits, in float64."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.batches import num_target_tokens, pack_rows
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows, pack_losses, row_losses
from planner.training.fused_modules import fused
from planner.training.loss import CHUNK, target_losses
from planner.training.text import encode_rows

CONFIG = TrainConfig(model_base="tiny", lora_r=4)


@pytest.fixture
def rows(tokenizer, texts):
    encoded = encode_rows(tokenizer, texts[:7], max_tokens=512, max_overlong_share=0).rows
    assert len({row.num_tokens for row in encoded}) > 3
    return encoded


@pytest.fixture
def peft_model(model):
    with packed_attention(model), adapted(model, CONFIG) as peft_model:
        yield peft_model


def disturb(peft_model):
    """Give the adapter weights as after some training; a fresh one has no gradient on A."""
    torch.manual_seed(1)
    for weight in trainable(peft_model).values():
        torch.nn.init.normal_(weight, std=0.1)


def reference(peft_model, rows):
    """Loss and gradients by the book: every row alone, all logits, cross-entropy of targets, float64."""
    exact = copy.deepcopy(peft_model).double()
    exact.get_base_model().set_attn_implementation("eager")
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.target_ids])
        logits = exact(input_ids=ids, use_cache=False).logits[0, :-1]
        start = len(row.prompt_ids)
        total = total + torch.nn.functional.cross_entropy(logits[start - 1 :], ids[0, start:], reduction="sum")
    (total / num_target_tokens(rows)).backward()
    return total.item(), {name: weight.grad for name, weight in trainable(exact).items()}


def ours(peft_model, rows, micro_batch_tokens, by=fused):
    peft_model.zero_grad()
    with by(peft_model):
        total = backward_rows(peft_model, rows, micro_batch_tokens=micro_batch_tokens)
    return total, {name: weight.grad.clone() for name, weight in trainable(peft_model).items()}


def micro_batches(rows, number):
    """The token budget with which the rows fall into `number` packs."""
    for budget in range(1, 10_000):
        if len(pack_rows(rows, most_tokens=budget)) == number:
            return budget
    raise AssertionError(number)


@pytest.mark.parametrize("number", [1, 2, 4, 7])
@pytest.mark.parametrize("num_rows", [7, 3])
@pytest.mark.parametrize("by", [fused, contextlib.nullcontext])
def test_loss_and_gradients_equal_the_unpacked_unpadded_reference(peft_model, rows, number, num_rows, by):
    if number > num_rows:
        number = num_rows
    disturb(peft_model)
    rows = rows[:num_rows]
    expected_loss, expected = reference(peft_model, rows)
    loss, found = ours(peft_model, rows, micro_batches(rows, number), by)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_each_row_of_a_pack_sees_itself_alone(peft_model, rows):
    disturb(peft_model)
    together = row_losses(peft_model, rows, micro_batch_tokens=10_000)
    backwards = row_losses(peft_model, rows[::-1], micro_batch_tokens=10_000)[::-1]
    alone = row_losses(peft_model, rows, micro_batch_tokens=1)
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.event_id == b.event_id == c.event_id
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.loss == pytest.approx(c.loss, rel=1e-5)


def test_cudnn_which_prepares_itself_for_each_length_attends_no_row(model):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with packed_attention(model):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_loss_is_that_of_the_model_itself(peft_model, rows):
    disturb(peft_model)
    row = rows[0]
    ids = torch.tensor([row.prompt_ids + row.target_ids])
    labels = ids.clone()
    labels[:, : len(row.prompt_ids)] = -100
    (pack,) = pack_rows([row], most_tokens=1)
    found = pack_losses(peft_model, pack).mean().item()
    peft_model.get_base_model().set_attn_implementation("sdpa")
    assert found == pytest.approx(peft_model(input_ids=ids, labels=labels, use_cache=False).loss.item(), rel=1e-5)


def test_fresh_adapter_equals_the_base_model(model, rows):
    (pack,) = pack_rows(rows, most_tokens=10_000)
    rows = pack.rows
    with torch.no_grad():
        before = [
            model(input_ids=torch.tensor([row.prompt_ids + row.target_ids]), use_cache=False).logits for row in rows
        ]
        with packed_attention(model), adapted(model, CONFIG) as peft_model:
            packed = pack_losses(peft_model, pack)
            assert peft_model.get_base_model() is model
        after = [
            model(input_ids=torch.tensor([row.prompt_ids + row.target_ids]), use_cache=False).logits for row in rows
        ]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                logits[0, len(row.prompt_ids) - 1 : -1], torch.tensor(row.target_ids), reduction="none"
            )
            for row, logits in zip(rows, before, strict=True)
        ]
    )
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


def test_prompt_tokens_have_no_loss(peft_model, rows):
    (pack,) = pack_rows(rows, most_tokens=10_000)
    hidden = torch.randn(pack.ids_1T.shape[1], 48, requires_grad=True)
    head = peft_model.get_base_model().get_output_embeddings()
    target_losses(hidden[pack.source_N], head, pack.labels_N).sum().backward()
    touched = (hidden.grad.abs().sum(1) > 0).nonzero()[:, 0]
    assert touched.tolist() == pack.source_N.tolist()


def test_end_token_has_a_loss_of_its_own(peft_model, rows, tokenizer):
    (pack,) = pack_rows(rows[:1], most_tokens=10_000)
    assert pack.labels_N[-1].item() == tokenizer.eos_token_id
    assert pack_losses(peft_model, pack)[-1].item() > 0


@pytest.mark.parametrize("num_positions", [1, CHUNK, 2 * CHUNK + 3])
def test_chunked_loss_equals_cross_entropy_with_its_gradient(num_positions):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).double()
    head.weight.requires_grad_(False)
    hidden = torch.randn(num_positions, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (num_positions,))
    weights = torch.rand(num_positions, dtype=torch.float64)
    torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none").mul(weights).sum().backward()
    expected, hidden.grad = hidden.grad, None
    losses = target_losses(hidden, head, labels)
    losses.mul(weights).sum().backward()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)


def test_only_the_adapter_learns_and_in_fp32(model):
    model = model.bfloat16()
    with adapted(model, CONFIG) as peft_model:
        weights = trainable(peft_model)
        assert {name.rsplit(".", 4)[1] for name in weights} == {"q_proj", "v_proj"}
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        assert all(w.dtype == torch.bfloat16 for n, w in peft_model.named_parameters() if n not in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_adapter_on_a_bf16_base_gets_gradients_close_to_fp32(model, rows):
    model = model.to("cuda")
    with packed_attention(model), adapted(model, CONFIG) as peft_model:
        disturb(peft_model)
        _, expected = ours(peft_model, rows, 10_000)
    model = model.bfloat16()
    with packed_attention(model), adapted(model, CONFIG) as peft_model:
        disturb(peft_model)
        _, found = ours(peft_model, rows, 10_000)
    for name, gradient in expected.items():
        assert torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.95, name
