from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import PromotionError
from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.dataset.database import create_schema
from planner.promotion.results import (
    ReplayRow,
    fail_replay,
    latest_attempt,
    latest_evidence,
    record_replay,
    start_replay,
)

POLICY = "planner_policy"
DEFAULTS = {"temperature": 0.0, "max_tokens": 512}
BEGUN: dict[str, Any] = {
    "policy": POLICY,
    "model_name": "planner_model",
    "model_version": "2",
    "dataset_version": "2025-01-03",
    "config_defaults": DEFAULTS,
}
Ask = Callable[..., list[tuple[Any, ...]]]
Gate = Callable[..., GateResult]


def record(connection: Connection, gate: GateResult, run_id: str = "run1") -> ReplayRow:
    return record_replay(connection, gate, run_id=run_id, policy=POLICY, config_defaults=DEFAULTS)


def test_a_pass_is_recorded_with_both_policy_versions_and_six_decimals(db: Connection, ask: Ask, gate: Gate) -> None:
    row = record(db, gate())
    assert (row.status, row.is_better_than_baseline, row.error_message, row.created) == ("completed", True, None, True)
    assert ask(
        "SELECT c.mlflow_model_version, c.version, b.mlflow_model_version, b.version, r.dataset_version,"
        " r.mlflow_run_id, r.plan_alignment_score, r.constraint_respect_score, r.error_message"
        " FROM exp.offline_replay_results r JOIN exp.policy_versions c ON c.id = r.policy_version_id"
        " JOIN exp.policy_versions b ON b.id = r.baseline_version_id"
    ) == [("2", 2, "1", 1, "2025-01-03", "run1", Decimal("0.512346"), Decimal(1), None)]


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_any_other_verdict_is_no_evidence_and_keeps_its_reasons(
    db: Connection, ask: Ask, gate: Gate, verdict: Verdict
) -> None:
    record(db, gate(verdict=verdict, reasons=("Alignment is below\nthe baseline.", "Too few households.")))
    assert ask("SELECT is_better_than_baseline, status, error_message FROM exp.offline_replay_results") == [
        (False, "completed", f"{verdict.value}\nAlignment is below the baseline.\nToo few households.")
    ]
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and not evidence.passed
    assert evidence.reasons == (verdict.value, "Alignment is below the baseline.", "Too few households.")


def test_a_rerun_of_one_run_never_gives_two_rows(db: Connection, ask: Ask, gate: Gate) -> None:
    rows = [record(db, gate()) for _ in range(3)]
    assert [r.created for r in rows] == [True, False, False]
    assert len({r.id for r in rows}) == 1
    record(db, gate(), "run2")
    assert ask("SELECT count(*) FROM exp.offline_replay_results") == [(2,)]
    assert ask("SELECT count(*) FROM exp.policy_versions") == [(2,)]


def test_concurrent_records_of_one_run_give_one_row(connect: Callable[..., Connection], ask: Ask, gate: Gate) -> None:
    connections = [connect() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda c: record(c, gate()), connections))
    assert sum(r.created for r in rows) == 1
    assert ask("SELECT count(*) FROM exp.offline_replay_results") == [(1,)]


def test_evidence_is_never_rewritten(db: Connection, ask: Ask, gate: Gate) -> None:
    record(db, gate(verdict=Verdict.FAIL, reasons=("Worse.",)))
    with pytest.raises(PromotionError, match=r"run1.*is_better_than_baseline.*new run"):
        record(db, gate())
    assert ask("SELECT is_better_than_baseline FROM exp.offline_replay_results") == [(False,)]


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_pass_on_rows_that_were_trained_on_is_no_evidence(db: Connection, gate: Gate, split: str) -> None:
    row = record(db, gate(split=split))
    assert row.is_better_than_baseline is False
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and not evidence.passed and "not held out" in evidence.reasons[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"violations": 1},
        {"num_rows": 0},
        {"scores": {}},
        {"scores": {name: float("nan") if name == "diversity_score" else 1.0 for name in SCORES}},
        {"scores": {name: 1.5 for name in SCORES}},
        {"baseline_version": "2"},
    ],
)
def test_a_pass_that_contradicts_itself_is_not_recorded(
    db: Connection, ask: Ask, gate: Gate, changes: dict[str, Any]
) -> None:
    with pytest.raises(PromotionError):
        record(db, gate(**changes))
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]


def test_a_failed_gate_without_scores_is_recorded_with_nulls(db: Connection, ask: Ask, gate: Gate) -> None:
    record(db, gate(verdict=Verdict.FAIL, reasons=("A score is NaN.",), scores={"diversity_score": float("nan")}))
    assert ask("SELECT diversity_score, leftovers_score FROM exp.offline_replay_results") == [(None, None)]


def test_a_replay_runs_then_completes_in_one_row(db: Connection, ask: Ask, gate: Gate) -> None:
    started = start_replay(db, run_id="run1", **BEGUN)
    assert (started.status, started.created, latest_evidence(db, "planner_model", "2")) == ("running", True, None)
    assert start_replay(db, run_id="run1", **BEGUN).created is False
    done = record(db, gate())
    assert (done.id, done.status, done.created) == (started.id, "completed", True)
    assert ask("SELECT count(*) FROM exp.offline_replay_results") == [(1,)]
    assert start_replay(db, run_id="run1", **BEGUN).status == "completed"


