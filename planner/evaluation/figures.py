"""Everything that the report shows, computed from the rows once.

In: the rows of a replay. Out: frozen lines with texts and numbers; no HTML here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts.catalogue import Catalogue, text_title
from planner.contracts.gate import SCORES
from planner.contracts.plan import DAY_INDEX, Plan
from planner.evaluation.gate import differences, score_means
from planner.evaluation.rows import REFERENCES
from planner.evaluation.scores import edits_between
from planner.evaluation.statistics import Estimate

SEGMENTS = {
    "workflow_type": "workflow type",
    "mode": "mode",
    "region": "region",
    "household_size": "household size",
}
REFERENCE_NAMES = {"previous": "repeat the previous plan", "logged": "what the logged policy proposed"}
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Segment:
    """Candidate, baseline and their difference within one value of one column."""

    column: str
    value: str
    num_rows: int
    num_households: int
    scores: Mapping[str, float]
    baseline_scores: Mapping[str, float]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Reference:
    """What someone else would have scored on the rows that have such a plan, and by how much the candidate beats it."""

    name: str
    num_rows: int
    num_violating: int
    scores: Mapping[str, float]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Case:
    """One replayed request for a person's eyes: titles, no ids."""

    request: tuple[str, ...]
    predicted: tuple[str, ...]
    accepted: tuple[str, ...]
    edits: tuple[str, ...]
    violations: tuple[str, ...]
    reason: str | None
    alignment: float
    edit_distance: float


def segments(rows: pa.Table) -> list[Segment]:
    """Scores and differences by workflow type, mode, region and household size; a missing value is `unknown`."""
    found = []
    for column, name in SEGMENTS.items():
        texts = pa.array([UNKNOWN if v is None else str(v) for v in rows[column].to_pylist()], pa.string())
        for value in sorted(set(texts.to_pylist()), key=lambda text: (text == UNKNOWN, len(text), text)):
            part = rows.filter(pc.equal(texts, value))
            households = len(set(part["household_id"].to_pylist()))
            scores = score_means(part), score_means(part, "baseline_")
            found.append(Segment(name, value, len(part), households, *scores, differences(part)))
    return found


def references(rows: pa.Table) -> list[Reference]:
    """The two references: the previous plan as it is, and what the logged policy proposed."""
    found = []
    for prefix in REFERENCES:
        texts = [texts for texts in rows[f"{prefix}_violations"].to_pylist() if texts is not None]
        found.append(
            Reference(
                name=REFERENCE_NAMES[prefix],
                num_rows=len(texts),
                num_violating=sum(1 for text in texts if text),
                scores=score_means(rows, f"{prefix}_"),
                differences=differences(rows, prefix=f"{prefix}_"),
            )
        )
    return found


def infeasible_by_reason(rows: pa.Table) -> list[tuple[str, int]]:
    """How often the candidate found no plan, by the kind of reason; the most frequent first."""
    reasons = [
        row["reason"] or UNKNOWN for row in rows.select(["feasible", "reason"]).to_pylist() if not row["feasible"]
    ]
    return Counter(reason.partition(":")[0] for reason in reasons).most_common()


