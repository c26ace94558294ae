"""From rows to losses: the forward and backward pass over packs, in training and in validation.

In: the PEFT model and encoded rows. Out: summed losses with gradients on the adapter, or losses row by row without any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel

from planner.training.batches import Pack, num_target_tokens, pack_rows
from planner.training.loss import target_losses
from planner.training.report import RowLoss
from planner.training.text import EncodedRow


def backward_rows(
    peft_model: PeftModel,
    rows: Sequence[EncodedRow],
    *,
    micro_batch_tokens: int,
    num_targets: int | None = None,
    idle: Sequence[EncodedRow] = (),
) -> float:
    """Add the gradient of the rows' mean loss a target token to the adapter; returns the sum of the losses.

    The mean is over all the rows, however many packs they are split into; `num_targets` is what the sum is divided by
    where the rows are a part of a step alone. `idle` rows are passed through one by one and count nothing.
    """
    num_targets = num_target_tokens(rows) if num_targets is None else num_targets
    total = 0.0
    for pack in pack_rows(rows, most_tokens=micro_batch_tokens, device=peft_model.device):
        loss = pack_losses(peft_model, pack).sum()
        torch.autograd.backward(loss / max(1, num_targets))
        total += loss.item()
    for row in idle:
        torch.autograd.backward(0 * pack_losses(peft_model, _alone(peft_model, row)).sum())
    return total


@torch.no_grad()
def row_losses(
    peft_model: PeftModel, rows: Sequence[EncodedRow], *, micro_batch_tokens: int, idle: Sequence[EncodedRow] = ()
) -> list[RowLoss]:
    """Mean loss of each row's target tokens, in the order of the rows, without dropout.

    `idle` as in `backward_rows`.
    """
    peft_model.eval()
    found: dict[int, RowLoss] = {}
    for pack in pack_rows(rows, most_tokens=micro_batch_tokens, device=peft_model.device):
        losses_N = pack_losses(peft_model, pack)
        losses_by_row = torch.split(losses_N, [len(row.scored) for row in pack.rows])
        for row, losses in zip(pack.rows, losses_by_row, strict=True):
            found[id(row)] = RowLoss(row.event_id, losses.double().mean().item() if len(losses) else 0.0)
    for row in idle:
        pack_losses(peft_model, _alone(peft_model, row))
    return [found[id(row)] for row in rows]


def pack_losses(peft_model: PeftModel, pack: Pack) -> torch.Tensor:
    """One loss a target token of the pack with one, shape (N,); the head is applied to those positions alone."""
    causal = peft_model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)
    output = body(
        input_ids=pack.ids_1T,
        position_ids=pack.positions_1T,
        use_cache=False,
        row_lengths=pack.lengths,
        num_shared=pack.num_shared,
        source_N=pack.source_N,
    )
    states_NC = output.last_hidden_state[0]
    if len(states_NC) != len(pack.source_N):  # the last layer of `fused.py` gives no more than these
        states_NC = states_NC[pack.source_N]
    return target_losses(states_NC, causal.get_output_embeddings(), pack.labels_N, pack.legal)


def _alone(peft_model: PeftModel, row: EncodedRow) -> Pack:
    (pack,) = pack_rows([row], most_tokens=1, device=peft_model.device)
    return pack
