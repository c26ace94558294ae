"""One row of a dataset version, typed: the request, what was accepted, and where it came from.

In: a row of `training.parquet` as Arrow gives it (`to_pylist`). Out: a frozen `Example`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from planner.contracts.plan import Edit, Plan
from planner.contracts.request import Request, parse_request


@dataclass(frozen=True, slots=True)
class Example:
    """One accepted plan with the request as it was at plan time `generated_at`; times are UTC."""

    event_id: str
    plan_id: str
    request: Request
    accepted_plan: Plan
    user_edits: tuple[Edit, ...]
    generated_plan: Plan | None
    timestamp: datetime
    generated_at: datetime
    policy_version_id: str | None
    region: str | None
    split: str

    @property
    def household_id(self) -> str:
        """The household that the plan is for."""
        return self.request.household.id


@dataclass(frozen=True)
class DatasetVersion:
    """A dataset version whose files were found complete and unchanged, on local disk.

    `uri` is where the version lives (a folder or `s3://…`); `digest` is the first 32 hex digits of the SHA-256 of
    `training.parquet`.
    """

    name: str
    uri: str
    digest: str
    training_path: Path
    recipes_path: Path
    num_rows: int
    manifest: Mapping[str, Any]


def example_from_row(row: Mapping[str, Any]) -> Example:
    """Type one row of `training.parquet`.

    Raises:
        ContractError: the row's input is no request.
    """
    target, metadata = row["target"], row["metadata"]
    generated = metadata["generated_plan"]
    return Example(
        event_id=metadata["event_id"],
        plan_id=metadata["plan_id"],
        request=parse_request(row["input"]),
        accepted_plan=Plan.from_valid(target["accepted_plan"]),
        user_edits=tuple(
            Edit(e["type"], e["day"], e["from"], e["to"], e["recipe_id"], e["servings"]) for e in target["user_edits"]
        ),
        generated_plan=Plan.from_valid(generated) if generated else None,
        timestamp=metadata["timestamp"],
        generated_at=metadata["generated_at"],
        policy_version_id=metadata["policy_version_id"],
        region=metadata["region"],
        split=row["split"],
    )
