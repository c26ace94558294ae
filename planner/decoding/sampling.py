"""Plans that differ by a seed: temperature and top-p over the legal tokens, the same for a request wherever it stands.

In: the model's scores of the legal tokens. Out: which of them is taken. The chance of a draw hangs on the seed, on the
request and on the number of the decision alone, so a plan depends neither on the batch nor on guesses: a guess is right
where it is the token drawn. Over titles this draws whole dishes by their probability among the legal ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.contracts.errors import ContractError
from planner.contracts.request import Request


@dataclass(frozen=True, slots=True)
class Sampling:
    """How plans are drawn.

    `temperature` divides the scores (above 0; 1 is the model's own opinion), `top_p` keeps the likeliest tokens that
    together have at least that probability, `seed` chooses among the plans.

    Raises:
        ContractError: a value is out of its range; names it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ContractError(f"temperature is {self.temperature}, not a number above 0.", field="temperature")
        if not 0 < self.top_p <= 1:
            raise ContractError(f"top_p is {self.top_p}, not a number above 0 and at most 1.", field="top_p")


class Sampler:
    """Draws the decisions of one request."""

    def __init__(self, sampling: Sampling, request: Request) -> None:
        self._sampling = sampling
        text = json.dumps([sampling.seed, request.to_dict()], sort_keys=True)
        self._key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")

    def choose(self, scores: NDArray[np.float64], number: int) -> int:
        """Which of the tokens with these scores is taken at decision `number` of the plan."""
        sampling = self._sampling
        logits = (scores - scores.max()) / sampling.temperature
        chances = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        # The likeliest is always among them. In the order of tokens: two of nearly the same chance must not change
        # places with the rounding of another batch.
        kept = np.sort(order[before < sampling.top_p])
        # Each number has a stream of its own: what was drawn before, and how, does not move it.
        draw = np.random.default_rng([self._key, number]).random() * chances[kept].sum()
        return int(kept[min(int(np.searchsorted(np.cumsum(chances[kept]), draw, side="right")), len(kept) - 1)])
