from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ReplayError
from planner.contracts.example import Example
from planner.contracts.gate import SCORES
from planner.contracts.plan import Plan
from planner.contracts.prompt import render_prompt
from planner.contracts.request import Constraints, Request
from planner.decoding.result import PlanResult
from planner.evaluation.replay import WINDOW, Lineage, Replay, batches_of, catalogue_difference, replay
from tests.evaluation.planners import catalogue_of, example_of, examples_of, oracle, popular

CATALOGUE = catalogue_of()
EXAMPLES = examples_of(30, CATALOGUE)


def run(folder: Path, examples: Iterable[Example] = EXAMPLES, **options: Any) -> Replay:
    options.setdefault("candidate", oracle(EXAMPLES, CATALOGUE))
    options.setdefault("baseline", popular(CATALOGUE))
    defaults = {
        "catalogue": CATALOGUE, "split": "test", "identity": {"candidate": "a", "baseline": "b"},
        "lineage": Lineage("d", "train"), "baseline_lineage": Lineage("d", "train"), "batch_size": 4,
    }  # fmt: skip
    return replay(examples=examples, folder=folder, **{**defaults, **options})


def test_an_oracle_is_perfectly_aligned_and_the_contracts_columns_stand_first(tmp_path: Path) -> None:
    rows = run(tmp_path).read_rows()
    assert rows.column_names[:18] == [
        "event_id", "household_id", "predicted_plan", "accepted_plan", *SCORES, "predicted_edits", "actual_edits",
        "violations", "feasible", *(f"baseline_{name}" for name in SCORES),
    ]  # fmt: skip
    assert set(rows["plan_alignment_score"].to_pylist()) == {1.0} == set(rows["edit_distance_score"].to_pylist())
    assert max(rows["baseline_plan_alignment_score"].to_pylist()) < 1
    assert rows["predicted_plan"].to_pylist() == rows["accepted_plan"].to_pylist()
    assert rows["event_id"].to_pylist() == [example.event_id for example in EXAMPLES]
    assert rows["actual_edits"].to_pylist() == [1] * 30


def test_two_replays_write_the_same_bytes_whatever_the_batch_size(tmp_path: Path) -> None:
    one = run(tmp_path / "one").rows_path.read_bytes()
    assert run(tmp_path / "two").rows_path.read_bytes() == one
    assert run(tmp_path / "three", batch_size=7).rows_path.read_bytes() == one


