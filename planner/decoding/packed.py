"""One forward pass over rows of different lengths without padding: packed tokens, a key-value cache for each row.

In: a Hugging Face causal language model (merged or with adapters) and, per row, its cache and its new tokens. Out:
the last hidden states of each row's new tokens, and scores of the tokens that are asked for, and of no others.

All dense layers see one packed sequence; only the attention itself goes row by row. It is plugged in through
transformers' attention interface while a pass runs, so the model is unchanged before and after.

Shapes: T new tokens of all rows, R rows, H heads, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "planner_packed"
# Not cuDNN's, which PyTorch prefers on an H100: it prepares itself anew for each pair of lengths, and here nearly all
# differ (measured: 16 requests new to it took 11.3 s with it and 1.4 s without).
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class RowCache:
    """Keys and values of one row, `length` tokens so far; grows by doubling."""

    def __init__(self, shape: tuple[int, int, int], capacity: int, *, dtype: torch.dtype, device: torch.device) -> None:
        layers, heads, head_size = shape
        self.keys = torch.empty(layers, heads, capacity, head_size, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def reserve(self, num_new: int) -> None:
        """Make room for `num_new` more tokens."""
        capacity = self.keys.shape[2]
        if self.length + num_new > capacity:
            size = (*self.keys.shape[:2], max(2 * capacity, self.length + num_new), self.keys.shape[3])
            for name in ("keys", "values"):
                grown = torch.empty(size, dtype=self.keys.dtype, device=self.keys.device)
                grown[:, :, : self.length] = getattr(self, name)[:, :, : self.length]
                setattr(self, name, grown)

    def keep(self, length: int, slots: Sequence[int]) -> None:
        """Forget all but the first `length` tokens and those at `slots`, which then follow them."""
        end = length + len(slots)
        assert end <= self.length
        if list(slots) != list(range(length, end)):
            index = torch.tensor(slots, device=self.keys.device)
            self.keys[:, :, length:end] = self.keys[:, :, index]
            self.values[:, :, length:end] = self.values[:, :, index]
        self.length = end

    def copy_prefix(self, other: RowCache, length: int) -> None:
        """Begin with the first `length` tokens of another row; exact, since a prefix does not see what follows."""
        self.keys[:, :, :length] = other.keys[:, :, :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.length = length


@dataclass(frozen=True, slots=True)
class _Packed:
    """Where each row's new tokens lie in the packed sequence."""

    caches: Sequence[RowCache]
    bounds: Sequence[tuple[int, int]]
    masks: Sequence[Tensor | None]


