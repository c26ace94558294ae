"""Dataset versions as the steps behind the build see them: which one, where it is cached, and how a run names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data.sources as sources
from mlflow.data.meta_dataset import MetaDataset

from planner.contracts.example import DatasetVersion
from planner.dataset.versions import open_version
from planner.recipe.config import ResolvedConfig


def dataset_of(config: ResolvedConfig, uri: str | None) -> DatasetVersion:
    """Open the version that was asked for, else the one that the recipe's build step writes.

    Raises:
        DatasetError: it is missing, incomplete or changed since its build.
    """
    if not uri:
        build = config.recipe.build_dataset
        uri = f"{build.datasets.rstrip('/')}/planner/{build.date or build.end_date}"
    return open_version(uri, cache=dataset_cache(config))


def dataset_cache(config: ResolvedConfig) -> Path:
    """Where versions on `s3://` are kept for reading."""
    return config.folder / "cache"


def dataset_tags(outputs: Mapping[str, Any]) -> dict[str, object]:
    """The two tags by which every run names its data."""
    return {"dataset_version": outputs.get("dataset_version"), "dataset_digest": outputs.get("dataset_digest")}


def log_dataset_input(version: DatasetVersion, *, context: str) -> None:
    """Log the version as an input of the run, with our digest over all rows (MLflow's own reads 10,000)."""
    # Named by class: MLflow registers some sources twice and warns when it has to guess. It makes the classes at
    # import, so a type checker cannot see them.
    if version.uri.startswith("s3://"):
        source = sources.S3ArtifactDatasetSource(version.uri)  # type: ignore[attr-defined]
    else:
        source = sources.LocalArtifactDatasetSource(  # type: ignore[attr-defined]
            Path(version.uri).resolve().as_uri()
        )
    dataset = MetaDataset(  # type: ignore[abstract]
        source=source, name=f"planner/{version.name}", digest=version.digest
    )
    mlflow.log_input(dataset, context)
