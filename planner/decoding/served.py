"""The registered model as MLflow loads it: `loader_module="planner.decoding.served"`.

In: requests of the dataset contract, as one dict, a list of dicts, or a DataFrame with a column per member; over HTTP
as `inputs`, `dataframe_split` or `dataframe_records`. Out: a DataFrame, for each request `plan`, `feasible`
and `reason`. A request that breaks the contract is an error that names the field (HTTP 400), never a plan.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Object, Property

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ContractError, PlannerError
from planner.contracts.request import Request, parse_request
from planner.decoding.lora import LoraPlanner
from planner.decoding.package import load_package
from planner.decoding.result import Planner, PlanResult
from planner.decoding.sampling import Sampling

LOADER_MODULE = "planner.decoding.served"
# What loading and planning import; the recipe's own pins carry the same versions.
REQUIREMENTS = ("mlflow", "torch", "transformers", "peft", "safetensors", "numpy", "pandas", "filelock", "gguf", "pip")
# What a caller may set beside the requests, and its value where it does not: greedy, as every replay is.
PARAMS: Mapping[str, tuple[DataType, float | int]] = {
    "temperature": (DataType.double, 0.0),
    "top_p": (DataType.double, 1.0),
    "seed": (DataType.long, 0),
}
MEMBERS = ("household", "pantry", "constraints", "workflow_type", "mode", "previous_plan")


class ServedPlanner:
    """The object behind MLflow's pyfunc; `planner` is the verified planner itself."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Plan each request; `params` may hold `temperature` (0 is greedy), `top_p` and `seed`.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE with the field, where a request breaks the contract.
        """
        requests = []
        for index, row in enumerate(request_rows(model_input)):
            try:
                requests.append(parse_request(row))
            except ContractError as error:
                raise MlflowException(f"Request {index}: {error}", error_code=INVALID_PARAMETER_VALUE) from error
        try:
            results = self._plan(requests, params or {})
        except ContractError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        except PlannerError as error:
            raise MlflowException(str(error), error_code=INTERNAL_ERROR) from error
        rows = [result.to_dict() for result in results]
        if in_spark_task():  # MLflow's UDF makes the text `None` of null wherever another row has a reason
            rows = [row | {"reason": row["reason"] or ""} for row in rows]
        columns = {name: [row[name] for row in rows] for name in ("plan", "feasible", "reason")}
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})

    def _plan(self, requests: Sequence[Request], params: Mapping[str, Any]) -> list[PlanResult]:
        values = {name: params[name] for name in PARAMS if params.get(name) is not None}
        if values.get("temperature", 0.0) == 0:
            return self.planner.plan(requests)
        if not isinstance(self.planner, LoraPlanner):
            raise ContractError(
                f"temperature is {values['temperature']}, but a model of kind {self.planner.kind} draws no plans. "
                "Ask without it.",
                field="temperature",
            )
        return self.planner.plan(requests, sampling=Sampling(**values))


def _load_pyfunc(path: str) -> ServedPlanner:
    """What MLflow calls with the model's data folder; every file is checked before anything is loaded."""
    return ServedPlanner(load_package(Path(path)))


def request_rows(model_input: Any) -> list[Any]:
    """Plain JSON values, one per request, out of whatever shape MLflow hands over.

    Raises:
        MlflowException: the input is no request, list of requests or table of requests.
    """
    if isinstance(model_input, pd.DataFrame):
        # A cell that a row of the table lacks is NaN or None: the member is absent.
        rows = [_present(row) for row in model_input.to_dict(orient="records")]
        return [_without_nulls(row) or {} for row in rows] if in_spark_task() else rows
    if isinstance(model_input, Mapping):
        return [_present(model_input)]
    if isinstance(model_input, Sequence | np.ndarray) and not isinstance(model_input, str | bytes):
        return [_present(row) if isinstance(row, Mapping) else _plain(row) for row in model_input]
    raise MlflowException(
        f"The input is a {type(model_input).__name__}, not a request, a list of requests or a DataFrame.",
        error_code=INVALID_PARAMETER_VALUE,
    )


