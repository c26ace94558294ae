"""The registered model as a UDF of Spark: the planner's own plans, nulls as nulls, errors that name the field."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import mlflow
import pytest

from planner.contracts.plan import EMPTY_PLAN
from planner.contracts.request import Constraints
from planner.decoding.package import Lineage, LoraParts, load_package, write_package
from planner.decoding.served import MEMBERS, in_spark_task, log_arguments
from tests.spark import local_spark, needs_spark
from tests.tiny import tiny_requests

pytestmark = [needs_spark, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def package(base, base_files, catalogue, tmp_path_factory):
    from peft import LoraConfig, get_peft_model

    from planner.decoding.base import load_base

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("spark")
    get_peft_model(load_base(base_files, device="cpu").model, config).save_pretrained(folder / "adapter")
    parts = LoraParts(base_files, base.tokenizer, folder / "adapter")
    write_package(folder / "package", parts, catalogue, Lineage("v", "d" * 32, ("train",)), embed_base=True)
    return folder / "package"


@pytest.fixture(scope="module")
def planned(package, catalogue, tmp_path_factory):
    """A function that plans requests on Spark: a model saved as the recipe logs it, on two workers."""
    folder, path = tmp_path_factory.mktemp("model"), list(sys.path)
    mlflow.pyfunc.save_model(folder / "model", **log_arguments(package, catalogue))
    sys.path[:] = path
    with local_spark(folder) as spark:
        # Without a result type: MLflow derives it from the model's signature.
        udf = mlflow.pyfunc.spark_udf(spark, str(folder / "model"), env_manager="local")

        def plan(requests):
            lines = [json.dumps({"n": n, **request}) for n, request in enumerate(requests)]
            (folder / "requests.json").write_text("\n".join(lines))
            table = spark.read.json(str(folder / "requests.json")).repartition(3)
            rows = table.select("n", udf(*MEMBERS).alias("answer")).orderBy("n").collect()
            return [row.answer.asDict(recursive=True) for row in rows]

        yield plan


def test_plans_are_the_planner_s_own_with_nulls_between_them(planned, package, catalogue):
    requests = tiny_requests(24, 4, catalogue=catalogue)
    requests[3] = replace(requests[3], constraints=Constraints(budget=0.0))
    assert {request.constraints.budget is None for request in requests} == {True, False}
    assert {request.previous_plan is None for request in requests} == {True, False}
    answers = planned([request.to_dict() for request in requests])
    expected = [result.to_dict() for result in load_package(package, device="cpu").plan(requests)]
    assert answers == [answer | {"reason": answer["reason"] or ""} for answer in expected]
    assert answers[3]["plan"] == EMPTY_PLAN.to_dict() and answers[3]["reason"].startswith("budget_below_minimum")


def test_request_that_breaks_the_contract_names_the_field(planned, catalogue):
    bad = tiny_requests(1, 4, catalogue=catalogue)[0].to_dict()
    bad["household"]["size"] = -3
    with pytest.raises(Exception, match=r"household\.size is -3"):
        planned([bad])


def test_the_driver_is_no_worker():
    import pyspark  # noqa: F401 - loaded, and yet no task

    assert not in_spark_task()
