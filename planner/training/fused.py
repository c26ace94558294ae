"""Backward passes written out: the same gradients in less time and from less memory.

In: activations, and weights of which only an adapter's learn. Out: what a norm, a gated MLP, a linear layer and the
attention of packed rows compute, and their gradients. For the backward pass PyTorch keeps what each elementary
operation asks for; here an MLP keeps gate and up alone (two thirds of it), a norm its output, which the adapters keep
anyway, an adapted projection adds into its result instead of beside it, and attention keeps each token once.

Written for fp32 on a CPU, and measured there alone; `planner.training.fused_modules` says which modules compute by
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def product(x_NC: torch.Tensor, weight_OC: torch.Tensor) -> torch.Tensor:
    """The product x W', by oneDNN where it can: 9 % faster than MKL, which `@` takes, on the AMD machine measured."""
    if _ONEDNN and x_NC.is_cpu and x_NC.dtype == torch.float32:
        out_NO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_NC, weight_OC, None, "none", [], "")
        return out_NO
    return x_NC @ weight_OC.T


class Norm(torch.autograd.Function):
    """RMSNorm over the last dimension; its output is kept instead of its input."""

    @staticmethod
    def forward(ctx: Any, x_BTC: torch.Tensor, weight_C: torch.Tensor, eps: float) -> torch.Tensor:
        length_BT1: torch.Tensor = torch.linalg.vector_norm(x_BTC, dim=-1, keepdim=True)
        scale_BT1 = length_BT1.square_().div_(x_BTC.shape[-1]).add_(eps).rsqrt_()
        out_BTC = (x_BTC * scale_BT1).mul_(weight_C)
        ctx.save_for_backward(out_BTC, weight_C, scale_BT1)
        return out_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTC: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        out_BTC, weight_C, scale_BT1 = ctx.saved_tensors
        mean_BT1 = (slope_BTC * out_BTC).mean(-1, keepdim=True)
        normed_BTC = (out_BTC / weight_C).mul_(mean_BT1)
        return (slope_BTC * weight_C).sub_(normed_BTC).mul_(scale_BT1), None, None


