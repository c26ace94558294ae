"""Variants: a policy version's share of an experiment's traffic.

In: an experiment whose allocations sum to 1, and a policy version. Out: one more `Variant`, the others scaled down so
that they still sum to exactly 1.0000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import Json

from planner.contracts.errors import PromotionError
from planner.promotion.config import MAX_FIRST_ALLOCATION
from planner.promotion.events import write_promoted
from planner.promotion.policy import PolicyVersion
from planner.promotion.transactions import run_serialised, stable_id

UNIT = Decimal("0.0001")
"""Allocations are decimal(5,4): ten thousand units of this make the whole."""
WHOLE = 10_000


@dataclass(frozen=True)
class Variant:
    """One row of `exp.variants`; `created` is True when this call wrote it, else `allocation` is what stands there."""

    id: str
    experiment_id: str
    experiment: str
    name: str
    allocation: Decimal
    policy_version_id: str
    created: bool


def create_variant(
    connection: Connection,
    *,
    experiment: str,
    policy_version: PolicyVersion,
    name: str,
    allocation: Decimal | float,
    params: Mapping[str, Any],
    reason: str = "passed the offline replay",
) -> Variant:
    """Give a policy version a share of an experiment, and write the event `model_promoted` with it.

    One transaction; promotions into one experiment run one after the other. A policy version that has a variant in
    this experiment keeps it as it is: changing an allocation is the rollout's business.

    Args:
        connection: idle; see `run_serialised`.
        experiment: name in `exp.experiments`, not completed, with allocations that sum to 1.
        policy_version: what the variant serves.
        name: unique in the experiment.
        allocation: above 0, at most `MAX_FIRST_ALLOCATION`, at most four decimals.
        params: what serving passes to the model, kept in the variant's config.
        reason: one sentence for the event and the variant's description.

    Raises:
        PromotionError: any of the above does not hold, or the name is another policy version's variant.
        DatabaseError: the database refused or went away; nothing was written.
    """
    share = check_allocation(allocation)
    return run_serialised(
        connection,
        f"experiment:{experiment}",
        lambda cursor: _create(cursor, experiment, policy_version, name, share, dict(params), reason),
        what=f"the variant {name} of experiment {experiment}",
    )


def scale_allocations(allocations: Sequence[Decimal], new: Decimal) -> list[Decimal]:
    """Scale allocations that sum to 1 by (1 − new), rounded to four decimals so that they sum to exactly 1 − new.

    Largest remainder: every result is within 0.0001 of its exact value, 0 stays 0, and no order is turned round.
    """
    rest = WHOLE - _units(new)
    products = [_units(allocation) * rest for allocation in allocations]
    units = [product // WHOLE for product in products]
    # Ties by size and then by place: the same input always gives the same output.
    order = sorted(range(len(units)), key=lambda i: (-(products[i] % WHOLE), -products[i], i))
    for index in order[: rest - sum(units)]:
        units[index] += 1
    return [unit * UNIT for unit in units]


def variant_config(policy_version: PolicyVersion, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a variant that a model of the registry serves."""
    return {
        "execution_strategy": "mlflow_model",
        "mlflow_model": {"policy_version_id": policy_version.id, "model_name": policy_version.model_name},
        "params": dict(params),
    }


def read_policy_version_id(config: object) -> str | None:
    """The policy version that a variant's config names, in today's form or the older one at the root."""
    if not isinstance(config, Mapping):
        return None
    nested = config.get("mlflow_model")
    found = nested.get("policy_version_id") if isinstance(nested, Mapping) else None
    found = found or config.get("policy_version_id")
    return None if found is None else str(found).lower()


def check_allocation(allocation: Decimal | float) -> Decimal:
    """The allocation as stored.

    Raises:
        PromotionError: not above 0, above `MAX_FIRST_ALLOCATION`, or with more than four decimals.
    """
    share = Decimal(str(allocation))
    if not share.is_finite() or not 0 < share <= MAX_FIRST_ALLOCATION or share != share.quantize(UNIT):
        raise PromotionError(
            f"An allocation of {allocation} cannot be given: a new variant gets above 0 and at most "
            f"{MAX_FIRST_ALLOCATION}, in steps of {UNIT}. Set promote.allocation.",
            allocation=allocation,
        )
    return share.quantize(UNIT)


