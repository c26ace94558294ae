"""Configuration of the evaluate step: which version is replayed against which, on how many rows of what.

In: the `evaluate` section of `recipe.yaml`. Out: a frozen `EvaluateConfig`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from planner.contracts.options import Name, Number, Version, Whole


class EvaluateConfig(BaseModel):
    """What `evaluate` replays and when it trusts the outcome."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: Name = "planner_model"
    """Registered model in the MLflow registry; candidate and baseline are versions of it."""

    model_version: Version | None = None
    """Version to evaluate, as text. None takes the one that this run's train step has registered, else the newest."""

    dataset: Annotated[str, StringConstraints(strict=True, min_length=1)] | None = None
    """Folder or `s3://` address of the dataset version. None takes the one that the build step of this run has made."""

    baseline_version: Version | None = None
    """Version to compare with. None takes alias `production`, else the built-in planner of most accepted recipes."""

    sample_size: Annotated[Whole, Field(ge=1)] | None = None
    """Rows to replay, spread over as many households as there are. None replays the whole split."""

    split: Literal["train", "validation", "test"] = "test"
    """Split whose rows are replayed. `train` asks for the training rows by name: every output is then marked, and the
    gate cannot pass."""

    min_households: Annotated[Whole, Field(ge=2)] = 60
    """Households below which the gate is INCONCLUSIVE. Two planners of equal worth pass 84 % of the time at 120
    households and 99 % at 250."""

    batch_size: Annotated[Whole, Field(ge=1, le=4096)] = 8
    """Requests that a planner gets at once, and that a killed replay may lose. 8 on two cores, 32 on a GPU."""

    workers: Annotated[Whole, Field(ge=1, le=1024)] = 1
    """Processes or tasks that replay side by side, each with models of its own; the rows are the same bytes. 1 is best
    on a few cores: one process uses them all."""

    workers_on: Literal["processes", "ranks", "spark"] = "processes"
    """Where workers run: processes of this machine; `ranks` of `accelerate launch`, one a GPU of this machine; or tasks
    of the Spark session (`folder` must then be one that they and the driver see, and the workers have this package)."""

    seed: Annotated[Whole, Field(ge=0)] = 0
    """Which rows a sample takes. Planning itself is greedy and has no seed."""

    max_catalogue_difference: Annotated[Number, Field(ge=0, le=1)] = 0.05
    """Largest share of recipes in which a model's catalogue may differ from the dataset's before the replay is refused.
    Every difference is reported."""

    resume: StrictBool = True
    """Go on with the finished batches of a killed replay of the same models and rows. False plans everything again."""

    @property
    def asks_for_training_rows(self) -> bool:
        """Whether the training split was asked for by its name."""
        return self.split == "train"
