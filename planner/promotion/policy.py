"""Policy versions: the link from a registered model version to what the product's events name.

In: a policy and a model version. Out: the one `PolicyVersion` of it, created where none links it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import Json

from planner.contracts.errors import PromotionError
from planner.promotion.transactions import run_serialised, stable_id

_FIND = """
SELECT pv.id, pv.version, pv.config_defaults, pv.status
FROM exp.policy_versions pv JOIN exp.policies p ON p.id = pv.policy_id
WHERE p.name = %s AND pv.mlflow_model_name = %s AND pv.mlflow_model_version = %s
ORDER BY pv.version LIMIT 1
"""


@dataclass(frozen=True)
class PolicyVersion:
    """One row of `exp.policy_versions`; `created` is True when this call wrote it.

    `config_defaults` are those that stand in the row: a version that is there already keeps its own, because the
    events logged under it were made with them.
    """

    id: str
    policy: str
    version: int
    model_name: str
    model_version: str
    config_defaults: Mapping[str, Any]
    status: str
    created: bool


def ensure_policy_version(
    connection: Connection,
    *,
    policy: str,
    model_name: str,
    model_version: str,
    config_defaults: Mapping[str, Any],
) -> PolicyVersion:
    """The policy version of a model version: found, or created as the policy's next version.

    Callers of one policy run one after the other, so that concurrent ones get one and the same version.

    Raises:
        PromotionError: an empty or too long name or version.
        DatabaseError: the database refused or went away; nothing was written.
    """
    return run_serialised(
        connection,
        policy_lock(policy),
        lambda cursor: find_or_create(cursor, policy, model_name, model_version, config_defaults),
        what=f"the policy version of {model_name} version {model_version}",
    )


def policy_lock(policy: str) -> str:
    """Name of the lock that everything which numbers versions or judges replays of a policy holds."""
    return f"policy:{policy}"


def find_or_create(
    cursor: Cursor, policy: str, model_name: str, model_version: str, config_defaults: Mapping[str, Any]
) -> PolicyVersion:
    """As `ensure_policy_version`, inside a transaction that holds `policy_lock(policy)`."""
    _check(policy, model_name, model_version)
    found = find(cursor, policy, model_name, model_version)
    if found is not None:
        return found
    policy_id = _ensure_policy(cursor, policy)
    cursor.execute("SELECT coalesce(max(version), 0) + 1 FROM exp.policy_versions WHERE policy_id = %s", (policy_id,))
    row = cursor.fetchone()
    assert row is not None, "an aggregate has a row"
    version_id = stable_id("policy_version", policy, model_name, model_version)
    cursor.execute(
        "INSERT INTO exp.policy_versions (id, policy_id, version, mlflow_model_name, mlflow_model_version,"
        " config_defaults, status, created_at) VALUES (%s, %s, %s, %s, %s, %s, 'active', now())",
        (version_id, policy_id, row[0], model_name, model_version, Json(dict(config_defaults))),
    )
    return PolicyVersion(
        version_id, policy, row[0], model_name, model_version, dict(config_defaults), "active", created=True
    )


def find(cursor: Cursor, policy: str, model_name: str, model_version: str) -> PolicyVersion | None:
    """The policy version that links this model version; the oldest where a foreign tool has left several."""
    cursor.execute(_FIND, (policy, model_name, model_version))
    row = cursor.fetchone()
    if row is None:
        return None
    return PolicyVersion(str(row[0]), policy, row[1], model_name, model_version, row[2] or {}, row[3], created=False)


def _ensure_policy(cursor: Cursor, policy: str) -> str:
    # FOR UPDATE beside the advisory lock: it also holds off writers that do not know the lock, because a new row
    # that points at this policy needs a share of the row.
    query = "SELECT id FROM exp.policies WHERE name = %s ORDER BY created_at, id LIMIT 1 FOR UPDATE"
    cursor.execute(query, (policy,))
    row = cursor.fetchone()
    if row is None:
        cursor.execute(
            "INSERT INTO exp.policies (id, name, description, created_at) VALUES (%s, %s, %s, now())"
            " ON CONFLICT DO NOTHING",
            (stable_id("policy", policy), policy, "Weekly plans by a model of the MLflow registry."),
        )
        cursor.execute(query, (policy,))
        row = cursor.fetchone()
    assert row is not None, "the policy was inserted or was there"
    return str(row[0])


def _check(policy: str, model_name: str, model_version: str) -> None:
    limits = (("policy", policy, 255), ("model name", model_name, 255), ("model version", model_version, 50))
    for name, text, longest in limits:
        if not 0 < len(text) <= longest:
            raise PromotionError(
                f"The {name} {text[:60]!r} has {len(text)} characters; exp.policy_versions takes 1 to {longest}."
            )