def test_a_replay_that_breaks_off_is_left_failed_with_its_message(db: Connection, gate: Gate) -> None:
    start_replay(db, run_id="run1", **BEGUN)
    fail_replay(db, run_id="run1", message="Out of memory\x00 at row 7.", **BEGUN)
    attempt = latest_attempt(db, "planner_model", "2")
    assert attempt is not None
    assert (attempt.status, attempt.reasons) == ("failed", ("Out of memory  at row 7.",))
    assert latest_evidence(db, "planner_model", "2") is None
    assert record(db, gate()).status == "completed"  # the same run, resumed


def test_a_completed_replay_cannot_fail_afterwards(db: Connection, gate: Gate) -> None:
    record(db, gate())
    row = fail_replay(db, run_id="run1", message="late", **BEGUN)
    assert (row.status, row.created, row.error_message) == ("completed", False, None)


def test_the_newest_completed_replay_is_the_evidence(db: Connection, ask: Ask, gate: Gate) -> None:
    record(db, gate(), "old")
    record(db, gate(verdict=Verdict.FAIL, reasons=("Worse.",)), "new")
    start_replay(db, run_id="unfinished", **BEGUN)
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and (evidence.run_id, evidence.passed) == ("new", False)
    ask("UPDATE exp.offline_replay_results SET created_at = now() + interval '1 day' WHERE mlflow_run_id = 'old'")
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and (evidence.run_id, evidence.passed) == ("old", True)
    assert (evidence.baseline_version, evidence.dataset_version) == ("1", "2025-01-03")


def test_of_two_replays_at_one_instant_the_worse_counts(db: Connection, ask: Ask, gate: Gate) -> None:
    record(db, gate(), "a")
    record(db, gate(verdict=Verdict.FAIL, reasons=("Worse.",)), "b")
    ask("UPDATE exp.offline_replay_results SET created_at = '2025-01-03 00:00+00'")
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and evidence.run_id == "b"


def test_evidence_of_another_version_or_model_does_not_count(db: Connection, gate: Gate) -> None:
    record(db, gate())
    assert latest_evidence(db, "planner_model", "1") is None
    assert latest_evidence(db, "other_model", "2") is None


@pytest.mark.parametrize(
    "forged",
    [
        "constraint_respect_score = 0.999999",
        "leftovers_score = NULL",
        "is_better_than_baseline = NULL",
        "baseline_version_id = NULL",
    ],
)
def test_a_row_that_lacks_part_of_a_pass_is_none(db: Connection, ask: Ask, gate: Gate, forged: str) -> None:
    record(db, gate())
    ask(f"UPDATE exp.offline_replay_results SET {forged}")
    evidence = latest_evidence(db, "planner_model", "2")
    assert evidence is not None and not evidence.passed


def test_the_view_gives_the_change_from_the_last_completed_replay_of_the_version_before(
    db: Connection, ask: Ask, gate: Gate
) -> None:
    def replay(version: str, run_id: str, share: float) -> None:
        record(db, gate(model_version=version, scores=dict.fromkeys(SCORES, share)), run_id)

    replay("2", "two", 0.5)
    replay("2", "two again", 0.6)
    fail_replay(db, run_id="three", message="Broke off.", **{**BEGUN, "model_version": "3"})
    replay("4", "four", 0.75)
    start_replay(db, run_id="four again", **{**BEGUN, "model_version": "4"})
    changes = [f"{name.removesuffix('_score')}_change" for name in SCORES]
    rows = ask(f"SELECT mlflow_run_id, policy_version, {', '.join(changes)} FROM exp.v_offline_replay")
    found = {run: (version, {*values}) for run, version, *values in rows}
    assert found == {
        "two": (2, {None}),
        "two again": (2, {None}),
        "three": (3, {None}),
        "four": (4, {Decimal("0.15")}),
        "four again": (4, {None}),
    }


def test_a_database_with_the_older_view_takes_the_schema_again(db: Connection, ask: Ask) -> None:
    ask("DROP VIEW exp.v_offline_replay")
    ask(
        "CREATE VIEW exp.v_offline_replay AS SELECT r.id, p.name AS policy_name, pv.version AS policy_version,"
        " pv.mlflow_model_name, pv.mlflow_model_version, r.dataset_version, r.mlflow_run_id, r.plan_alignment_score,"
        " r.constraint_respect_score, r.edit_distance_score, r.diversity_score, r.leftovers_score,"
        " r.is_better_than_baseline, r.status, r.created_at,"
        " r.plan_alignment_score - lag(r.plan_alignment_score) OVER w AS plan_alignment_change,"
        " r.edit_distance_score - lag(r.edit_distance_score) OVER w AS edit_distance_change,"
        " r.diversity_score - lag(r.diversity_score) OVER w AS diversity_change,"
        " r.leftovers_score - lag(r.leftovers_score) OVER w AS leftovers_change"
        " FROM exp.offline_replay_results r JOIN exp.policy_versions pv ON pv.id = r.policy_version_id"
        " JOIN exp.policies p ON p.id = pv.policy_id WINDOW w AS (PARTITION BY pv.policy_id ORDER BY pv.version)"
    )
    create_schema(db)
    assert ask("SELECT constraint_respect_change FROM exp.v_offline_replay") == []
