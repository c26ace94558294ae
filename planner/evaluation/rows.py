"""One replayed request as a row of `rows.parquet`.

In: an example with what candidate and baseline planned. Out: the row, under a fixed Arrow schema; the contract's
columns stand first. Timings are not here: two replays give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from planner.contracts.catalogue import Catalogue
from planner.contracts.example import Example
from planner.contracts.gate import SCORES
from planner.contracts.plan import Plan
from planner.contracts.schema import EDIT, INPUT, PLAN, TEXTS
from planner.decoding.result import PlanResult
from planner.evaluation.scores import RowScores, score_plan
from planner.evaluation.verify import is_satisfiable, violations

PLANNERS = ("candidate", "baseline")
REFERENCES = ("previous", "logged")
"""What a row is also compared with: the household's previous plan as it is, and what the logged policy proposed."""
PREFIXES = {"candidate": "", "baseline": "baseline_", "previous": "previous_", "logged": "logged_"}

ROWS_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("household_id", pa.string()),
        ("predicted_plan", PLAN),
        ("accepted_plan", PLAN),
        *((score, pa.float64()) for score in SCORES),
        ("predicted_edits", pa.int32()),
        ("actual_edits", pa.int32()),
        ("violations", TEXTS),
        ("feasible", pa.bool_()),
        *((f"baseline_{score}", pa.float64()) for score in SCORES),
        ("reason", pa.string()),
        ("wrongly_infeasible", pa.bool_()),
        ("workflow_type", pa.string()),
        ("mode", pa.string()),
        ("region", pa.string()),
        ("household_size", pa.int32()),
        ("baseline_plan", PLAN),
        ("baseline_predicted_edits", pa.int32()),
        ("baseline_violations", TEXTS),
        ("baseline_feasible", pa.bool_()),
        ("baseline_reason", pa.string()),
        *((f"{name}_{score}", pa.float64()) for name in REFERENCES for score in SCORES),
        *((f"{name}_violations", TEXTS) for name in REFERENCES),
        ("logged_plan", PLAN),
        ("user_edits", pa.list_(EDIT)),
        ("request", INPUT),
    ]
)


def build_row(example: Example, candidate: PlanResult, baseline: PlanResult, catalogue: Catalogue) -> dict[str, Any]:
    """Score and verify everything that stands against one accepted plan; `catalogue` is the dataset's."""
    request = example.request
    row: dict[str, Any] = {
        "event_id": example.event_id,
        "household_id": example.household_id,
        "predicted_plan": candidate.plan.to_dict(),
        "accepted_plan": example.accepted_plan.to_dict(),
        "actual_edits": len(example.user_edits),
        "workflow_type": request.workflow_type,
        "mode": request.mode,
        "region": example.region,
        "household_size": request.household.size,
        "baseline_plan": baseline.plan.to_dict(),
        "logged_plan": example.generated_plan.to_dict() if example.generated_plan else None,
        "user_edits": [edit.to_dict() for edit in example.user_edits],
        "request": request.to_dict(),
        # Two planners that are both right agree on what is impossible; this asks neither of them.
        "wrongly_infeasible": not candidate.feasible and is_satisfiable(request, catalogue),
    }
    for name, result in zip(PLANNERS, (candidate, baseline), strict=True):
        row |= _planned(PREFIXES[name], example, result, catalogue)
    for name, plan in zip(REFERENCES, (request.previous_plan, example.generated_plan), strict=True):
        row |= _reference(PREFIXES[name], example, plan, catalogue)
    return row


def _planned(prefix: str, example: Example, result: PlanResult, catalogue: Catalogue) -> dict[str, Any]:
    found = list(violations(result.plan, example.request, catalogue))
    if result.feasible and not result.plan.meals:
        found.append("The plan has no meal, although the request is said to be feasible.")
    if not result.feasible and result.plan.meals:
        found.append("The request is said to be infeasible, yet it got a plan.")
    scores = _scores(example, result.plan, catalogue, respected=not found, feasible=result.feasible)
    return {
        **_prefixed(prefix, scores),
        f"{prefix}predicted_edits": scores.edits,
        f"{prefix}violations": found,
        f"{prefix}feasible": result.feasible,
        f"{prefix}reason": result.reason,
    }


def _reference(prefix: str, example: Example, plan: Plan | None, catalogue: Catalogue) -> dict[str, Any]:
    if plan is None:  # nothing to compare with: null, and counted in the report
        return {f"{prefix}violations": None, **{f"{prefix}{score}": None for score in SCORES}}
    found = list(violations(plan, example.request, catalogue))
    scores = _scores(example, plan, catalogue, respected=not found, feasible=True)
    return {f"{prefix}violations": found, **_prefixed(prefix, scores)}


def _scores(example: Example, plan: Plan, catalogue: Catalogue, *, respected: bool, feasible: bool) -> RowScores:
    return score_plan(
        plan, example.accepted_plan, example.request.pantry, catalogue, respected=respected, feasible=feasible
    )


def _prefixed(prefix: str, scores: RowScores) -> Mapping[str, float]:
    return {f"{prefix}{name}": getattr(scores, name) for name in SCORES}
