"""Versions on S3, against moto's server: conditional puts, takeover of unfinished builds, verified downloads."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from planner.contracts.errors import DatasetError
from planner.dataset import s3, versions
from planner.dataset.__main__ import main
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.versions import open_version
from tests.dataset import small
from tests.dataset.bad_network import BadNetwork

ROOT = "s3://bucket/sets"
URI = f"{ROOT}/planner/v1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-value",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    yield client
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    client.delete_bucket(Bucket="bucket")
    client.close()


@pytest.fixture
def filled(database_url: str) -> str:
    small.fill(database_url)
    return database_url


def names(store: Any) -> list[str]:
    found = store.list_objects_v2(Bucket="bucket").get("Contents", [])
    return sorted(entry["Key"].rpartition("/")[2] for entry in found)


class Killed(BaseException):
    pass


def build(url: str, cache: Path, *, kill_at: str | None = None, **changes: Any) -> BuildReport:
    def at_boundary(name: str) -> None:
        if name == kill_at:
            raise Killed

    return build_dataset(url, small.config(ROOT, **changes), cache=cache, at_boundary=at_boundary)


def test_version_on_s3_is_the_local_one_and_reads_back(store: Any, filled: str, tmp_path: Path) -> None:
    local = build_dataset(filled, small.config(tmp_path / "local"))
    report = build(filled, tmp_path / "cache")
    assert report.version.uri == URI and report.version.digest == local.version.digest
    assert names(store) == sorted([*versions.FILES, versions.MANIFEST])
    assert open_version(URI + "/", cache=tmp_path / "other").num_rows == small.ROWS
    assert build(filled, tmp_path / "cache").unchanged
    small.run(filled, "DELETE FROM exp.events WHERE unit_id = 'home-3'")
    with pytest.raises(DatasetError, match="48 rows .* then, 44 rows"):
        build(filled, tmp_path / "cache")


@pytest.mark.parametrize("boundary", [f"put {name}" for name in versions.FILES])
def test_cut_off_build_is_no_version_and_the_next_one_finishes_it(
    store: Any, filled: str, tmp_path: Path, boundary: str
) -> None:
    with pytest.raises(Killed):
        build(filled, tmp_path / "a", kill_at=boundary)
    with pytest.raises(DatasetError, match="no finished dataset"):
        open_version(URI, cache=tmp_path / "b")
    report = build(filled, tmp_path / "c")
    assert not report.unchanged and open_version(URI, cache=tmp_path / "d").digest == report.version.digest


def test_large_files_are_put_in_parts_and_appear_whole(
    store: Any, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"INSERT INTO pantry_snapshots VALUES ({n}, 'home-{n % 9}', '2025-01-04', (SELECT jsonb_agg("
                   f"jsonb_build_object('name', md5(m::text || '{n}'))) FROM generate_series(1, 40000) m));"
                   for n in range(900, 920))  # fmt: skip
    small.run(filled, rows)
    monkeypatch.setattr(s3, "PUT_BYTES", 5 << 20)  # the least that a part may have
    calls = []
    original = s3._put_parts
    monkeypatch.setattr(s3, "_put_parts", lambda *args: calls.append(args[2]) or original(*args))
    report = build(filled, tmp_path / "a")
    assert report.version.training_path.stat().st_size > 5 << 20
    assert [key.rpartition("/")[2] for key in calls] == ["training.parquet"]
    head = store.head_object(Bucket="bucket", Key="sets/planner/v1/training.parquet")
    assert head["ETag"].strip('"').endswith("-2") and not store.list_multipart_uploads(Bucket="bucket").get("Uploads")
    assert open_version(URI, cache=tmp_path / "b").digest == report.version.digest
    assert build(filled, tmp_path / "c").unchanged


def test_parts_of_a_broken_upload_are_taken_back(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PUT_BYTES", 4)

    class Full:
        left = 1

        def read(self, size: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
            return b"x" * size

    with pytest.raises(OSError, match="gone"):
        s3._put_parts(store, "bucket", "big", Full(), "0")
    assert not store.list_multipart_uploads(Bucket="bucket").get("Uploads")


def test_unfinished_build_of_other_rows_is_refused_while_young_and_replaced_when_old(
    store: Any, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        build(filled, tmp_path / "a", kill_at="put schema.json")
    small.run(filled, "DELETE FROM exp.events WHERE unit_id = 'home-3'")
    with pytest.raises(DatasetError, match="under way or was cut off"):
        build(filled, tmp_path / "a")
    monkeypatch.setattr(s3, "STALE_AFTER", dt.timedelta(days=-1))
    assert build(filled, tmp_path / "a").num_rows == 44
    assert open_version(URI, cache=tmp_path / "b").num_rows == 44


@pytest.mark.parametrize("name", [*versions.FILES, versions.MANIFEST])
def test_changed_or_missing_object_is_named(store: Any, filled: str, tmp_path: Path, name: str) -> None:
    build(filled, tmp_path / "a")
    key = f"sets/planner/v1/{name}"
    content = store.get_object(Bucket="bucket", Key=key)["Body"].read()
    store.put_object(Bucket="bucket", Key=key, Body=content[:-2] + b"~~")
    with pytest.raises(DatasetError, match=name):
        open_version(URI, cache=tmp_path / "b")
    store.delete_object(Bucket="bucket", Key=key)
    with pytest.raises(DatasetError, match=f"{name} is missing"):
        open_version(URI, cache=tmp_path / "b")


def test_damaged_cache_is_fetched_again(store: Any, filled: str, tmp_path: Path) -> None:
    path = build(filled, tmp_path).version.training_path
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert open_version(URI, cache=tmp_path).training_path.read_bytes() == content


def test_commands_work_on_s3_and_verify_trusts_no_cache(
    store: Any, filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "DEFAULT_CACHE", tmp_path / "cache")
    build(filled, tmp_path / "cache")
    with pytest.raises(Killed):
        build(filled, tmp_path / "cache", kill_at="put recipes.parquet", date="cut")
    assert main(["list", ROOT]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert listed["v1"].endswith("whole") and "manifest.json is missing" in listed["cut"]
    assert main(["verify", URI]) == 0 and main(["show", URI]) == 0 and main(["diff", URI, URI]) == 0
    assert "48 the same" in capsys.readouterr().out
    key = "sets/planner/v1/card.html"
    content = store.get_object(Bucket="bucket", Key=key)["Body"].read()
    store.put_object(Bucket="bucket", Key=key, Body=content[:-2] + b"~~")
    assert main(["verify", URI]) == 1
    assert "card.html does not have the SHA-256" in capsys.readouterr().out
    store.delete_object(Bucket="bucket", Key=key)
    assert main(["verify", URI]) == 1 and main(["list", ROOT]) == 0
    told = capsys.readouterr().out
    assert "card.html is missing" in told and "incomplete: card.html is missing" in told
    assert main(["verify", f"{ROOT}/planner/cut"]) == 1
    assert "no finished dataset" in capsys.readouterr().err
    assert main(["list", f"{ROOT}/none"]) == 1 and "There are no datasets" in capsys.readouterr().err


def test_store_that_refuses_or_is_away_is_a_clear_error(
    store: Any, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match="NoSuchBucket"):
        build_dataset(filled, small.config("s3://nobucket/x"), cache=tmp_path)
    with pytest.raises(DatasetError, match="no finished dataset"):
        open_version(f"{ROOT}/planner/none", cache=tmp_path)
    monkeypatch.setattr(s3, "_put_new", lambda *args: True)
    with pytest.raises(DatasetError, match="ignores conditional puts"):
        build(filled, tmp_path)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DatasetError, match="The store refused") as caught:
        open_version(URI, cache=tmp_path)
    assert "secret-value" not in str(caught.value)


@pytest.mark.slow
def test_store_that_throttles_is_tried_again_and_one_that_cuts_off_is_a_clear_error(
    store: Any, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = store.meta.endpoint_url
    with BadNetwork(endpoint, throttled=1) as network:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", network.url)
        report = build(filled, tmp_path / "a")
        assert open_version(URI, cache=tmp_path / "b").digest == report.version.digest
        assert network.num_throttled > len(versions.FILES)
    with BadNetwork(endpoint, cut_off=lambda path: path.endswith("training.parquet")) as network:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", network.url)
        with pytest.raises(DatasetError, match=f"The store refused {URI}"):
            open_version(URI, cache=tmp_path / "c")
        assert network.num_cut_off and not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        assert main(["verify", URI]) == 1
        assert "The store refused" in capsys.readouterr().err
    with BadNetwork(endpoint, cut_off=lambda path: path.endswith("manifest.json")) as network:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", network.url)
        with pytest.raises(DatasetError, match="The store refused"):
            open_version(URI, cache=tmp_path / "c")


def test_cache_that_cannot_be_written_is_a_clear_error(store: Any, filled: str, tmp_path: Path) -> None:
    build(filled, tmp_path / "cache")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match="which cannot be written: File exists"):
        open_version(URI, cache=tmp_path / "file")
