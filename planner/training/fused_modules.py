"""The modules of a base that compute by `planner.training.fused`, while they train on a CPU in fp32.

In: a PEFT model. Out: the same modules, with other forward functions within a block. The functions know no dropout, no
bias and no quantised or trained base weight; a module that is otherwise stays as it is. Layers are known by name: the
llama family's, which both built-in bases are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from planner.training.fused import AdaptedLinear, Attention, FrozenLinear, GatedMlp, Norm


@contextmanager
def fused(peft_model: PeftModel) -> Iterator[None]:
    """Let the modules that these functions know compute by them within the block."""
    changed = []
    try:
        for module in peft_model.modules():
            forward = _fused_forward(module)
            if forward is not None:
                module.forward = forward
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _fused_forward(module: nn.Module) -> Callable[..., Any] | None:
    """How the module would compute by the functions above; None where they do not know it."""
    if isinstance(module, LoraLinear):
        return _adapted_linear(module)
    if type(module) is LlamaDecoderLayer:
        return _layer(module)
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        # A weight of 0 loses what it multiplies; a meta tensor has no values, and stands for a base without one.
        if _is_plain(weight) and (weight.is_meta or bool(weight.all())):
            return _by(Norm, weight, module.variance_epsilon)
        return None
    projections = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if isinstance(getattr(module, "act_fn", None), (nn.SiLU, SiLUActivation)) and all(map(_is_frozen, projections)):
        return _by(GatedMlp, *(part.weight for part in projections if part is not None))
    if _is_frozen(module):
        return _by(FrozenLinear, module.weight)
    return None


def _adapted_linear(module: LoraLinear) -> Callable[[torch.Tensor], torch.Tensor] | None:
    base, names = module.base_layer, module.active_adapters
    if not _is_frozen(base) or len(names) != 1:
        return None
    (name,) = names
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    if not isinstance(dropout, nn.Identity) or b.bias is not None or module.lora_variant:
        return None
    return _by(AdaptedLinear, base.weight, a.weight, b.weight, module.scaling[name])


def _layer(module: LlamaDecoderLayer) -> Callable[..., torch.Tensor] | None:
    attention = module.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    if attention.attention_dropout or not all(_is_frozen(getattr(part, "base_layer", part)) for part in projections):
        return None
    is_last = attention.layer_idx == attention.config.num_hidden_layers - 1

    def compute(
        hidden_1TC: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        row_lengths: Sequence[int] | None = None,
        num_shared: int = 0,
        source_N: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        assert attention_mask is None
        (hidden_TC,) = hidden_1TC
        normed_TC = module.input_layernorm(hidden_TC)
        states = (part(normed_TC).unflatten(-1, (-1, attention.head_dim)) for part in projections[:3])
        turns = tuple(table[0, :, None, : attention.head_dim // 2] for table in position_embeddings)
        lengths = (num_shared, *(row_lengths or [len(hidden_TC)]))
        out_TC = _by(Attention, turns, lengths, attention.scaling)(*states).flatten(1)
        if is_last and source_N is not None:  # nobody asks for the others
            hidden_TC, out_TC = hidden_TC[source_N], out_TC[source_N]
        hidden_TC = attention.o_proj(out_TC).add_(hidden_TC)
        out_1TC: torch.Tensor = module.mlp(module.post_attention_layernorm(hidden_TC)).add_(hidden_TC)[None]
        return out_1TC

    def forward(hidden_1TC: torch.Tensor, **options: Any) -> torch.Tensor:
        if module.gradient_checkpointing and module.training:
            recomputed: torch.Tensor = module._gradient_checkpointing_func(partial(compute, **options), hidden_1TC)
            return recomputed
        return compute(hidden_1TC, **options)

    return forward


def _by(function: Any, *fixed: Any) -> Callable[..., torch.Tensor]:
    return lambda *x: function.apply(*x, *fixed)


def _is_frozen(module: object) -> bool:
    return type(module) is nn.Linear and module.bias is None and _is_plain(module.weight)


def _is_plain(weight: torch.Tensor) -> bool:
    # A weight that FSDP has split is another type, and another tensor in each pass.
    whole = type(weight) in (torch.Tensor, nn.Parameter)
    return (
        whole and weight.dtype == torch.float32 and weight.device.type in ("cpu", "meta") and not weight.requires_grad
    )
