"""What a replay hands to a promotion: the verdict with its reasons and figures, and nothing that could score again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SCORES = (
    "plan_alignment_score",
    "constraint_respect_score",
    "edit_distance_score",
    "diversity_score",
    "leftovers_score",
)


class Verdict(StrEnum):
    """Outcome of the gate; only PASS makes a candidate."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class GateResult:
    """Verdict of one replay of a candidate against a baseline on the same rows.

    `scores` and `baseline_scores` are means over rows in [0, 1] by the names of `SCORES`; `reasons` are full
    sentences for a person, one for each rule that decided.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    model_name: str
    model_version: str
    baseline_version: str
    dataset_version: str
    dataset_digest: str
    split: str
    num_rows: int
    num_households: int
    violations: int
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline_scores: Mapping[str, float] = field(default_factory=dict)
