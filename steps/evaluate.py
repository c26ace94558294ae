"""Entry point `evaluate`: Replay held-out requests against a baseline and decide the gate."""

from __future__ import annotations

from steps.command import run_step

OPTIONS = ("model_name", "model_version", "dataset", "baseline_version", "sample_size", "split")

if __name__ == "__main__":
    run_step("evaluate", OPTIONS, description=__doc__)
