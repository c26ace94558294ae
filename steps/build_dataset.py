"""Entry point `build_dataset`: Build a dataset version from the events."""

from __future__ import annotations

from steps.command import run_step

OPTIONS = ("start_date", "end_date", "date", "datasets")

if __name__ == "__main__":
    run_step("build_dataset", OPTIONS, description=__doc__)
