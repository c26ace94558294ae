"""Minutes that a dish may take on single weekdays: a rule of the registered version, since no request can carry it.

In: a mapping such as `{"monday": 20, "friday": 0}`. Out: a limit or None for each weekday.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.contracts.errors import ConfigError
from planner.contracts.plan import WEEKDAYS

NAME = "max_prep_time_by_day"


def limits_of_week(minutes_by_day: Mapping[str, int | None] | None) -> tuple[int | None, ...]:
    """The limit of each weekday, Monday first; empty where no day has one.

    Raises:
        ConfigError: a key is no weekday, or a limit no whole number of at least 0; names it.
    """
    given = {} if minutes_by_day is None else minutes_by_day
    for day, minutes in given.items():
        if day not in WEEKDAYS:
            raise ConfigError(f"{NAME} names {day!r}, which is no lower-case English weekday.", day=day)
        if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, int) or minutes < 0):
            raise ConfigError(
                f"{NAME}.{day} is {minutes!r}, not a whole number of minutes. Set 0 to leave the day free, "
                "null for no limit.",
                day=day,
            )
    limits = tuple(given.get(day) for day in WEEKDAYS)
    return limits if any(limit is not None for limit in limits) else ()