def test_batches_are_of_similar_length_within_a_window_of_the_stream() -> None:
    rows, num_read = examples_of(2 * WINDOW * 3 + 5, CATALOGUE), 0
    rows = [replace(row, request=replace(row.request, mode="m" * (7 * i % 50))) for i, row in enumerate(rows)]

    def streamed() -> Iterator[Example]:
        nonlocal num_read
        for row in rows:
            num_read += 1
            yield row

    ends, places = [], []
    for batch in batches_of(streamed(), split="test", identity={}, catalogue=CATALOGUE, batch_size=3):
        assert [rows[place] for place in batch.places] == list(batch.examples)
        lengths = [len(render_prompt(row.request, CATALOGUE)) for row in batch.examples]
        ends.append((batch.index // WINDOW, min(lengths), max(lengths)))
        places += batch.places
        assert num_read <= (batch.index // WINDOW + 1) * WINDOW * 3
    assert sorted(places) == list(range(len(rows))) and len({window for window, _, _ in ends}) == 3
    for one, two in pairwise(ends):
        assert one[0] < two[0] or one[2] <= two[1]


class Killed(Exception):
    pass


def test_a_killed_replay_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").rows_path.read_bytes()

    def kill(done: int, total: int | None, what: str) -> None:
        if done >= 16:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", progress=kill)
    assert not (tmp_path / "cut/rows.parquet").exists()
    again = popular(CATALOGUE)
    resumed = run(tmp_path / "cut", baseline=again)
    assert resumed.rows_path.read_bytes() == whole
    assert resumed.num_resumed == 16 and again.num_calls == 4
    assert resumed.costs["candidate"].num_plans == 30 and resumed.metrics()["tokens_per_plan"] == 30


def test_a_changed_part_other_models_or_other_rows_are_planned_again(tmp_path: Path) -> None:
    whole = run(tmp_path).rows_path.read_bytes()
    assert run(tmp_path).num_resumed == 30
    (part := tmp_path / "parts/part-000002.parquet").write_bytes(part.read_bytes()[:-1] + b"?")
    changed = run(tmp_path)
    assert changed.num_resumed == 26 and changed.rows_path.read_bytes() == whole
    assert run(tmp_path, identity={"candidate": "c"}).num_resumed == 0
    assert run(tmp_path, identity={"candidate": "c"}, resume=False).num_resumed == 0
    assert run(tmp_path, EXAMPLES[4:8], identity={"candidate": "c"}).num_rows == 4


@pytest.mark.parametrize("limits", [Constraints(max_prep_time=1), Constraints(budget=-5.0)])
def test_an_impossible_request_is_counted_apart_and_never_violates(tmp_path: Path, limits: Constraints) -> None:
    examples = [example_of(99, "h99", CATALOGUE, constraints=limits), *EXAMPLES]
    row = run(tmp_path, examples, candidate=popular(CATALOGUE)).read_rows().to_pylist()[0]
    assert row["feasible"] is False and row["reason"].startswith("no_recipe_allowed") and not row["wrongly_infeasible"]
    assert (row["plan_alignment_score"], row["edit_distance_score"], row["constraint_respect_score"]) == (0, 0, 1)
    assert row["predicted_plan"] == {"meals": []} and row["violations"] == []


class Stubborn:
    """Answers every request with one result, right or wrong."""

    kind = "popular"
    catalogue = CATALOGUE

    def __init__(self, *results: PlanResult) -> None:
        self.results = results

    def plan(self, requests: list[Request]) -> list[PlanResult]:
        return list(self.results) * len(requests)


@pytest.mark.parametrize(
    ("plan", "feasible", "text"),
    [(Plan(()), True, "no meal"), (EXAMPLES[0].accepted_plan, False, "infeasible, yet")],
)
def test_a_plan_at_odds_with_its_feasibility_is_a_violation(
    tmp_path: Path, plan: Plan, feasible: bool, text: str
) -> None:
    row = run(tmp_path, candidate=Stubborn(PlanResult(plan, feasible, None))).read_rows().to_pylist()[0]
    assert text in row["violations"][0] and row["constraint_respect_score"] == 0
    assert row["wrongly_infeasible"] is not feasible


def test_a_violating_planner_is_found_out(tmp_path: Path) -> None:
    examples = [example_of(i, "h", CATALOGUE, restrictions=("vegetarian",)) for i in range(6)]
    rows = run(tmp_path, examples, candidate=oracle(examples, CATALOGUE)).read_rows().to_pylist()
    assert any("does not carry the tag" in text for row in rows for text in row["violations"])
    assert all(not row["baseline_violations"] for row in rows)


def test_references_are_scored_where_they_exist_and_null_elsewhere(tmp_path: Path) -> None:
    for row in run(tmp_path).read_rows().to_pylist():
        index = int(row["event_id"][1:])
        assert (
            (row["previous_plan_alignment_score"] is None) == (row["previous_violations"] is None) == (index % 7 == 0)
        )
        assert (row["logged_leftovers_score"] is None) == (row["logged_plan"] is None) == (index % 5 == 0)


@pytest.mark.parametrize("lineage", [Lineage("d", "test"), Lineage("other", "test"), Lineage(None, None)])
def test_rows_that_were_trained_on_are_refused_unless_asked_for_and_then_marked(
    tmp_path: Path, lineage: Lineage
) -> None:
    with pytest.raises(ReplayError, match="cannot be replayed on split 'test'"):
        run(tmp_path, lineage=lineage)
    assert run(tmp_path, lineage=lineage, allow_trained_rows=True).trained_on
    with pytest.raises(ReplayError, match="The baseline"):
        run(tmp_path, baseline_lineage=lineage)
    assert not run(tmp_path, baseline_lineage=None).trained_on


def test_a_catalogue_too_far_from_the_datasets_is_refused_and_a_small_difference_reported(tmp_path: Path) -> None:
    changed = Catalogue.of(CATALOGUE.recipes[1:])
    assert catalogue_difference(changed, CATALOGUE) == 1
    assert run(tmp_path, baseline=popular(changed)).catalogue_differences == {"candidate": 0, "baseline": 1}
    with pytest.raises(ReplayError, match=r"baseline's catalogue differs .* in 1 of 24 recipes \(4.2%, at most 1.0%\)"):
        run(tmp_path, baseline=popular(changed), max_catalogue_difference=0.01)


def test_bad_rows_and_broken_planners_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no rows"):
        run(tmp_path, [])
    with pytest.raises(ReplayError, match="of split 'train'"):
        run(tmp_path, examples_of(2, CATALOGUE, split="train"))
    with pytest.raises(ReplayError, match="stands twice"):
        run(tmp_path, [EXAMPLES[0], EXAMPLES[0]])
    with pytest.raises(ReplayError, match="gave 0 plans for 4 requests"):
        run(tmp_path, candidate=Stubborn())


def test_costs_are_measured_with_the_clock_given(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    metrics = run(tmp_path, clock=lambda: float(next(ticks))).metrics()
    assert metrics["plans_per_second"] == 30 / 8 and metrics["baseline_model_calls_per_plan"] == 3