def in_spark_task() -> bool:
    """Whether this is a worker of Spark, where `mlflow.pyfunc.spark_udf` hands over structs as columns of pandas.

    There a null number has become NaN and a null struct one of nulls. Spark's own NaN cannot be told from null. A null
    text cannot be answered.
    """
    spark = sys.modules.get("pyspark")  # a worker has it; elsewhere it need not be installed
    return spark is not None and spark.TaskContext.get() is not None


def signature() -> ModelSignature:
    """The members of a request and the schema of an answer; every member but `household` may be absent or null.

    What is inside the members is typed `any`: MLflow's own check of nested types refuses valid requests (a budget of
    150 for 150.0, a null quantity, a member that one row of a table lacks), and names no field where it is right.
    `parse_request` checks all of it. `household` is an object, because MLflow takes a lone dict for one request only
    where some column is.
    """
    text, free = DataType.string, AnyType()  # type: ignore[no-untyped-call]
    names = ("id", "size", "preferences", "restrictions")
    household = Object([Property(name, free, required=False) for name in names])
    meal = Object([Property("day", text), Property("recipe_id", text), Property("servings", DataType.long)])
    plan = Object([Property("meals", Array(meal))])
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(household, "household"),
        *(ColSpec(free, name, required=False) for name in MEMBERS[1:]),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(plan, "plan"),
        ColSpec(DataType.boolean, "feasible"),
        ColSpec(text, "reason", required=False),
    ]
    params = ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in PARAMS.items()])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)


def input_example(catalogue: Catalogue | None = None) -> pd.DataFrame:
    """One request with every member; its previous plan names dishes of `catalogue`, and is null without one."""
    ids = [recipe.id for recipe in catalogue.recipes if recipe.active][:2] if catalogue else []
    days = ("monday", "tuesday")
    meals = [{"day": day, "recipe_id": i, "servings": 4} for day, i in zip(days, ids, strict=False)]
    request = {
        "household": {
            "id": str(uuid.UUID(int=1)),
            "size": 4,
            "preferences": ["vegetarian"],
            "restrictions": ["nut-allergy"],
        },
        "pantry": {
            "items": [
                {"name": "rice", "quantity": 2.0, "unit": "kg"},
                {"name": "tomatoes", "quantity": 6.0, "unit": "count"},
            ]
        },
        "constraints": {"budget": 150.0, "max_prep_time": 45, "excluded_ingredients": ["shellfish"]},
        "workflow_type": "plan-first",
        "mode": "autopilot",
        "previous_plan": {"meals": meals} if meals else None,
    }
    return pd.DataFrame([request])


def log_arguments(folder: Path, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """What to pass to `mlflow.pyfunc.log_model` (with a `name`) or `save_model` for a folder of `write_package`."""
    package = Path(__file__).resolve().parents[1]
    return {
        "loader_module": LOADER_MODULE,
        "data_path": str(folder),
        "code_paths": [str(package)],
        "signature": signature(),
        "input_example": input_example(catalogue),
        "pip_requirements": [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
    }


def _present(row: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {str(name): _plain(value) for name, value in row.items()}
    return {name: value for name, value in plain.items() if value is not None and not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    """Whether a table's cell is empty. NaN deeper inside is no missing cell: the contract refuses it there."""
    return value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _without_nulls(value: Any) -> Any:
    """Members that are null, NaN or made of such alone left out, at any depth; null where nothing is left."""
    if isinstance(value, Mapping):
        kept = {name: _without_nulls(member) for name, member in value.items()}
        return {name: member for name, member in kept.items() if member is not None} or None
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return None if _is_missing(value) else value


def _plain(value: Any) -> Any:
    """Arrays as lists and numpy scalars as Python's, at any depth."""
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if hasattr(value, "asDict"):  # a row of Spark
        return _plain(value.asDict(recursive=True))
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(member) for member in value]
    return value.item() if isinstance(value, np.generic) else value
