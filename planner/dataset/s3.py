"""Versions on S3: the manifest is put last and only if there is none, so one builder wins and readers see all or none.

In: `s3://bucket/prefix/planner/<version>`, the usual AWS variables and `MLFLOW_S3_ENDPOINT_URL`. Out: a published
version, or a local copy of one whose hashes were checked.

No object is ever overwritten: files are put with `If-None-Match: *`. What an unfinished build left is adopted where it
holds the same bytes, and removed where it is older than an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from filelock import FileLock
from s3transfer.exceptions import RetriesExceededError

from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion

STALE_AFTER = timedelta(hours=1)
_MANIFEST = "manifest.json"
# A larger file is put in parts of this size: 10,000 of them at most, 640 GB.
PUT_BYTES = 64 << 20
_HASH = "sha256"


def is_s3(uri: str) -> bool:
    """Whether the address is on S3."""
    return uri.startswith("s3://")


def probe(root: str) -> None:
    """Check that objects can be written under `root` and that conditional puts are honoured.

    Raises:
        DatasetError: refused, unreachable, or a server that overwrites silently.
    """
    bucket, prefix = split(root)
    key = f"{prefix}/.probe-{uuid.uuid4().hex}".lstrip("/")
    with _errors(root):
        client = new_client()
        client.put_object(Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
        try:
            overwritten = _put_new(client, bucket, key, b"x", "")
        finally:
            client.delete_object(Bucket=bucket, Key=key)
    if overwritten:
        raise DatasetError(
            f"The store at {root} ignores conditional puts (If-None-Match), so two builds could destroy each other's "
            "version. Use a store that has them (Amazon S3, MinIO), or a local folder.",
            uri=root,
        )


def new_client() -> Any:
    """A client for the usual AWS variables and `MLFLOW_S3_ENDPOINT_URL`; it tries five times."""
    retries = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60)
    return boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None, config=retries)


def split(uri: str) -> tuple[str, str]:
    """Bucket and prefix of an address, without slashes around the prefix."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.strip("/")


def get(client: Any, bucket: str, key: str) -> bytes | None:
    """An object's bytes; None without it. Errors are botocore's."""
    try:
        content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise
    return content


@contextlib.contextmanager
def one_line(make: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `make(detail)` in place of what botocore and boto3 say; their messages hold no credentials."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, RetriesExceededError) as error:
        raise make(" ".join(str(error).split())[:300]) from None


def read_manifest(uri: str) -> bytes | None:
    """The bytes of a version's manifest; None if there is none."""
    bucket, prefix = split(uri)
    with _errors(uri):
        return get(new_client(), bucket, f"{prefix}/{_MANIFEST}")


def publish(
    folder: Path,
    uri: str,
    manifest: Mapping[str, Any],
    seal: Callable[[Mapping[str, Any]], bytes],
    at_boundary: Callable[[str], None],
) -> bool:
    """Put the files of `folder` and then the manifest; False where another builder's manifest was there first.

    `folder` and the manifest take over the other files of an unfinished build of the same rows.
    """
    bucket, prefix = split(uri)
    final = {**manifest, "files": dict(manifest["files"])}
    with _errors(uri):
        client = new_client()
        for name, entry in manifest["files"].items():
            adopted = _put_file(client, bucket, f"{prefix}/{name}", folder / name, entry["sha256"], uri)
            if adopted is not None:
                (folder / name).write_bytes(adopted)
                final["created_at"] = json.loads(adopted)["created_at"]
                final["files"][name] = {"sha256": _sha256(adopted), "size": len(adopted)}
            at_boundary(f"put {name}")
        return _put_new(client, bucket, f"{prefix}/{_MANIFEST}", seal(final), "")


def fetch_version(uri: str, cache: Path, *, verify: Callable[..., DatasetVersion]) -> DatasetVersion:
    """Download a version into `cache` (once) and verify it there.

    Raises:
        DatasetError: missing, incomplete, changed, or the store refuses.
    """
    from planner.dataset.versions import parse_manifest

    with _errors(uri), _cache_errors(cache):
        client = new_client()
        content = _require_manifest(client, uri)
        manifest = parse_manifest(content, uri)
        folder = cache / f"{manifest['version']}-{_sha256(content)[:32]}"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock", fallback_to_soft=False):
            with contextlib.suppress(DatasetError):
                return verify(folder, uri=uri)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=cache))
            try:
                _download_files(client, uri, content, manifest["files"], part)
                verify(part, uri=uri)
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return verify(folder, uri=uri)


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"Versions on S3 are kept in {cache}, which cannot be written: {error.strerror or error}. Free some space "
            "or allow writing there.",
            folder=cache,
        ) from None


