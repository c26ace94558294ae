"""Loss curves of a run as a picture.

In: the epochs of a `TrainingReport`. Out: a PNG file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planner.training.report import EpochMetrics


def plot_losses(
    epochs: Sequence[EpochMetrics],
    path: Path,
    *,
    best_epoch: int | None = None,
    points: Sequence[tuple[float, float]] = (),
) -> Path:
    """Draw train and validation loss by epoch, the chosen epoch marked, and write them to `path` (.png).

    Args:
        epochs: of a report.
        path: of the picture.
        best_epoch: the one that was kept.
        points: (epochs done, train loss) within the epochs, drawn thin.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if points:
        axes.plot(*zip(*points, strict=True), color="C0", alpha=0.4, linewidth=1, label="train, within epochs")
    for name, label in (("train_loss", "train"), ("validation_loss", "validation")):
        points = [(e.epoch, getattr(e, name)) for e in epochs if getattr(e, name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: epoch {best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(path, format="png")
    return path
