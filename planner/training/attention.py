"""Attention of packed rows: each row sees itself alone, causally, with no mask over the whole pack.

In: queries, keys and values of a pack and the lengths of its rows. Out: the attention's output, as transformers wants
it. Registered under a name that transformers has no mask for, so none is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

PACKED = "planner_packed"


def attend_packed(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row; H query heads share K key heads. Returns (B, T, H, D)."""
    assert attention_mask is None, "a pack has no mask: the rows are attended one by one"
    grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
    lengths = list(row_lengths)
    rows = [
        scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
        for query, key, value in zip(
            *(torch.split(states, lengths, 2) for states in (query_BHTD, key_BKTD, value_BKTD)), strict=True
        )
    ]
    return torch.cat(rows, 2).transpose(1, 2), None


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend row by row within the block; its own attention is back afterwards."""
    AttentionInterface.register(PACKED, attend_packed)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