def _create(
    cursor: Cursor,
    experiment: str,
    policy_version: PolicyVersion,
    name: str,
    share: Decimal,
    params: Mapping[str, Any],
    reason: str,
) -> Variant:
    experiment_id = _lock_experiment(cursor, experiment)
    cursor.execute(
        "SELECT id, name, allocation, config FROM exp.variants WHERE experiment_id = %s"
        " ORDER BY created_at, id FOR UPDATE",
        (experiment_id,),
    )
    rows = cursor.fetchall()
    for row in rows:
        if read_policy_version_id(row[3]) == policy_version.id:
            return Variant(str(row[0]), experiment_id, experiment, row[1], row[2], policy_version.id, created=False)
    _check_variants(experiment, name, rows)
    for row, scaled in zip(rows, scale_allocations([row[2] for row in rows], share), strict=True):
        cursor.execute("UPDATE exp.variants SET allocation = %s WHERE id = %s", (scaled, row[0]))
    variant_id = stable_id("variant", experiment_id, policy_version.id)
    description = f"{policy_version.model_name} version {policy_version.model_version}: {reason}"
    cursor.execute(
        "INSERT INTO exp.variants (id, experiment_id, name, description, allocation, config, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, now())",
        (variant_id, experiment_id, name, description, share, Json(variant_config(policy_version, params))),
    )
    cursor.execute("UPDATE exp.experiments SET updated_at = now() WHERE id = %s", (experiment_id,))
    write_promoted(
        cursor,
        policy_version,
        to_stage="experiment",
        reason=reason,
        allocation=str(share),
        experiment_id=experiment_id,
        variant_id=variant_id,
    )
    _check_sum(cursor, experiment_id, experiment)
    return Variant(variant_id, experiment_id, experiment, name, share, policy_version.id, created=True)


def _lock_experiment(cursor: Cursor, experiment: str) -> str:
    # The row lock holds off writers that do not know the advisory lock: a new variant needs a share of this row.
    cursor.execute("SELECT id, status FROM exp.experiments WHERE name = %s FOR UPDATE", (experiment,))
    row = cursor.fetchone()
    if row is None:
        cursor.execute("SELECT name FROM exp.experiments WHERE status <> 'completed' ORDER BY name LIMIT 10")
        names = ", ".join(repr(other[0]) for other in cursor.fetchall()) or "none"
        raise PromotionError(
            f"There is no experiment {experiment!r} in exp.experiments; open ones are: {names}. Set promote.experiment."
        )
    if row[1] == "completed":
        raise PromotionError(f"Experiment {experiment!r} is completed and takes no variant. Set promote.experiment.")
    return str(row[0])


def _check_variants(experiment: str, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if any(row[1] == name for row in rows):
        raise PromotionError(
            f"Experiment {experiment!r} has a variant {name!r} of another policy version. Set promote.variant."
        )
    total = sum((row[2] for row in rows), Decimal(0))
    if total != 1:
        raise PromotionError(
            f"The {len(rows)} variants of experiment {experiment!r} sum to {total} and not to 1.0000, so no share can "
            "be taken from them. Mend exp.variants (a new experiment needs a control variant with all of it).",
            total=total,
        )


def _check_sum(cursor: Cursor, experiment_id: str, experiment: str) -> None:
    cursor.execute("SELECT sum(allocation) FROM exp.variants WHERE experiment_id = %s", (experiment_id,))
    row = cursor.fetchone()
    if row is None or row[0] != 1:
        raise PromotionError(
            f"The variants of experiment {experiment!r} would sum to {row and row[0]}. Nothing was written; "
            "something else writes exp.variants at the same time: stop it and run the command again."
        )


def _units(allocation: Decimal) -> int:
    return int((allocation / UNIT).to_integral_exact())
