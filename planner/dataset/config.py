"""What a build of a dataset version is told: the window, where versions live, and the quality checks."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from planner.contracts.options import NAME_PATTERN, Number

Level = Literal["error", "warn"]
CHECKS = (
    "min_rows",
    "no_nulls",
    "timestamps_in_window",
    "generated_before_accepted",
    "previous_plan_older",
    "pantry_not_newer",
    "one_split_per_household",
    "event_ids_unique",
    "recipes_known",
    "excluded_share",
    "schema",
)
NAME = re.compile(NAME_PATTERN)
LATEST = "latest"  # in place of a name: the newest version
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


class DatasetConfig(BaseModel):
    """The step `build_dataset`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_date: dt.date
    """First day (UTC, `YYYY-MM-DD`) whose acceptances become rows."""
    end_date: dt.date
    """The day behind the last one (UTC): events at or after its midnight do not exist for the build."""
    date: str | None = None
    """Name of the version, `[a-z0-9][a-z0-9_.-]{0,63}`; the end date where empty. Built once, never changed."""
    datasets: str = Field(min_length=1)
    """Folder or `s3://bucket/prefix` that holds `planner/<version>/`."""
    min_rows: int = Field(default=1, ge=1, strict=True)
    """Fewest rows (accepted plans) that a version may have; a few thousand for a useful model."""
    max_excluded_share: Number = Field(default=0.05, ge=0, le=1)
    """Largest share in [0, 1] of accepted plans that may be left out; more usually means broken logging."""
    checks: Mapping[str, Level] = Field(default_factory=dict)
    """Per quality check whether its failure stops the build (`error`, the default) or is only reported (`warn`)."""

    reuse: str | None = None
    """Earlier version to take unchanged rows from: its name, `latest` for the newest whole one; null: none."""
    shards: int = Field(default=1, ge=1, le=4096, strict=True)
    """Parts by hash of the household, each with its own sessions; each scans the event table: a few per process do."""
    processes: int = Field(default=1, ge=1, le=256, strict=True)
    """Local processes that build the shards; each needs about 400 MB and a core."""
    spark: str | None = None
    """Spark master that builds the shards (`local[2]`, `spark://host:7077`) instead of local processes."""

    @field_validator("start_date", "end_date", mode="before")
    @classmethod
    def _strict_day(cls, value: Any) -> Any:
        if isinstance(value, dt.datetime) or not isinstance(value, dt.date | str):
            raise ValueError("write a day as YYYY-MM-DD")
        if isinstance(value, str) and not _DAY.fullmatch(value):
            raise ValueError("write a day as YYYY-MM-DD")
        return value

    @field_validator("date")
    @classmethod
    def _safe_name(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not NAME.fullmatch(value):
            raise ValueError(
                "a version's name is made of a-z, 0-9, '_', '.', '-', starts with a letter or digit and has at most "
                "64 characters"
            )
        if value == LATEST:
            raise ValueError(f"{LATEST!r} stands for the newest version, so none can have that name")
        return value

    @field_validator("reuse")
    @classmethod
    def _earlier_name(cls, value: str | None) -> str | None:
        if value and not NAME.fullmatch(value):
            raise ValueError(f"the name of a version, or {LATEST}")
        return value or None

    @field_validator("datasets")
    @classmethod
    def _safe_root(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("a folder or s3:// address without control characters")
        if "://" in value and not re.fullmatch(r"s3://[^/]+(/.*)?", value):
            raise ValueError("a local folder or s3://bucket/prefix")
        return os.path.expanduser(value)  # YAML and `-P datasets=~/x` know no home

    @field_validator("checks")
    @classmethod
    def _known_checks(cls, value: Mapping[str, Level]) -> Mapping[str, Level]:
        for name in value:
            if name not in CHECKS:
                raise ValueError(f"there is no check {name!r}; known are {', '.join(CHECKS)}")
        return MappingProxyType(dict(value))

    @field_serializer("checks")
    def _plain_checks(self, value: Mapping[str, Level]) -> dict[str, Level]:
        return dict(value)

    @model_validator(mode="after")
    def _window_in_order(self) -> DatasetConfig:
        if self.start_date >= self.end_date:
            raise ValueError(
                f"start_date {self.start_date} must be before end_date {self.end_date}, the day behind the last one"
            )
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """What the manifest holds: the window and the checks. Where and how a version was built changes no row."""
        return self.model_dump(mode="json", exclude={"datasets", "date", "reuse", "shards", "processes", "spark"})

    @property
    def version(self) -> str:
        """The version's name."""
        return self.date or self.end_date.isoformat()

    def level(self, check: str) -> Level:
        """What a failure of this check does."""
        return self.checks.get(check, "error")
