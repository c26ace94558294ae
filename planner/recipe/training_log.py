"""What a training leaves in its MLflow run while it goes on and when it is done.

In: the reports of the loop. Out: metrics by epoch and about fifty points of the loss within, the curves as a plot, the
worst validation rows, the use of memory; and the progress bar. Figures that a killed start has logged stay as they are.
"""

from __future__ import annotations

import mlflow
from mlflow.tracking import MlflowClient

from planner.recipe.console import Console
from planner.recipe.tracking import StepRun
from planner.training.batches import steps_per_epoch
from planner.training.config import TrainConfig
from planner.training.memory import MemoryPlan
from planner.training.plot import plot_losses
from planner.training.report import EpochMetrics, TrainingReport

NUM_POINTS = 50
STEP_LOSS = "step_loss"


class TrainingLog:
    """Told by the loop, writes to the run and the console."""

    def __init__(self, run: StepRun, console: Console, config: TrainConfig) -> None:
        self._run, self._console, self._config = run, console, config
        self._epochs = {step for step, _ in self._history("tokens_per_second")}
        self._last_point = max((step for step, _ in self._history(STEP_LOSS)), default=0)
        self._losses: list[float] = []

    def step(self, done: int, total: int, loss: float, tokens_per_second: float) -> None:
        """One optimizer step of `total`; every so often the mean of the losses since becomes a point."""
        self._console.progress(done, total, f"train  loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
        self._losses.append(loss)
        if done == total or done % max(1, total // NUM_POINTS) == 0:
            if done > self._last_point:
                self._run.log_metrics({STEP_LOSS: sum(self._losses) / len(self._losses)}, step=done)
            self._losses = []

    def epoch(self, metrics: EpochMetrics) -> None:
        """One epoch, 0 before the first; told again after a kill it is logged once."""
        if metrics.epoch in self._epochs:
            return
        self._epochs.add(metrics.epoch)
        figures = {
            "train_loss": metrics.train_loss,
            "val_loss": metrics.validation_loss,
            "learning_rate": metrics.learning_rate,
            "tokens_per_second": metrics.tokens_per_second,
        }
        self._run.log_metrics({k: v for k, v in figures.items() if v is not None}, step=metrics.epoch)

    def memory(self, plan: MemoryPlan) -> None:
        """The plan before the start, or a smaller forward pass."""
        self._console.say(str(plan))

    def finish(self, report: TrainingReport) -> None:
        """Plot, table and figures of the finished training; epochs of a start in another run are logged here too."""
        for metrics in report.epochs:
            self.epoch(metrics)
        in_epoch = steps_per_epoch(report.num_train_rows, self._config.batch_size)
        points = [(step / in_epoch, loss) for step, loss in self._history(STEP_LOSS)]
        path = report.adapter_folder.parent / "loss.png"
        mlflow.log_artifact(str(plot_losses(report.epochs, path, best_epoch=report.best_epoch, points=points)), "plots")
        worst = report.worst_rows
        # log_table would append to what a killed start has left.
        mlflow.log_dict(
            {"columns": ["event_id", "loss"], "data": [[row.event_id, row.loss] for row in worst]},
            "worst_validation_rows.json",
        )
        mlflow.log_text(f"{report.memory}\n", "memory.txt")
        self._run.log_metrics(
            {
                "micro_batch_tokens": report.memory.micro_batch_tokens,
                "memory_halvings": report.num_halvings,
                "processes": report.num_processes,
            }
        )

    def _history(self, name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(self._run.run_id, name)]
