"""Lifecycle events of a policy version in `exp.events`: one for each change, never two for the same.

In: a change (candidate, experiment, …) with its reason. Out: a row of type `model_promoted`.
"""

from __future__ import annotations

from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import Json

from planner.promotion.policy import PolicyVersion
from planner.promotion.transactions import stable_id

UNIT_TYPE = "policy_version"
"""`unit_id` is the policy version's id. Not `household`, `user` or `session`: no query over those may count it."""


def write_promoted(
    cursor: Cursor,
    policy_version: PolicyVersion,
    *,
    to_stage: str,
    reason: str,
    allocation: str | None = None,
    experiment_id: str | None = None,
    variant_id: str | None = None,
) -> bool:
    """Write the event `model_promoted` of this change; False when it is there already.

    Runs inside a transaction that holds the lock of the change. `exp.events` may be partitioned by time, so that no
    constraint keeps its ids unique over all partitions: hence the check under the lock.
    """
    event_id = stable_id("model_promoted", policy_version.id, to_stage, variant_id or "")
    cursor.execute("SELECT 1 FROM exp.events WHERE id = %s", (event_id,))
    if cursor.fetchone() is not None:
        return False
    experiments = [] if variant_id is None else [{"experiment_id": experiment_id, "variant_id": variant_id}]
    payload = {
        "policy": policy_version.policy,
        "policy_version_id": policy_version.id,
        "policy_version": policy_version.version,
        "model_name": policy_version.model_name,
        "model_version": policy_version.model_version,
        "to_stage": to_stage,
        "allocation": allocation,
        "reason": reason,
    }
    cursor.execute(
        'INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, payload, "timestamp",'
        " created_at) VALUES (%s, 'model_promoted', %s, %s, %s, %s, %s, now(), now())",
        (
            event_id,
            UNIT_TYPE,
            policy_version.id,
            Json(experiments),
            Json({"policy_version_id": policy_version.id}),
            Json(payload),
        ),
    )
    return True
