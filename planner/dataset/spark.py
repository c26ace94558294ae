"""The shards of a build on Spark: each task builds one shard, the driver collects the rows and merges them.

In: the tasks of `shards.py`. Out: their results, with the rows in the driver's folder as if a local process had built
them. The shards' bytes go through Spark's own blocks (on the workers' disks), so no shared folder is needed; `planner`
and its packages must be installed where the workers run. Needs PySpark: `pip install planner[spark]`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from planner.contracts.errors import DatasetError, PlannerError
from planner.dataset.rows import Source
from planner.dataset.shards import ShardResult, build_shard, error_json, part_paths, result_of

_CHUNK_BYTES = 4 << 20
_PROJECT = Path(__file__).parents[2]


def run_on_spark(tasks: Sequence[Source], folder: Path, master: str) -> list[ShardResult]:
    """Build the shards and put their files into `folder`.

    Args:
        tasks: one per shard; a worker that is lost is replaced, and reads the same snapshot again.
        folder: the driver's.
        master: `local[2]`, `spark://host:7077`, `k8s://…`; an existing session is used as it is.

    Raises:
        DatasetError: PySpark is missing, or Spark gave up.
        PlannerError: of the first shard that failed.
    """
    try:
        from pyspark import StorageLevel
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise DatasetError(
            f"build_dataset.spark is set, but PySpark is not installed ({error}). Install planner[spark], or set it to "
            "null for local processes."
        ) from None
    paths = [os.fspath(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    builder = SparkSession.builder.master(master).appName("planner build_dataset")
    options = {"spark.executorEnv.PYTHONPATH": os.pathsep.join(paths), "spark.ui.enabled": "false"}
    if master.startswith("local"):
        options |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # a setting of the session does not reach local workers
    for name, value in options.items():
        builder = builder.config(name, value)
    with ExitStack() as stack:
        try:
            existing = SparkSession.getActiveSession()
            session = existing or builder.getOrCreate()
            if existing is None:
                stack.callback(session.stop)
            texts = session.sparkContext.parallelize([task.to_json() for task in tasks], len(tasks))
            pieces = texts.flatMap(_pieces).persist(StorageLevel.DISK_ONLY)
            stack.callback(pieces.unpersist)
            pieces.count()  # all shards at once; the iterator below would run one after the other
            return _collected(pieces.toLocalIterator(), tasks, folder)
        except PlannerError:
            raise
        except (PySparkException, OSError, RuntimeError) as error:
            raise _spark_error(master, error) from None
        except Exception as error:  # py4j's errors have no common base that is importable without a gateway
            if type(error).__module__.startswith("py4j"):
                raise _spark_error(master, error) from None
            raise


def _pieces(text: str) -> Iterator[tuple[int, str, bytes]]:
    """On a worker: `(shard, file, bytes)` in order, and the result last under the name `result`."""
    task = Source.from_json(text)
    with tempfile.TemporaryDirectory(prefix="planner-shard-") as name:
        folder = Path(name)
        try:
            result = build_shard(task, folder).to_json()
        except PlannerError as error:
            yield task.shard.index, "result", error_json(error).encode()
            return
        for path in part_paths(folder, task.shard.index):
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield task.shard.index, path.name, chunk
    yield task.shard.index, "result", result.encode()


def _collected(pieces: Any, tasks: Sequence[Source], folder: Path) -> list[ShardResult]:
    answers: dict[int, str] = {}
    for index, name, content in pieces:
        if name == "result":
            answers[index] = content.decode()
            continue
        with (folder / name).open("ab") as file:
            file.write(content)
    return [result_of(answers.get(task.shard.index, ""), task.shard) for task in tasks]


def _spark_error(master: str, error: Exception) -> DatasetError:
    detail = " ".join(str(error).split())[:300]
    return DatasetError(
        f"Spark at {master} did not build the shards: {detail}. Nothing was published; look at the master and its "
        "workers, or set build_dataset.spark to null for local processes."
    )
