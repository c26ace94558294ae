"""A bucket as the store that training keeps copies of its checkpoints in.

In: `s3://bucket/prefix`, the usual AWS variables and `MLFLOW_S3_ENDPOINT_URL`. Out: a `planner.training.remote.Store`.
"""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager

from planner.contracts.errors import TrainingError
from planner.dataset import s3


class S3Store:
    """Objects under one address; a put is whole or not there, as S3 has it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, prefix = s3.split(uri)
        self._prefix = f"{prefix}/".lstrip("/")
        with self._errors():
            self._client = s3.new_client()

    def probe(self) -> None:
        """Write, read and remove an object, before hours of work rely on it.

        Raises:
            TrainingError: refused or unreachable.
        """
        name = f".probe-{uuid.uuid4().hex}"
        self.put(name, b"")
        found = self.get(name)
        self.delete(name)
        if found != b"":
            raise TrainingError(f"The store at {self._uri} does not give back what was written. Use another one.")

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        with self._errors():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None without it."""
        with self._errors():
            return s3.get(self._client, self._bucket, self._prefix + name)

    def names(self, prefix: str) -> list[str]:
        """The names that start with the prefix."""
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [str(key).removeprefix(self._prefix) for key in keys]

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._errors():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def _errors(self) -> AbstractContextManager[None]:
        return s3.one_line(
            lambda detail: TrainingError(
                f"The checkpoint store {self._uri} refused: {detail}. Check train.checkpoints, the AWS variables and "
                "MLFLOW_S3_ENDPOINT_URL, then run the same command again; it goes on from the newest checkpoint.",
                uri=self._uri,
            )
        )
