"""What the model registry says: that there is no such version is one thing, that it fails another.

In: a client of the registry. Out: the version that an alias names, and one-line errors.
"""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from planner.contracts.errors import TrackingError

_NOT_FOUND = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE))


def alias_version(client: MlflowClient, model_name: str, alias: str) -> str | None:
    """Number of the version that carries the alias; None where there is no such alias or model.

    Raises:
        TrackingError: the registry cannot be reached, or refuses.
    """
    try:
        return str(client.get_model_version_by_alias(model_name, alias).version)
    except MlflowException as error:
        check_not_found(error)
        return None


def check_not_found(error: MlflowException) -> None:
    """Let an error pass that says that something is not there.

    Raises:
        TrackingError: it is any other.
    """
    if error.error_code not in _NOT_FOUND:
        raise unreachable(error) from error


def unreachable(error: MlflowException) -> TrackingError:
    """The one-line error for a store or registry that failed."""
    first = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
    return TrackingError(f"MLflow failed: {first[:200]}. Check MLFLOW_TRACKING_URI and run the command again.")
