from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.evaluation.gate import Subject, decide, differences, gate_metrics

SUBJECT = Subject("planner_model", "2", "1", "2024-01-01", "d" * 32, "test")


def rows(num_rows: int = 120, *, per_household: int = 2, **changes: object) -> pa.Table:
    columns: dict[str, object] = {
        "event_id": [f"e{i}" for i in range(num_rows)],
        "household_id": [f"h{i // per_household}" for i in range(num_rows)],
        "violations": pa.array([[]] * num_rows, pa.list_(pa.string())),
    }
    for name in SCORES:
        columns[name] = columns[f"baseline_{name}"] = [0.6] * num_rows
    columns.update({k: [v] * num_rows if isinstance(v, float) else v for k, v in changes.items()})
    return pa.table(columns)


def said(gate: GateResult) -> str:
    return " ".join(gate.reasons)


def test_an_equal_model_without_a_violation_passes_and_says_what_the_rows_support() -> None:
    gate = decide(rows(), SUBJECT)
    assert gate.verdict is Verdict.PASS
    assert (gate.num_rows, gate.num_households, gate.violations) == (120, 60, 0)
    assert "at most 2.50% (3 / n)" in said(gate)
    assert gate.scores == gate.baseline_scores == pytest.approx(dict.fromkeys(SCORES, 0.6))


@pytest.mark.parametrize("name", ["plan_alignment_score", "edit_distance_score"])
def test_a_mean_below_the_baseline_fails_however_little(name: str) -> None:
    gate = decide(rows(**{name: 0.5999}), SUBJECT)
    assert gate.verdict is Verdict.FAIL and name in said(gate) and "-0.0001" in said(gate)


@pytest.mark.parametrize("name", ["diversity_score", "leftovers_score"])
def test_less_than_95_per_cent_of_the_baseline_fails(name: str) -> None:
    assert decide(rows(**{name: 0.56}), SUBJECT).verdict is Verdict.FAIL
    assert decide(rows(**{name: 0.58}), SUBJECT).verdict is Verdict.PASS


def test_one_violation_in_a_million_rows_would_fail() -> None:
    found = pa.array([["too dear"], *[[]] * 119], pa.list_(pa.string()))
    gate = decide(rows(violations=found), SUBJECT)
    assert gate.verdict is Verdict.FAIL and gate.violations == 1 and "1 of 120 plans" in said(gate)


def test_a_bound_that_the_rows_cannot_hold_is_inconclusive_and_says_how_many_households_it_takes() -> None:
    noisy = np.tile([0.0, 0.0, 1.0, 1.0], 30)
    gate = decide(rows(diversity_score=noisy, baseline_diversity_score=0.5), SUBJECT)
    assert gate.verdict is Verdict.INCONCLUSIVE
    needed = round(((1.6449 + 0.8416) * math.sqrt(60 / 59 * 0.25) / 0.025) ** 2)
    assert f"About {needed} households" in said(gate) or f"About {needed + 1} households" in said(gate)


def test_a_mean_below_the_limit_fails_even_where_the_bound_is_wide() -> None:
    noisy = np.tile([0.0, 0.0, 0.9, 0.9], 30)
    assert decide(rows(diversity_score=noisy, baseline_diversity_score=0.5), SUBJECT).verdict is Verdict.FAIL


def test_too_few_households_are_inconclusive_but_never_excuse_a_failure() -> None:
    gate = decide(rows(118), SUBJECT)
    assert gate.verdict is Verdict.INCONCLUSIVE and "59 households" in said(gate) and "60" in said(gate)
    assert decide(rows(118), SUBJECT, min_households=59).verdict is Verdict.PASS
    assert decide(rows(118, plan_alignment_score=0.1), SUBJECT).verdict is Verdict.FAIL


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -0.1, 1.1])
@pytest.mark.parametrize("name", ["leftovers_score", "baseline_plan_alignment_score"])
def test_a_missing_or_impossible_score_invalidates_the_replay(name: str, bad: float | None) -> None:
    gate = decide(rows(**{name: pa.array([bad, *[0.6] * 119], pa.float64())}), SUBJECT)
    assert gate.verdict is Verdict.FAIL and f"{name} is missing or no number in [0, 1] in 1 of 120 rows" in said(gate)
    assert gate.scores == {}


def test_repeated_ids_incomplete_models_a_missing_column_or_no_row_invalidate_the_replay() -> None:
    for table, options in (
        (rows(event_id=["e"] * 120), {}),
        (rows(), {"invalid": ["version 2 lacks adapter.safetensors."]}),
        (rows().drop_columns(["baseline_leftovers_score"]), {}),
        (rows(0), {}),
    ):
        gate = decide(table, SUBJECT, **options)  # type: ignore[arg-type]
        assert gate.verdict is Verdict.FAIL and "not valid" in said(gate)
    assert decide(rows(), dataclasses.replace(SUBJECT, baseline_version="2")).verdict is Verdict.FAIL


def test_rows_that_were_trained_on_can_never_pass() -> None:
    gate = decide(rows(), SUBJECT, trained_on=True)
    assert gate.verdict is Verdict.INCONCLUSIVE and "trained on" in said(gate)


def test_equal_scores_in_another_order_are_not_below_the_baseline() -> None:
    values = np.random.default_rng(0).random(120)
    gate = decide(rows(plan_alignment_score=values, baseline_plan_alignment_score=values[::-1].copy()), SUBJECT)
    assert gate.verdict is Verdict.PASS


def test_means_that_are_equal_but_for_rounding_are_not_below_the_baseline() -> None:
    # 1/3 + 2/9 = 5/9, but not in doubles.
    mine, other = np.tile([1 / 3, 2 / 9], 60), np.tile([0, 5 / 9], 60)
    assert math.fsum(mine) < math.fsum(other)
    gate = decide(rows(plan_alignment_score=mine, baseline_plan_alignment_score=other), SUBJECT)
    assert gate.verdict is Verdict.PASS and "not below" in said(gate) and "(+0.0000)" in said(gate)


@pytest.mark.parametrize("name", ["diversity_score", "leftovers_score"])
@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (0.665, 0.7), (0.3325, 0.35), (0.6175, 0.65), (0.7125, 0.75), (0.8075, 0.85), (0.95, 1.0), (0.76, 0.8),
        (0.0, 0.0),
    ],
)  # fmt: skip
def test_a_candidate_exactly_at_the_limit_is_inconclusive_whatever_the_rounding(
    name: str, mine: float, other: float
) -> None:
    gate = decide(rows(160, **{name: mine, f"baseline_{name}": other}), SUBJECT)
    assert gate.num_households == 80 and gate.verdict is Verdict.INCONCLUSIVE
    assert "is +0.0000, not above 0" in said(gate) and "stands exactly at the limit" in said(gate)


def test_a_reference_is_compared_on_the_rows_that_have_it() -> None:
    previous = {f"previous_{name}": pa.array([None, 0.5] * 60, pa.float64()) for name in SCORES}
    found = differences(rows(**previous), prefix="previous_")
    assert found["diversity_score"].num_rows == 60 and found["diversity_score"].mean == pytest.approx(0.1)


def test_the_figures_carry_both_models_scores() -> None:
    figures = gate_metrics(decide(rows(), SUBJECT))
    assert figures["num_violations"] == 0 and figures["baseline_leftovers_score"] == pytest.approx(0.6)
