"""An outside planner's answers: texts and plans, right and wrong, from the file to the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.contracts.errors import ReplayError
from planner.contracts.prompt import render_plan
from planner.contracts.request import Constraints
from planner.evaluation.outside import verify_outside, write_requests
from planner.evaluation.replay import Lineage, replay
from tests.evaluation.planners import catalogue_of, example_of, examples_of, oracle, popular

CATALOGUE = catalogue_of()
EXAMPLES = examples_of(12, CATALOGUE)
IMPOSSIBLE = example_of(99, "h99", CATALOGUE, constraints=Constraints(max_prep_time=1))


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def texts() -> list[dict]:
    return [{"event_id": e.event_id, "text": render_plan(e.accepted_plan, e.request, CATALOGUE)} for e in EXAMPLES]


def test_texts_and_plans_of_a_faultless_planner_are_clean(tmp_path: Path) -> None:
    plans = [{"event_id": e.event_id, "plan": e.accepted_plan.to_dict()} for e in EXAMPLES]
    answers = [*texts(), {"event_id": IMPOSSIBLE.event_id, "text": ""}]
    report = verify_outside(lines(tmp_path / "a.jsonl", answers), [*EXAMPLES, IMPOSSIBLE], CATALOGUE)
    assert report.clean and (report.num_rows, report.num_infeasible) == (13, 1)
    assert report.scores["plan_alignment_score"] == 12 / 13 and report.scores["constraint_respect_score"] == 1
    other = verify_outside(lines(tmp_path / "b.jsonl", plans), EXAMPLES, CATALOGUE)
    assert other.clean and other.scores["plan_alignment_score"] == 1


def test_rows_of_a_replay_get_the_replay_s_own_scores(tmp_path: Path) -> None:
    found = replay(
        popular(CATALOGUE), oracle(EXAMPLES, CATALOGUE), EXAMPLES, catalogue=CATALOGUE, folder=tmp_path,
        split="test", identity={}, lineage=Lineage("d", "train"),
    )  # fmt: skip
    report = verify_outside(found.rows_path, EXAMPLES, CATALOGUE)
    rows = found.read_rows()
    assert report.clean
    for name, mean in report.scores.items():
        assert mean == pytest.approx(sum(rows[name].to_pylist()) / len(rows))


def test_whatever_is_wrong_is_named_by_its_event(tmp_path: Path) -> None:
    answers = texts()
    meal = answers[0]["text"].splitlines()[0]
    answers[0]["text"] = meal + "\n" + meal + "\n"  # a day twice
    answers[1]["text"] = "Mon: Something nice\n"
    answers[2] = {"event_id": answers[2]["event_id"], "plan": {"meals": [{"day": "monday"}]}}
    answers[3] = {"event_id": answers[3]["event_id"], "plan": EXAMPLES[3].accepted_plan.to_dict(), "feasible": False}
    answers[4] = {"event_id": answers[4]["event_id"], "plan": {"meals": []}}
    answers[5]["text"] = 5
    answers[8]["text"] = answers[8]["text"].splitlines()[0].partition(" x")[0] + " x" + "9" * 5000
    answers[9]["text"] = answers[9]["text"].splitlines()[0].partition(" x")[0] + " x" + "9" * 10
    del answers[6]
    slow = example_of(98, "h98", CATALOGUE, constraints=Constraints(max_prep_time=12))
    answers.append({"event_id": slow.event_id, "plan": EXAMPLES[7].accepted_plan.to_dict()})
    report = verify_outside(lines(tmp_path / "a.jsonl", answers), [*EXAMPLES, slow], CATALOGUE)
    found = {id: texts[0] for id, texts in report.violations.items()}
    told = {0: "second time", 1: "Not a line", 2: "servings", 3: "yet it got", 5: "no text", 8: "Not a line"}
    for place, text in {**told, 9: "servings is 9999999999"}.items():
        assert text in found[EXAMPLES[place].event_id]
    assert "but the limit is 12" in found[slow.event_id] and len(found) == 8
    assert report.unanswered == (EXAMPLES[6].event_id,) and report.wrongly_infeasible == (EXAMPLES[4].event_id,)
    assert not report.clean and report.scores["constraint_respect_score"] == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("not json", "cannot be read"),
        ("[1]", "line 1 is no object"),
        ("[" * 100_000, "cannot be read"),
        ('{"event_id": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"event_id": "e00000", "text": ""}\n{"event_id": "e00000", "text": ""}', "twice"),
        ('{"text": ""}', "without an event_id"),
        ('{"event_id": "other", "text": ""}', "were not asked"),
    ],
)
def test_files_that_are_no_answers_are_refused(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ReplayError, match=text):
        verify_outside(tmp_path / "a.jsonl", EXAMPLES, CATALOGUE)
    with pytest.raises(ReplayError, match="cannot be read"):
        verify_outside(tmp_path / "none.parquet", EXAMPLES, CATALOGUE)


def test_requests_hold_the_prompt_that_the_model_was_trained_on(tmp_path: Path) -> None:
    assert write_requests(EXAMPLES, CATALOGUE, tmp_path / "r.jsonl") == 12
    row = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[3])
    assert row["event_id"] == EXAMPLES[3].event_id and row["request"] == EXAMPLES[3].request.to_dict()
    assert row["prompt"].endswith("This week:\n")
    with pytest.raises(ReplayError, match="cannot be written"):
        write_requests(EXAMPLES, CATALOGUE, tmp_path / "none" / "r.jsonl")
