"""Several processes on one run: each takes its share of a step's rows, and the gradients are summed.

In: the variables that `accelerate launch` sets. Out: `Processes`, which is one process alone without them. Only the
adapter has gradients, a few MB, so they are summed once a step, in one piece; the base is whole in each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import nn

from planner.contracts.errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """`count` processes, of which this is number `rank`; the first alone writes files and reports."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """The rows that are this process's work; there may be none."""
        return list(rows[self.rank :: self.count])

    def sum_step(self, weights: Iterable[nn.Parameter], loss_sum: float) -> float:
        """Replace the gradients by their sum over all processes; returns the sum of `loss_sum`."""
        if self.count == 1:
            return loss_sum
        listed = list(weights)
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in listed]
        flat = torch.cat([part.flatten() for part in parts] + [parts[0].new_tensor([loss_sum])])
        with _others_may_be_gone():
            summed = reduce(flat, "sum")
        *gradients, total = summed.split([weight.numel() for weight in listed] + [1])
        for weight, gradient in zip(listed, gradients, strict=True):
            weight.grad = gradient.view_as(weight).clone()
        return float(total.item())

    def gather(self, made: Sequence[T]) -> list[T]:
        """What all processes made of their shares, in the order of the rows before `share`."""
        if self.count == 1:
            return list(made)
        with _others_may_be_gone():
            parts: list[list[T]] = gather_object([list(made)])
        return [part[index] for index in range(len(parts[0])) for part in parts if index < len(part)]

    def from_first(self, read: Callable[[], T]) -> T:
        """What the first process reads, in every process."""
        if self.count == 1:
            return read()
        held = [read() if self.is_first else None]
        with _others_may_be_gone():
            found: T = broadcast_object_list(held)[0]
        return found


def current_processes() -> Processes:
    """Where this process stands among those that `accelerate launch` started; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


@contextmanager
def _others_may_be_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "Another process of this training died or cannot be reached, so this one stops too. Its own output says "
            "why; run the same command again to go on from the newest checkpoint."
        ) from error
