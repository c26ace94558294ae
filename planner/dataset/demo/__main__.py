"""`python -m planner.dataset.demo` derives the demo without a database and prints its figures."""

from __future__ import annotations

import sys
import time

from planner.contracts.errors import PlannerError
from planner.dataset.demo.load import derive_demo
from planner.dataset.demo.statistics import demo_statistics
from planner.dataset.output import reader_may_leave


def main() -> int:
    """Print the statistics table to stdout and the time it took to stderr."""
    started = time.monotonic()
    try:
        rows = demo_statistics(derive_demo())
    except PlannerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with reader_may_leave():
        for what, value in rows:
            print(f"{what:<45}{value}")
    print(f"derived and counted in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
