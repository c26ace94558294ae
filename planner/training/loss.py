"""The loss of target tokens: the head is applied where a target is predicted, a few positions at a time.

In: hidden states of a pack and its labels. Out: one loss a target token, in fp32. No matrix of vocabulary x all tokens
is made: at most `CHUNK` rows of logits exist at once, and their gradient is taken before the next chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CHUNK = 256  # positions; 50 MB of fp32 logits at a vocabulary of 49,152


def target_losses(hidden_NC: torch.Tensor, head: nn.Linear, labels_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label under `head`, in nats, shape (N,).

    Args:
        hidden_NC: the states that predict the N targets. Gradients flow to them.
        head: the frozen output layer, without bias.
        labels_N: token ids.

    Source: logsumexp, as CPU `F.cross_entropy` was measured 7e-6 off float64 on real logits and this is not.
    """
    assert head.bias is None and not head.weight.requires_grad
    losses_N: torch.Tensor = _TargetLosses.apply(hidden_NC, head.weight, labels_N)
    return losses_N


class _TargetLosses(torch.autograd.Function):
    """Each loss depends on one hidden state alone, so its gradient is found in the forward pass and scaled later."""

    @staticmethod
    def forward(ctx: Any, hidden_NC: torch.Tensor, weight_VC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        losses, gradients = [], []
        for hidden, labels in zip(torch.split(hidden_NC, CHUNK), torch.split(labels_N, CHUNK), strict=True):
            logits = (hidden @ weight_VC.T).float()
            total = logits.logsumexp(-1)
            losses.append(total - logits.gather(1, labels[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                slope = logits.sub_(total[:, None]).exp_()
                slope[torch.arange(len(labels)), labels] -= 1
                gradients.append(slope.to(weight_VC.dtype) @ weight_VC)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_NC,) = ctx.saved_tensors
        return (gradient_NC * slopes[0][:, None]).to(gradient_NC.dtype), None, None
