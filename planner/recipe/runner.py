"""One step on its own: its run, its database, its table. The driver, the step scripts and the notebooks meet here."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast

from planner.recipe import train
from planner.recipe.config import ResolvedConfig, load_config
from planner.recipe.console import Console, StepResult, print_results
from planner.recipe.environment import database_url, use_tracking_store
from planner.recipe.tracking import StepRun, step_run


class StepModule(Protocol):
    """What each step's module in this room offers."""

    NEEDS_DATABASE: bool

    def fingerprint(self, config: ResolvedConfig) -> str:
        """Text that changes when code, configuration or inputs of the step change."""

    def run(self, config: ResolvedConfig, run: StepRun, console: Console) -> None:
        """Do the work, log it, and fill `run.outputs`."""

    def is_whole(self, config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
        """Whether an earlier result is still there, complete and unchanged."""

    def tags_of(self, outputs: Mapping[str, Any]) -> Mapping[str, object]:
        """Lineage tags of the run."""

    def result_of(self, outputs: Mapping[str, Any], *, seconds: float) -> StepResult:
        """The step's line of the last table."""

    def next_command(self, outputs: Mapping[str, Any]) -> str | None:
        """What to run next."""


def step_module(step: str) -> StepModule:
    """The module of a step; imported on demand, since some of them load torch."""
    return cast(StepModule, importlib.import_module(f"planner.recipe.{step}"))


def run_single(step: str, profile: str, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run one step in an MLflow run of its own, print its table and return its outputs.

    Args:
        step: one of the recipe's steps.
        profile: name of the profile.
        overrides: dotted keys (`train.epochs`) with values; empty texts mean "from recipe and profile".
    Raises:
        PlannerError: bad input; nothing half-written is left.
    """
    config = load_config(profile, overrides)
    if step == "train" and train.share(config):
        return {}
    use_tracking_store(config)
    module, console, started = step_module(step), Console(), time.monotonic()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(step_run(config, step))
        stack.callback(console.close)
        if module.NEEDS_DATABASE:
            stack.enter_context(database_url(config, progress=console.progress))
        run.identify(module.fingerprint(config))
        module.run(config, run, console)
        run.set_tags(module.tags_of(run.outputs))
    outputs = run.outputs
    result = module.result_of(outputs, seconds=time.monotonic() - started)
    print_results([result], lines=outputs.get("lines", ()), next_command=module.next_command(outputs))
    return outputs