class FrozenLinear(torch.autograd.Function):
    """x W' with a frozen W, which is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x_BTC: torch.Tensor, weight_OC: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight_OC)
        return product(x_BTC, weight_OC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTO: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight_OC,) = ctx.saved_tensors
        return product(slope_BTO, weight_OC.T), None


class GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with frozen weights; gate and up are kept, what is made of them is made again."""

    @staticmethod
    def forward(
        ctx: Any, x_BTC: torch.Tensor, gate_IC: torch.Tensor, up_IC: torch.Tensor, down_CI: torch.Tensor
    ) -> torch.Tensor:
        gate_BTI, up_BTI = product(x_BTC, gate_IC), product(x_BTC, up_IC)
        ctx.save_for_backward(gate_BTI, up_BTI, gate_IC, up_IC, down_CI)
        return product(nn.functional.silu(gate_BTI).mul_(up_BTI), down_CI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTC: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gate_BTI, up_BTI, gate_IC, up_IC, down_CI = ctx.saved_tensors
        slope_BTI = product(slope_BTC, down_CI.T)
        up_slope_BTI = nn.functional.silu(gate_BTI).mul_(slope_BTI)
        gate_slope_BTI = slope_BTI.mul_(up_BTI)
        torch.ops.aten.silu_backward.grad_input(gate_slope_BTI, gate_BTI, grad_input=gate_slope_BTI)
        return product(gate_slope_BTI, gate_IC.T).add_(product(up_slope_BTI, up_IC.T)), None, None, None


class AdaptedLinear(torch.autograd.Function):
    """x W' + scale (x A') B' with a frozen W and an adapter A, B of rank R."""

    @staticmethod
    def forward(
        ctx: Any, x_BTC: torch.Tensor, weight_OC: torch.Tensor, a_RC: torch.Tensor, b_OR: torch.Tensor, scale: float
    ) -> torch.Tensor:
        x_NC = x_BTC.flatten(0, -2)
        low_NR = x_NC @ a_RC.T
        ctx.save_for_backward(x_NC, low_NR, weight_OC, a_RC, b_OR)
        ctx.scale = scale
        out_BTO = product(x_BTC, weight_OC)
        out_BTO.flatten(0, -2).addmm_(low_NR, b_OR.T, alpha=scale)
        return out_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NC, low_NR, weight_OC, a_RC, b_OR = ctx.saved_tensors
        slope_NO = slope_BTO.flatten(0, -2)
        slope_NR = (slope_NO @ b_OR).mul_(ctx.scale)
        x_slope = None
        if ctx.needs_input_grad[0]:
            x_slope = product(slope_NO, weight_OC.T).addmm_(slope_NR, a_RC).view(*slope_BTO.shape[:-1], -1)
        return x_slope, None, slope_NR.T @ x_NC, (slope_NO.T @ low_NR).mul_(ctx.scale), None


class Attention(torch.autograd.Function):
    """Rotary embedding and causal attention of packed rows, which see `num_shared` tokens in front and themselves.

    Queries and keys are turned where they lie. They and the values are kept once, however many rows see them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKD: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        _turn(query_THD, *turns)
        _turn(key_TKD, *turns)
        out_THD, totals = torch.empty_like(query_THD), []
        for row, shared in _rows_of(lengths):
            states = _by_head(query_THD, row), _by_head(key_TKD, row, shared), _by_head(value_TKD, row, shared)
            seen = _seen(row, shared, query_THD)
            out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*states, scale=scale, **seen)
            out_THD[row] = out[0].transpose(0, 1)
            totals.append(total)
        ctx.save_for_backward(query_THD, key_TKD, value_TKD, out_THD, *turns, *totals)
        ctx.lengths, ctx.scale = lengths, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_THD, key_TKD, value_TKD, out_THD, cos_T1D, sin_T1D, *totals = ctx.saved_tensors
        slopes = tuple(torch.empty_like(states) for states in (query_THD, key_TKD, value_TKD))
        for (row, shared), total in zip(_rows_of(ctx.lengths), totals, strict=True):
            states = _by_head(query_THD, row), _by_head(key_TKD, row, shared), _by_head(value_TKD, row, shared)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _by_head(slope_THD, row), *states, _by_head(out_THD, row), total, 0.0,
                scale=ctx.scale, **_seen(row, shared, query_THD),
            )  # fmt: skip
            for slope, (one,), front in zip(slopes, found, (0, shared, shared), strict=True):
                slope[row] = one[:, front:].transpose(0, 1)
                slope[:front] += one[:, :front].transpose(0, 1)
        _turn(slopes[0], cos_T1D, -sin_T1D)
        _turn(slopes[1], cos_T1D, -sin_T1D)
        return *slopes, None, None, None


def _rows_of(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Where each row lies, and how many tokens it sees in front; first come the shared ones themselves."""
    for stop, length in zip(accumulate(lengths), lengths, strict=True):
        if length:
            yield slice(stop - length, stop), lengths[0] if stop > length else 0


def _seen(row: slice, shared: int, states_THD: torch.Tensor) -> dict[str, Any]:
    """What of a row's scores counts, as the kernels want it."""
    if not shared:
        return {"is_causal": True}
    length = row.stop - row.start
    hidden = states_THD.new_full((length, shared + length), -torch.inf).triu_(shared + 1)
    return {"is_causal": False, "attn_mask": hidden}


def _by_head(states_THD: torch.Tensor, row: slice, shared: int = 0) -> torch.Tensor:
    """(1, H, T, D) of a row, behind the shared tokens."""
    states_THD = torch.cat((states_THD[:shared], states_THD[row])) if shared else states_THD[row]
    return states_THD.transpose(0, 1)[None]


def _turn(states_THD: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> None:
    """Rotary embedding in place, with the tables' first halves."""
    first, second = states_THD.chunk(2, -1)
    of_first = first * sin_T1D
    first.mul_(cos_T1D).addcmul_(second, sin_T1D, value=-1)
    second.mul_(cos_T1D).add_(of_first)
