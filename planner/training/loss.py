"""The loss of target tokens: the head is applied where a target is predicted, a few positions at a time.

In: hidden states of a pack and its labels. Out: one loss a target token, in fp32. No matrix of vocabulary x all tokens
is made: at most `CHUNK` rows of logits exist at once, in one place, and their gradient is taken before the next chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from planner.training.fused import product

CHUNK = 256  # positions; 50 MB of fp32 logits at a vocabulary of 49,152


def target_losses(
    hidden_NC: torch.Tensor,
    head: nn.Linear,
    labels_N: torch.Tensor,
    legal: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Cross-entropy of each label under `head`, in nats, shape (N,).

    Args:
        hidden_NC: the states that predict the N targets. Gradients flow to them.
        head: the frozen output layer, without bias.
        labels_N: token ids.
        legal: K token ids, ascending, and by (N, K) which of them each label is chosen among: the softmax is over
            those alone. None takes the whole vocabulary.

    Source: logsumexp, as CPU `F.cross_entropy` was measured 7e-6 off float64 on real logits and this is not.
    """
    assert head.bias is None and not head.weight.requires_grad
    if legal is None:
        losses_N: torch.Tensor = _TargetLosses.apply(hidden_NC, head.weight, labels_N, None)
        return losses_N
    ids_K, mask_NK = legal
    losses_N = _TargetLosses.apply(hidden_NC, head.weight[ids_K], torch.searchsorted(ids_K, labels_N), mask_NK)
    return losses_N


class _TargetLosses(torch.autograd.Function):
    """Each loss depends on one hidden state alone, so its gradient is found in the forward pass and scaled later."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        labels_N: torch.Tensor,
        mask_NV: torch.Tensor | None,
    ) -> torch.Tensor:
        losses, gradients = [], []
        for start in range(0, len(labels_N), CHUNK):
            rows = slice(start, start + CHUNK)
            labels = labels_N[rows, None]
            place = product(hidden_NC[rows], weight_VC)
            logits = place.float()
            if mask_NV is not None:
                logits.masked_fill_(~mask_NV[rows], -torch.inf)
            most, wanted = logits.amax(-1, keepdim=True), logits.gather(1, labels)
            shares = logits.sub_(most).exp_()
            total = shares.sum(-1, keepdim=True)
            losses.append((most + total.log() - wanted)[:, 0])
            if ctx.needs_input_grad[0]:
                place.copy_(shares.scatter_add_(1, labels, -total))  # the loss's gradient, times `total`
                gradients.append(product(place, weight_VC.T).div_(total))
            del place, logits, shares  # before there are the next ones
        ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden_NC))
        return torch.cat(losses) if losses else hidden_NC.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient_NC,) = ctx.saved_tensors
        return (gradient_NC * slopes[0][:, None]).to(gradient_NC.dtype), None, None, None