def extreme_cases(rows: pa.Table, catalogue: Catalogue, *, num: int = 10) -> tuple[list[Case], list[Case]]:
    """The worst and the best rows by alignment plus edit distance, equal ones by event id; no row stands in both."""
    total = pc.add(rows["plan_alignment_score"], rows["edit_distance_score"])
    table = rows.select(["event_id"]).append_column("total", total)
    order = pc.sort_indices(table, sort_keys=[("total", "ascending"), ("event_id", "ascending")])
    num = min(num, len(rows) // 2)
    worst = rows.take(order[:num]).to_pylist() if num else []
    best = rows.take(order[len(rows) - num :]).to_pylist()[::-1] if num else []
    return [_case(row, catalogue) for row in worst], [_case(row, catalogue) for row in best]


def overall(rows: pa.Table) -> Mapping[str, Estimate]:
    """Candidate minus baseline over all rows."""
    return {name: estimate for name, estimate in differences(rows).items() if name in SCORES}


def difference_metrics(rows: pa.Table) -> dict[str, float]:
    """Every difference with its interval by the names they get as metrics, and the scores of the two references.

    `minus_baseline_<score>`, `minus_previous_<score>` and `minus_logged_<score>` with `_low` and `_high`;
    `previous_<score>` and `logged_<score>` are the references' own means.
    """
    found: dict[str, float] = {}
    for name in ("baseline", *REFERENCES):
        if name in REFERENCES:
            found |= {f"{name}_{score}": mean for score, mean in score_means(rows, f"{name}_").items()}
        for score, estimate in differences(rows, prefix=f"{name}_").items():
            found[f"minus_{name}_{score}"] = estimate.mean
            if estimate.interval is not None:
                found[f"minus_{name}_{score}_low"], found[f"minus_{name}_{score}_high"] = estimate.interval
    return found


def _case(row: Mapping[str, Any], catalogue: Catalogue) -> Case:
    predicted, accepted = Plan.from_valid(row["predicted_plan"]), Plan.from_valid(row["accepted_plan"])
    return Case(
        request=tuple(_request_lines(row["request"])),
        predicted=tuple(_meal_lines(predicted, catalogue, accepted)),
        accepted=tuple(_meal_lines(accepted, catalogue, predicted)),
        edits=tuple(_edit_lines(predicted, accepted, catalogue)),
        violations=tuple(row["violations"]),
        reason=row["reason"],
        alignment=row["plan_alignment_score"],
        edit_distance=row["edit_distance_score"],
    )


def _request_lines(request: Mapping[str, Any]) -> Iterable[str]:
    household, limits = request["household"], request["constraints"]
    size = household["size"]
    who = "1 person" if size == 1 else f"{size or 'unknown number of'} persons"
    yield f"{who}, {request['workflow_type']}, {request['mode']}"
    for name, texts in (
        ("likes", household["preferences"]),
        ("needs", household["restrictions"]),
        ("without", limits["excluded_ingredients"]),
        ("pantry", [item["name"] for item in request["pantry"]["items"]]),
    ):
        if texts:
            yield f"{name} {', '.join(texts[:6])}{f' and {len(texts) - 6} more' if len(texts) > 6 else ''}"
    if limits["budget"] is not None:
        yield f"budget {limits['budget']:.2f}"
    if limits["max_prep_time"] is not None:
        yield f"at most {limits['max_prep_time']} minutes a dish"


def _meal_lines(plan: Plan, catalogue: Catalogue, other: Plan) -> Iterable[str]:
    """A line for each meal; a dish that stands in the other plan as well is ticked."""
    for meal in sorted(plan.meals, key=lambda meal: DAY_INDEX[meal.day]):
        tick = " ✓" if meal.recipe_id in other.recipe_ids else ""
        yield f"{meal.day[:3].capitalize()} {_title(meal.recipe_id, catalogue)} x{meal.servings}{tick}"


def _edit_lines(predicted: Plan, accepted: Plan, catalogue: Catalogue) -> Iterable[str]:
    for edit in edits_between(predicted, accepted):
        day = edit.day[:3].capitalize()
        if edit.type == "swap_meal":
            yield f"{day} swap for {_title(edit.to_recipe or '', catalogue)}"
        elif edit.type == "add_meal":
            yield f"{day} add {_title(edit.recipe_id or '', catalogue)}"
        else:
            yield f"{day} remove" if edit.type == "remove_meal" else f"{day} servings to {edit.servings}"


def _title(recipe_id: str, catalogue: Catalogue) -> str:
    recipe = catalogue.by_id.get(recipe_id)
    return text_title(recipe.title) if recipe else "(a dish that is not in the catalogue)"
