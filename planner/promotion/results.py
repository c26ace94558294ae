"""Replay results in Postgres: the evidence that a promotion asks for, whatever the registry's tags say.

In: the `GateResult` of a replay and its MLflow run. Out: one row of `exp.offline_replay_results`, and `Evidence` of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from planner.contracts.errors import PromotionError
from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.promotion.policy import PolicyVersion, find_or_create, policy_lock
from planner.promotion.transactions import read_rows, run_serialised, stable_id

HELD_OUT = ("test", "validation")
_RESULT = ("dataset_version", *SCORES, "baseline_version_id", "is_better_than_baseline", "status", "error_message")
_COLUMNS = ", ".join(_RESULT)
_EVIDENCE = f"""
SELECT r.id, r.policy_version_id, r.mlflow_run_id, r.status, r.is_better_than_baseline, r.error_message,
       r.dataset_version, b.mlflow_model_name, b.mlflow_model_version, r.created_at,
       {", ".join("r." + s for s in SCORES)}
FROM exp.offline_replay_results r
JOIN exp.policy_versions pv ON pv.id = r.policy_version_id
LEFT JOIN exp.policy_versions b ON b.id = r.baseline_version_id
WHERE pv.mlflow_model_name = %s AND pv.mlflow_model_version = %s AND r.status = ANY(%s)
ORDER BY r.created_at DESC, r.is_better_than_baseline ASC NULLS FIRST, r.id LIMIT 1
"""


@dataclass(frozen=True)
class ReplayRow:
    """One row of `exp.offline_replay_results`; `created` is True when this call wrote or finished it."""

    id: str
    run_id: str
    policy_version: PolicyVersion
    status: str
    is_better_than_baseline: bool | None
    error_message: str | None
    created: bool


@dataclass(frozen=True)
class Evidence:
    """What the newest replay of a model version says; `reasons` are empty when it passed."""

    id: str
    policy_version_id: str
    run_id: str | None
    status: str
    is_better_than_baseline: bool | None
    reasons: tuple[str, ...]
    dataset_version: str | None
    baseline_name: str | None
    baseline_version: str | None
    created_at: datetime
    scores: Mapping[str, Decimal | None]

    @property
    def passed(self) -> bool:
        """Completed, better than its baseline, every score there, and not one constraint violated."""
        return (
            self.status == "completed"
            and self.is_better_than_baseline is True
            and self.baseline_version is not None
            and all(score is not None for score in self.scores.values())
            and self.scores["constraint_respect_score"] == 1
        )


def start_replay(
    connection: Connection,
    *,
    run_id: str,
    policy: str,
    model_name: str,
    model_version: str,
    dataset_version: str,
    config_defaults: Mapping[str, Any],
) -> ReplayRow:
    """Write the row of a replay that begins, as `running`; a row of this run that is there stays as it is."""
    values = {"dataset_version": dataset_version, "status": "running"}
    return _write(connection, run_id, policy, model_name, model_version, config_defaults, values)


def fail_replay(
    connection: Connection,
    *,
    run_id: str,
    policy: str,
    model_name: str,
    model_version: str,
    dataset_version: str,
    config_defaults: Mapping[str, Any],
    message: str,
) -> ReplayRow:
    """Leave the row of a replay that broke off as `failed` with its message; a completed row stays as it is."""
    values = {"dataset_version": dataset_version, "status": "failed", "error_message": _clean(message)}
    return _write(connection, run_id, policy, model_name, model_version, config_defaults, values)


def record_replay(
    connection: Connection, gate: GateResult, *, run_id: str, policy: str, config_defaults: Mapping[str, Any]
) -> ReplayRow:
    """Write the completed row of a replay, with the policy versions of candidate and baseline where none is there.

    Idempotent by run and policy version: the same result again changes nothing. `error_message` is null for PASS, else
    the verdict and its reasons, one a line, because the table has no other place for what a promotion has to say.
    A replay of other rows than `HELD_OUT` is recorded, but never as better than its baseline.

    Args:
        connection: idle; see `run_serialised`.
        gate: scores are stored with six decimals; a missing one or NaN as null.
        run_id: the MLflow run that holds the replay's rows and report.
        policy: name in `exp.policies`; candidate and baseline are versions of it.
        config_defaults: of a policy version that has to be created.

    Raises:
        PromotionError: baseline = candidate, a PASS with a violation or without a score, or another result that this
            run has already recorded.
        DatabaseError: the database refused or went away; nothing was written.
    """
    _check(gate, run_id)
    message = _message(gate)
    values: dict[str, object] = {
        "dataset_version": gate.dataset_version,
        **{name: _score(gate.scores.get(name)) for name in SCORES},
        "is_better_than_baseline": message is None,
        "status": "completed",
        "error_message": message,
    }
    return _write(
        connection,
        run_id,
        policy,
        gate.model_name,
        gate.model_version,
        config_defaults,
        values,
        baseline_version=gate.baseline_version,
    )


def latest_evidence(connection: Connection, model_name: str, model_version: str) -> Evidence | None:
    """The completed replay of this model version that began last, or None; of two at one instant, the worse."""
    return _newest(connection, model_name, model_version, ["completed"])


def latest_attempt(connection: Connection, model_name: str, model_version: str) -> Evidence | None:
    """The replay of this model version that began last and has not completed, or None: to tell what became of it."""
    return _newest(connection, model_name, model_version, ["running", "failed"])


def _newest(connection: Connection, model_name: str, model_version: str, statuses: list[str]) -> Evidence | None:
    rows = read_rows(connection, _EVIDENCE, (model_name, model_version, statuses), what="the replay results")
    if not rows:
        return None
    row = rows[0]
    return Evidence(
        id=str(row[0]),
        policy_version_id=str(row[1]),
        run_id=row[2],
        status=row[3],
        is_better_than_baseline=row[4],
        reasons=tuple((row[5] or "").splitlines()),
        dataset_version=row[6],
        baseline_name=row[7],
        baseline_version=row[8],
        created_at=row[9],
        scores=dict(zip(SCORES, row[10:], strict=True)),
    )


def _write(
    connection: Connection,
    run_id: str,
    policy: str,
    model_name: str,
    model_version: str,
    config_defaults: Mapping[str, Any],
    values: Mapping[str, object],
    *,
    baseline_version: str | None = None,
) -> ReplayRow:
    def work(cursor: Cursor) -> ReplayRow:
        # The baseline first: the older model gets the smaller policy version, as the view's "version before" expects.
        baseline = (
            None
            if baseline_version is None
            else find_or_create(cursor, policy, model_name, baseline_version, config_defaults)
        )
        candidate = find_or_create(cursor, policy, model_name, model_version, config_defaults)
        wanted = {**dict.fromkeys(_RESULT), **values, "baseline_version_id": baseline and baseline.id}
        return _upsert(cursor, run_id, candidate, wanted)

    return run_serialised(
        connection, policy_lock(policy), work, what=f"the replay result of {model_name} version {model_version}"
    )


def _upsert(cursor: Cursor, run_id: str, candidate: PolicyVersion, wanted: Mapping[str, Any]) -> ReplayRow:
    cursor.execute(
        f"SELECT id, {_COLUMNS} FROM exp.offline_replay_results WHERE mlflow_run_id = %s AND policy_version_id = %s"
        " ORDER BY created_at, id LIMIT 1 FOR UPDATE",
        (run_id, candidate.id),
    )
    found = cursor.fetchone()
    stored = None if found is None else dict(zip(_RESULT, found[1:], strict=True))
    row_id = stable_id("replay", run_id, candidate.id) if found is None else str(found[0])
    write = stored is None or (wanted["status"] != "running" and stored["status"] != "completed")
    if stored is not None and stored["status"] == wanted["status"] == "completed" and stored != wanted:
        different = ", ".join(name for name in _RESULT if stored[name] != wanted[name])
        raise PromotionError(
            f"Run {run_id} has already recorded another replay of {candidate.model_name} version "
            f"{candidate.model_version}; {different} differ. Evidence is never rewritten: replay in a new run.",
            run_id=run_id,
        )
    values = [wanted[name] for name in _RESULT]
    if stored is None:
        cursor.execute(
            "INSERT INTO exp.offline_replay_results"
            f" (id, policy_version_id, mlflow_run_id, created_at, {_COLUMNS})"
            f" VALUES (%s, %s, %s, now(), {', '.join(['%s'] * len(_RESULT))})",
            [row_id, candidate.id, run_id, *values],
        )
    elif write:
        assignments = ", ".join(f"{name} = %s" for name in _RESULT)
        cursor.execute(f"UPDATE exp.offline_replay_results SET {assignments} WHERE id = %s", [*values, row_id])
    standing = wanted if write or stored is None else stored
    return ReplayRow(
        row_id,
        run_id,
        candidate,
        standing["status"],
        standing["is_better_than_baseline"],
        standing["error_message"],
        created=write,
    )


def _check(gate: GateResult, run_id: str) -> None:
    if not run_id:
        raise PromotionError("The replay has no MLflow run, so its evidence could not be found again. Give its run id.")
    if gate.model_version == gate.baseline_version:
        raise PromotionError(
            f"{gate.model_name} version {gate.model_version} was compared with itself. "
            "Give another baseline_version to evaluate."
        )
    if gate.verdict is not Verdict.PASS:
        return
    missing = [name for name in SCORES if _score(gate.scores.get(name)) is None]
    if missing or gate.violations or gate.num_rows <= 0:
        raise PromotionError(
            f"The gate says PASS for {gate.model_name} version {gate.model_version} with {gate.num_rows} rows, "
            f"{gate.violations} violations and {len(missing)} scores missing, which it may not. Nothing was recorded."
        )


def _message(gate: GateResult) -> str | None:
    if gate.verdict is Verdict.PASS and gate.split in HELD_OUT:
        return None
    reasons = [" ".join(_clean(reason).split()) for reason in gate.reasons]
    if gate.verdict is Verdict.PASS:
        reasons = [f"Split {gate.split!r} is not held out, so this replay is no evidence. Replay the test split."]
    return "\n".join([gate.verdict.value, *reasons])


def _score(value: float | None) -> Decimal | None:
    if value is None or not math.isfinite(value) or not 0 <= value <= 1:
        return None
    return Decimal(repr(float(value))).quantize(Decimal("0.000001"), rounding=ROUND_HALF_EVEN)


def _clean(message: str) -> str:
    # PostgreSQL's text takes no NUL.
    return message.replace("\x00", " ").strip()
