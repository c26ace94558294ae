"""What a build counts beside its rows: summed over parts and shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from planner.dataset.values import Notes

REASONS = ("not_generated", "accepted_before_generated", "unknown_household", "invalid_plan")


def _no_exclusions() -> Counter[str]:
    return Counter(dict.fromkeys(REASONS, 0))


@dataclass
class Counts:
    """Every accepted plan of the window is a row or counted in `exclusions`.

    `num_reused` rows were taken from an earlier version as they are; `not_reused` counts by reason the plans that it
    could not give. `late_*` count joins that saw the future and must stay 0. `notes` counts what was mended or left
    out inside rows.
    """

    num_plans_seen: int = 0
    events_without_plan_id: int = 0
    events_without_time: int = 0
    num_reused: int = 0
    late_previous: int = 0
    late_pantry: int = 0
    exclusions: Counter[str] = field(default_factory=_no_exclusions)
    not_reused: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        """Rows, built and taken."""
        return self.num_plans_seen - sum(self.exclusions.values())

    @classmethod
    def sum(cls, parts: Iterable[Counts]) -> Counts:
        """All of them together."""
        whole = cls()
        for part in parts:
            for name in (field_.name for field_ in fields(cls)):
                value = getattr(part, name)
                if isinstance(value, Counter):
                    getattr(whole, name).update(value)
                else:
                    setattr(whole, name, getattr(whole, name) + value)
        return whole

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Counts:
        """Its inverse."""
        value = json.loads(text)
        members: dict[str, Any] = {k: Counter(v) if isinstance(v, dict) else v for k, v in value.items()}
        return cls(**members)
