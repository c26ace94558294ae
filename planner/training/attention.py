"""Attention of packed rows: each row sees what all rows begin with and itself, causally, and no other row.

In: queries, keys and values of a pack and the lengths of its rows. Out: the attention's output, as transformers wants
it. Registered under a name that transformers has no mask for, so none over the whole pack is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

PACKED = "planner_packed"
# Not cuDNN's, which PyTorch prefers on an H100: it prepares itself anew for each length of a row (measured: steps of
# 64 rows of 150 to 400 tokens took 14 s with it and 2.5 s without).
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend_packed(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int],
    num_shared: int = 0,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row; H query heads share K key heads.

    Args:
        module: the attention layer.
        query_BHTD: of all tokens: `num_shared` that all rows begin with, then each row's own.
        key_BKTD: likewise.
        value_BKTD: likewise.
        attention_mask: None.
        row_lengths: how many tokens of its own each row has.
        num_shared: how many all rows begin with.
        dropout: of the attention's weights.
        scaling: factor of the scores; None for the usual one.

    Returns:
        (B, T, H, D), and no weights.
    """
    assert attention_mask is None, "a pack has no mask: the rows are attended one by one"
    grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
    lengths = [num_shared, *row_lengths]
    queries, keys, values = (torch.split(states, lengths, 2) for states in (query_BHTD, key_BKTD, value_BKTD))
    rows: list[torch.Tensor] = []
    for query, key, value in zip(queries, keys, values, strict=True):
        if num_shared and rows:
            key, value = torch.cat((keys[0], key), 2), torch.cat((values[0], value), 2)
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(num_shared)
            rows.append(attend(query, key, value, attn_mask=seen))
        elif query.shape[2]:
            rows.append(attend(query, key, value, is_causal=True))
    return torch.cat(rows, 2).transpose(1, 2), None


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend row by row within the block; its own attention is back afterwards."""
    AttentionInterface.register(PACKED, attend_packed)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        model.set_attn_implementation(before)