def download_version(uri: str, folder: Path) -> None:
    """Fetch the files of a version into an empty folder as they are, unchecked; missing ones stay missing.

    Raises:
        DatasetError: there is no manifest, or it is damaged, or the store refuses.
    """
    from planner.dataset.versions import parse_manifest

    with _errors(uri):
        client = new_client()
        content = _require_manifest(client, uri)
        names = parse_manifest(content, uri)["files"]
        _download_files(client, uri, content, names, folder, missing_ok=True)


def list_folders(root: str) -> dict[str, dict[str, int]]:
    """The folders under an address, each with the sizes of its objects by name.

    Raises:
        DatasetError: the store refuses.
    """
    bucket, prefix = split(root)
    found: dict[str, dict[str, int]] = {}
    with _errors(root):
        pages = new_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/".lstrip("/"))
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            folder, _, name = entry["Key"].removeprefix(f"{prefix}/").partition("/")
            if name:
                found.setdefault(folder, {})[name] = entry["Size"]
    return found


def _require_manifest(client: Any, uri: str) -> bytes:
    bucket, prefix = split(uri)
    content = get(client, bucket, f"{prefix}/{_MANIFEST}")
    if content is None:
        raise DatasetError(
            f"There is no finished dataset at {uri} ({_MANIFEST} is missing). Build it with `mlflow run . -e "
            "build_dataset`, or correct the address.",
            uri=uri,
            file=_MANIFEST,
        )
    return content


def _download_files(
    client: Any, uri: str, manifest: bytes, names: Iterable[str], folder: Path, *, missing_ok: bool = False
) -> None:
    bucket, prefix = split(uri)
    for name in names:
        try:
            _download(client, bucket, f"{prefix}/{name}", folder / name, uri)
        except DatasetError:
            if not missing_ok:
                raise
            (folder / name).unlink(missing_ok=True)
    (folder / _MANIFEST).write_bytes(manifest)


def _put_file(client: Any, bucket: str, key: str, path: Path, sha256: str, uri: str) -> bytes | None:
    """Put one file; bytes where an equal build's `schema.json` (its time differs) was there already."""
    put = _put_new if path.stat().st_size <= PUT_BYTES else _put_parts
    for _ in range(2):
        with path.open("rb") as body:
            if put(client, bucket, key, body, sha256):
                return None
        head = client.head_object(Bucket=bucket, Key=key)
        if head["Metadata"].get(_HASH) == sha256:
            return None
        if path.name == "schema.json":
            other = get(client, bucket, key) or b"{}"
            if _without_time(other) == _without_time(path.read_bytes()):
                return other
        if datetime.now(UTC) - head["LastModified"] < STALE_AFTER:
            break
        client.delete_object(Bucket=bucket, Key=key)
    raise DatasetError(
        f"Another build of {uri} is under way or was cut off within the last hour, and its {path.name} differs. Wait "
        f"for it; if nobody builds there, remove the unfinished files (aws s3 rm --recursive {uri}/).",
        uri=uri,
        file=path.name,
    )


def _put_new(client: Any, bucket: str, key: str, body: Any, sha256: str) -> bool:
    return _unless_there(
        lambda: client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*", Metadata={_HASH: sha256})
    )


def _put_parts(client: Any, bucket: str, key: str, body: Any, sha256: str) -> bool:
    """Put a large object part by part; it appears whole when the last call ends, unless there is one by then."""
    if client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [{}])[0].get("Key") == key:
        return False  # before gigabytes are sent in vain
    upload = client.create_multipart_upload(Bucket=bucket, Key=key, Metadata={_HASH: sha256})["UploadId"]
    this = {"Bucket": bucket, "Key": key, "UploadId": upload}
    try:
        parts: list[dict[str, Any]] = []
        while content := body.read(PUT_BYTES):
            number = len(parts) + 1
            etag = client.upload_part(**this, PartNumber=number, Body=content)["ETag"]
            parts.append({"ETag": etag, "PartNumber": number})
        return _unless_there(
            lambda: client.complete_multipart_upload(**this, IfNoneMatch="*", MultipartUpload={"Parts": parts})
        )
    except BaseException:
        with contextlib.suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**this)
        raise


def _unless_there(put: Callable[[], Any]) -> bool:
    try:
        put()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
            return False
        raise
    return True


def _download(client: Any, bucket: str, key: str, path: Path, uri: str) -> None:
    try:
        with path.open("wb") as file:
            client.download_fileobj(bucket, key, file)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            raise DatasetError(
                f"The dataset at {uri} is incomplete: {path.name} is missing. Build it again under another name.",
                uri=uri,
                file=path.name,
            ) from None
        raise


def _without_time(content: bytes) -> Any:
    try:
        value = json.loads(content)
    except ValueError:
        return content
    return {name: member for name, member in value.items() if name != "created_at"}


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _errors(uri: str) -> contextlib.AbstractContextManager[None]:
    return one_line(
        lambda detail: DatasetError(
            f"The store refused {uri}: {detail}. Check the bucket, the AWS variables and MLFLOW_S3_ENDPOINT_URL; "
            "nothing was published.",
            uri=uri,
        )
    )
