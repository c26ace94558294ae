"""A bucket as the store that training keeps copies of its checkpoints in.

In: `s3://bucket/prefix`, the usual AWS variables and `MLFLOW_S3_ENDPOINT_URL`. Out: a `planner.training.remote.Store`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from planner.contracts.errors import TrainingError


class S3Store:
    """Objects under one address; a put is whole or not there, as S3 has it."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._uri, self._bucket, self._prefix = uri, parts.netloc, f"{parts.path.strip('/')}/".lstrip("/")
        retries = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60)
        endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
        with self._errors():
            self._client: Any = boto3.client("s3", endpoint_url=endpoint, config=retries)

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
            try:
                content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise
            return content

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

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """One line for what the store says; botocore's messages hold no credentials."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            detail = " ".join(str(error).split())[:300]
            raise TrainingError(
                f"The checkpoint store {self._uri} refused: {detail}. Check train.checkpoints, the AWS variables and "
                "MLFLOW_S3_ENDPOINT_URL, then run the same command again; it goes on from the newest checkpoint.",
                uri=self._uri,
            ) from None
