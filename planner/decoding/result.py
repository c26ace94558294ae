"""What a planner answers, and what every planner is.

In: typed requests. Out: a `PlanResult` for each, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from planner.contracts.catalogue import Catalogue
from planner.contracts.plan import Plan
from planner.contracts.request import Request


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan that breaks no constraint, or an empty one with the reason why none exists.

    `num_tokens` counts the plan's own tokens, the end token included; `num_model_calls` the forward passes in which
    this request took part, the prompt's included; `num_decisions` the tokens that were chosen among several, and
    `num_rejected` the tokens that were fed in vain: wrong guesses, and beginnings that a search looked behind. All are
    0 for a planner without a model. Plans do not depend on what else is in a batch, but with guesses the numbers of
    calls and of rejected tokens do, so they do not count when results are compared.
    """

    plan: Plan
    feasible: bool
    reason: str | None
    num_tokens: int = 0
    num_model_calls: int = field(default=0, compare=False)
    num_decisions: int = 0
    num_rejected: int = field(default=0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The served form: `{"plan": {"meals": […]}, "feasible", "reason"}`."""
        return {"plan": self.plan.to_dict(), "feasible": self.feasible, "reason": self.reason}


class Planner(Protocol):
    """Anything that plans: `kind` is `lora` or `popular`."""

    @property
    def kind(self) -> str: ...
    @property
    def catalogue(self) -> Catalogue: ...
    def plan(self, requests: Sequence[Request]) -> list[PlanResult]: ...
