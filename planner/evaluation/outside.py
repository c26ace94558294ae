"""Plans of a planner that is not ours (vLLM on a cluster, a rule, a person), judged by the independent verifier.

In: a file with one answer a row, and the examples that were asked. Out: every violation, what was not answered, and
the five scores. A `.jsonl` line is `{"event_id", "text"}` (the model's text) or `{"event_id", "plan"}`, a `.parquet`
row `event_id` and `predicted_plan`, as in `rows.parquet`; `feasible` may stand beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ContractError, ReplayError
from planner.contracts.example import Example
from planner.contracts.gate import SCORES
from planner.contracts.plan import EMPTY_PLAN, Plan, plan_problem
from planner.contracts.prompt import parse_plan_text, render_prompt
from planner.evaluation.scores import score_plan
from planner.evaluation.statistics import exact_mean
from planner.evaluation.verify import is_satisfiable, violations


@dataclass(frozen=True)
class OutsideReport:
    """What was found. `violations` by event id; `unanswered` and `wrongly_infeasible` are event ids."""

    num_rows: int
    num_infeasible: int
    violations: Mapping[str, tuple[str, ...]]
    unanswered: tuple[str, ...]
    wrongly_infeasible: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether every request was answered, and no answer breaks anything."""
        return not (self.violations or self.unanswered or self.wrongly_infeasible)


def write_requests(examples: Iterable[Example], catalogue: Catalogue, path: Path) -> int:
    """Write what an outside planner is asked, one JSON line a row; how many.

    Each line holds `event_id`, `prompt` (the text that the model continues) and `request` (for the legal tokens).

    Raises:
        ReplayError: the file cannot be written.
    """
    num_rows = 0
    try:
        with path.open("w", encoding="utf-8") as file:
            for example in examples:
                line = {
                    "event_id": example.event_id,
                    "prompt": render_prompt(example.request, catalogue),
                    "request": example.request.to_dict(),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                num_rows += 1
    except OSError as error:
        raise ReplayError(f"{path} cannot be written: {error.strerror or error}. Choose another file.") from None
    return num_rows


def verify_outside(path: Path, examples: Iterable[Example], catalogue: Catalogue) -> OutsideReport:
    """Verify and score every answer of a file.

    Args:
        path: `.jsonl` or `.parquet`, see above.
        examples: the rows that were asked, with what was accepted; each must be answered once.
        catalogue: the dataset's.

    Raises:
        ReplayError: the file cannot be read, or answers an event twice or one that was not asked.
    """
    answers: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(_rows(path), 1):
        event_id = row.get("event_id")
        if not isinstance(event_id, str) or event_id in answers:
            what = "twice" if isinstance(event_id, str) else "without an event_id"
            raise ReplayError(f"Row {number} of {path} answers {event_id!r} {what}. Write one row for each event.")
        answers[event_id] = row
    broken: dict[str, tuple[str, ...]] = {}
    unanswered: list[str] = []
    wrongly: list[str] = []
    rows: list[dict[str, float]] = []
    num_infeasible = 0
    for example in examples:
        answer = answers.pop(example.event_id, None)
        if answer is None:
            unanswered.append(example.event_id)
            continue
        plan, found = _judge(answer, example, catalogue)
        if found:
            broken[example.event_id] = found
        elif not plan.meals:
            num_infeasible += 1
            if is_satisfiable(example.request, catalogue):
                wrongly.append(example.event_id)
        rows.append(_scores(example, plan, catalogue, respected=not found))
    if answers:
        raise ReplayError(
            f"{path} answers {len(answers)} events that were not asked (first {min(answers)!r}). "
            "Name the dataset and the split that the requests came from."
        )
    scores = {name: exact_mean([scores[name] for scores in rows]) for name in SCORES} if rows else {}
    return OutsideReport(len(rows), num_infeasible, broken, tuple(unanswered), tuple(wrongly), scores)


def _judge(row: Mapping[str, Any], example: Example, catalogue: Catalogue) -> tuple[Plan, tuple[str, ...]]:
    """The plan as far as it can be read, and what is wrong with it."""
    try:
        plan = _plan_of(row, example, catalogue)
    except ContractError as error:
        return EMPTY_PLAN, (f"The answer is no plan: {error}",)
    found = list(violations(plan, example.request, catalogue))
    if row.get("feasible") is True and not plan.meals:
        found.append("The plan has no meal, although the request is said to be feasible.")
    if row.get("feasible") is False and plan.meals:
        found.append("The request is said to be infeasible, yet it got a plan.")
    return plan, tuple(found)


def _plan_of(row: Mapping[str, Any], example: Example, catalogue: Catalogue) -> Plan:
    """An empty text, no meals and null are the claim that no plan exists."""
    if row.get("text") is not None:
        if not isinstance(row["text"], str):
            raise ContractError("text is no text.")
        plan = parse_plan_text(row["text"].strip("\n"), example.request, catalogue)
        value: Any = plan.to_dict()
    else:
        value = row.get("plan", row.get("predicted_plan"))
    if value is None or (isinstance(value, Mapping) and value.get("meals") == []):
        return EMPTY_PLAN
    problem = plan_problem(value)
    if problem is not None:
        raise ContractError(problem)
    return Plan.from_valid(value)


def _scores(example: Example, plan: Plan, catalogue: Catalogue, *, respected: bool) -> dict[str, float]:
    scores = score_plan(
        plan,
        example.accepted_plan,
        example.request.pantry,
        catalogue,
        respected=respected,
        feasible=bool(plan.meals),
    )
    return {name: getattr(scores, name) for name in SCORES}


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            names = set(pq.read_schema(path).names) & {"event_id", "plan", "predicted_plan", "text", "feasible"}
            yield from pq.read_table(path, columns=sorted(names)).to_pylist()
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object")
                yield row
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ReplayError(f"{path} cannot be read ({reason}). Name a .jsonl or a .parquet file.", path=path) from None
