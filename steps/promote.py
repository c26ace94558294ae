"""Entry point `promote`: Make a version that passed the gate the candidate."""

from __future__ import annotations

from steps.command import run_step

OPTIONS = ("model_name", "model_version", "allocation", "experiment", "variant")

if __name__ == "__main__":
    run_step("promote", OPTIONS, description=__doc__)
