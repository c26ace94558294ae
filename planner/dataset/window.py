"""The build's window: acceptances from one UTC midnight on, and before another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from planner.dataset.config import DatasetConfig


@dataclass(frozen=True)
class Window:
    """Start, and the end that is no more of it, in microseconds since 1970, UTC."""

    start_us: int
    end_us: int

    @classmethod
    def of(cls, config: DatasetConfig) -> Window:
        """From the midnights of the config's days."""
        return cls(_midnight_us(config.start_date), _midnight_us(config.end_date))

    @classmethod
    def between(cls, start_date: str, end_date: str) -> Window:
        """From two days as `YYYY-MM-DD`, as manifests hold them."""
        return cls(_midnight_us(date.fromisoformat(start_date)), _midnight_us(date.fromisoformat(end_date)))

    def __str__(self) -> str:
        start, end = (datetime.fromtimestamp(us // 1_000_000, UTC) for us in (self.start_us, self.end_us))
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"


def _midnight_us(day: date) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return (midnight - datetime(1970, 1, 1, tzinfo=UTC)) // datetime.resolution
