"""AdamW over the adapter, its learning rate as a function of the step, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from planner.training.config import TrainConfig

MOMENT, SQUARE = "moment/", "square/"


def build_optimizer(weights: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the adapter's weights."""
    return torch.optim.AdamW(list(weights.values()), lr=config.lr, weight_decay=config.weight_decay)


def learning_rate_at(step: int, num_steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (0, 1, …): a linear rise, then a cosine down towards 0."""
    num_warmup = math.ceil(config.warmup_share * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / (num_warmup + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def take_step(optimizer: torch.optim.AdamW, learning_rate: float, max_grad_norm: float) -> float:
    """Clip the gradient, take one step and clear it; returns the gradient's norm before clipping.

    A norm that is not a number takes no step.
    """
    (group,) = optimizer.param_groups
    group["lr"] = learning_rate
    norm = nn.utils.clip_grad_norm_(group["params"], max_grad_norm).item()
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_tensors(optimizer: torch.optim.AdamW, weights: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Adam's two moments by weight, on the CPU, as copies; empty before the first step."""
    tensors = {}
    for name, weight in weights.items():
        state = optimizer.state.get(weight)
        if state:
            tensors[MOMENT + name] = state["exp_avg"].to("cpu", copy=True)
            tensors[SQUARE + name] = state["exp_avg_sq"].to("cpu", copy=True)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.AdamW, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], step: int
) -> None:
    """Put the moments after `step` optimizer steps back in."""
    if step == 0:
        return
    for name, weight in weights.items():
        optimizer.state[weight] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[MOMENT + name].to(weight.device),
            "exp_avg_sq": tensors[SQUARE + name].to(weight.device),
        }
