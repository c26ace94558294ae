"""The recipe from a notebook: run a step, look at what it made, fetch its files, throw a result away.

The shape is that of MLflow Recipes (`run`, `inspect`, `clean`, `get_artifact`), on top of the same steps and runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from planner.contracts.errors import ConfigError
from planner.recipe.config import STEPS, ResolvedConfig, load_config
from planner.recipe.environment import use_tracking_store
from planner.recipe.runner import run_single
from planner.recipe.tracking import COMMIT_TAG, active_experiment_id, committed_outputs


class Recipe:
    """The recipe of one profile."""

    def __init__(self, profile: str = "local") -> None:
        self.config: ResolvedConfig = load_config(profile)
        use_tracking_store(self.config)

    def run(self, step: str, **parameters: object) -> Mapping[str, Any]:
        """Run one step and return its outputs; parameters are those of the entry point, None is not given."""
        given = {f"{step}.{name}": str(value) for name, value in parameters.items() if value is not None}
        return run_single(_known(step), self.config.profile, given)

    def inspect(self, step: str) -> dict[str, Any]:
        """Outputs, metrics, params and tags of the step's newest finished run; empty when there is none."""
        run = self._newest(_known(step))
        if run is None:
            return {}
        return {
            "run_id": run.info.run_id,
            "outputs": dict(committed_outputs(run) or {}),
            "metrics": dict(run.data.metrics),
            "params": dict(run.data.params),
            "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
        }

    def get_artifact(self, step: str, path: str) -> Path:
        """Local path of a file of the step's newest finished run, for example `replay/rows.parquet`.

        Raises:
            ConfigError: the step has no finished run.
        """
        run = self._newest(_known(step))
        if run is None:
            raise ConfigError(f"Step {step} has no finished run yet. Run it first.", step=step)
        return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path))

    def clean(self, step: str) -> int:
        """Make the driver run the step anew next time; results stay, only their commit markers go. Returns how many."""
        runs = self._runs(_known(step))
        for run in runs:
            MlflowClient().delete_tag(run.info.run_id, COMMIT_TAG)
        return len(runs)

    def _runs(self, step: str) -> list[Run]:
        found = mlflow.search_runs(
            experiment_ids=[active_experiment_id()],
            filter_string=f"tags.step = '{step}'",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
        return [run for run in found if committed_outputs(run) is not None]

    def _newest(self, step: str) -> Run | None:
        runs = self._runs(step)
        return runs[0] if runs else None


def _known(step: str) -> str:
    if step not in STEPS:
        raise ConfigError(f"{step!r} is no step of the recipe. Use one of {', '.join(STEPS)}.", step=step)
    return step
