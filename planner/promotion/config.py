"""Configuration of the promote step: which version, under which policy, and how much traffic it gets."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from planner.contracts.options import Name, Number, Version

MAX_FIRST_ALLOCATION = Decimal("0.1000")
"""A model that has met no user yet gets at most this share of an experiment's traffic."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class PromoteConfig(BaseModel):
    """What `promote` does with a version that has passed its replay."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model_name: Name = "planner_model"
    """Registered model in the MLflow registry."""

    model_version: Version | None = None
    """Version to promote. Null takes the newest trained one; `promote_candidate` by itself takes the one with the alias
    `candidate`."""

    policy: Name = "planner_policy"
    """Name of the policy in `exp.policies`; created when it is not there yet."""

    allocation: Annotated[Number, Field(ge=0, le=float(MAX_FIRST_ALLOCATION))] = 0.0
    """Share of the experiment's traffic in [0, 0.10], at most four decimals. 0 makes no variant yet: the version stays
    a candidate. More than 0.10 only through the rollout, after its minimum duration and sample."""

    experiment: Text | None = None
    """Name of the experiment in `exp.experiments` that gets the variant; needed when `allocation` is above 0."""

    variant: Text | None = None
    """Name of the variant, unique in its experiment. None gives `<model_name>-v<model_version>`."""

    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """Sampling temperature that serving uses by default. 0 is greedy, which is what the replay has judged."""

    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 512
    """Most tokens that a plan may take when served; a week's plan of seven dishes takes about a hundred."""

    @model_validator(mode="after")
    def _check_allocation(self) -> PromoteConfig:
        allocation = Decimal(str(self.allocation))
        if allocation != allocation.quantize(Decimal("0.0001")):
            raise ValueError(f"allocation is {self.allocation}; it is stored with four decimals, so give at most four")
        if self.allocation > 0 and self.experiment is None:
            raise ValueError("allocation is above 0, so experiment must name the experiment that gets the variant")
        return self

    @property
    def config_defaults(self) -> dict[str, Any]:
        """What `exp.policy_versions.config_defaults` holds for a version created with this configuration."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}