class PackedModel:
    """A causal language model driven over packed rows; `num_calls` and `num_tokens` count what went through it."""

    def __init__(self, model: Any) -> None:
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = causal.get_decoder()
        self._head = causal.get_output_embeddings()
        config = self._config = self._decoder.config
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (config.num_hidden_layers, heads, size)
        self._groups = config.num_attention_heads // heads
        weight = self._head.weight
        self._dtype, self.device = weight.dtype, weight.device
        self.max_positions: int = config.max_position_embeddings
        self.num_calls = self.num_tokens = 0
        AttentionInterface.register(NAME, packed_attention)

    def new_row(self, capacity: int) -> RowCache:
        """An empty cache for about `capacity` tokens."""
        return RowCache(self._shape, capacity, dtype=self._dtype, device=self.device)

    def forward(
        self, rows: Sequence[tuple[RowCache, Sequence[int]]], trees: Sequence[Sequence[int]] = ()
    ) -> list[Tensor]:
        """Feed each row its new tokens (at least one); the last hidden states of each row's, (new tokens, hidden).

        Args:
            rows: each with its cache and its new tokens.
            trees: for each row nothing, or the parents of its last tokens, which are a tree: new ones and, where all
                of the new ones belong to it, fed ones. A token of the tree sees those that lead to it and what stands
                before the tree; a parent is a place in the tree, -1 the token before it.
        """
        bounds, masks, start = [], [], 0
        positions: list[Tensor] = []
        for index, (cache, tokens) in enumerate(rows):
            parents = trees[index] if trees else ()
            cache.reserve(len(tokens))
            bounds.append((start, start + len(tokens)))
            total = cache.length + len(tokens)
            first = total - len(parents)  # place of the tree
            seen = _seen_in_tree(parents)
            masks.append(_causal_mask(cache.length, total, seen, self._groups, self.device))
            positions.append(torch.arange(cache.length, max(first, cache.length)))
            positions.append(torch.from_numpy(seen[max(0, cache.length - first) :].sum(1)) + (first - 1))
            start += len(tokens)
        ids = torch.tensor([token for _, tokens in rows for token in tokens], device=self.device)
        packed = _Packed([cache for cache, _ in rows], bounds, masks)
        with torch.inference_mode(), self._plugged_in():
            output = self._decoder(
                input_ids=ids[None],
                position_ids=torch.cat(positions).to(self.device)[None],
                use_cache=False,
                packed_rows=packed,
            )
        for cache, tokens in rows:
            cache.length += len(tokens)
        self.num_calls += 1
        self.num_tokens += start
        return [output.last_hidden_state[0, first:stop] for first, stop in bounds]

    def scores(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Logits of the given tokens alone, (tokens,), in fp32."""
        with torch.inference_mode():
            logits: Tensor = self._head.weight[token_ids].float() @ hidden.float()
            bias = getattr(self._head, "bias", None)
            return logits if bias is None else logits + bias[token_ids].float()

    @contextmanager
    def _plugged_in(self) -> Iterator[None]:
        before = self._config._attn_implementation
        self._config._attn_implementation = NAME
        try:
            with sdpa_kernel(KERNELS):
                yield
        finally:
            self._config._attn_implementation = before


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed_rows: _Packed,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention of each row over its own cache, which takes up the new keys and values.

    Args:
        module: the attention layer, for its index.
        query: (1, H, T, D).
        key: (1, G, T, D).
        value: (1, G, T, D).
        attention_mask: unused: a row sees its own past only.
        scaling: factor of the scores.
        packed_rows: the rows, as `PackedModel.forward` passes them.

    Returns:
        (1, T, H, D), and no weights.
    """
    num_heads, num_tokens, size = query.shape[1:]
    output = query.new_empty(1, num_tokens, num_heads, size)
    groups = num_heads // key.shape[1]
    layer = module.layer_idx
    for cache, (start, stop), mask in zip(packed_rows.caches, packed_rows.bounds, packed_rows.masks, strict=True):
        end = cache.length + stop - start
        keys, values = cache.keys[layer], cache.values[layer]
        keys[:, cache.length : end] = key[0, :, start:stop]
        values[:, cache.length : end] = value[0, :, start:stop]
        output[0, start:stop] = _attend(
            query[0, :, start:stop], keys[:, :end], values[:, :end], mask, groups=groups, scaling=scaling
        ).transpose(0, 1)
    return output, None


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, groups: int, scaling: float) -> Tensor:
    if mask is None and query.shape[1] > 1:  # a row's first tokens: the kernel's own causal mask is right
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
        return scaled_dot_product_attention(query[None], keys[None], values[None], is_causal=True, scale=scaling)[0]
    # The heads that share keys are more queries of them: the past is not copied once a head.
    folded = query.reshape(keys.shape[0], -1, query.shape[2])
    one = scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=mask, scale=scaling)
    return one[0].reshape(query.shape)  # kernels of a GPU lay it out as they like


def _seen_in_tree(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens of a tree each of its tokens sees: those that lead to it, and itself."""
    seen = np.eye(len(parents), dtype=bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            seen[index] |= seen[parent]
    return seen


def _causal_mask(
    num_past: int, total: int, tree: NDArray[np.bool_], groups: int, device: torch.device
) -> Tensor | None:
    """Which of a row's `total` tokens each new one sees, once for each of the heads that share keys.

    None where no mask is needed, or the kernel's own is right.
    """
    is_chain = bool(tree.sum() == len(tree) * (len(tree) + 1) // 2)
    if is_chain and (num_past == 0 or total - num_past == 1):
        return None
    seen = np.tri(total - num_past, total, num_past, dtype=bool)
    first = total - len(tree)
    seen[max(0, first - num_past) :, first:] = tree[max(0, num_past - first) :]
    return torch.from_numpy(seen).to(device).repeat(groups, 1)
