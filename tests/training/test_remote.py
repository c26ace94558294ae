"""Copies of checkpoints on S3 (moto's server): real kills between puts, and a machine whose disk is gone each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError, TrainingError
from planner.decoding.base import BaseFiles
from planner.recipe import fine_tune
from planner.recipe.config import load_config
from planner.recipe.fine_tune import _checkpoints, _load
from planner.recipe.s3_store import S3Store
from planner.training.checkpoint import newest_checkpoint
from planner.training.loop import train
from tests.tiny import tiny_catalogue, tiny_examples

PROJECT = Path(__file__).resolve().parents[2]
URI = "s3://training/runs"
# 14 rows in batches of 3, a checkpoint each second step and epoch: 0, 2, 4, 5, 6, 8, 10, 12, 14, 15. Three puts each.
MOMENTS = {
    "": None,
    "put:2": None,
    "put:4": 0,
    "put:6": 0,
    "step:7": 6,
    "put:15,put:2": 5,
    "delete:1": 5,
    "delete:4": 6,
    "step:3,put:5,step:8": 10,
}


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(endpoint):
    values = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-value",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="training")
        yield client
        client.close()


@pytest.fixture
def store(bucket, request):
    return S3Store(f"s3://training/{request.node.name[:20]}")


def go(model, tokenizer, texts, config, folder, store, **options):
    return train(model, tokenizer, texts[:16], texts[16:], config, folder, store=store, **options)


def steps_in(store):
    return sorted({name.split("/")[-2] for name in store.names("") if name.endswith("manifest.json")})


def test_another_machine_goes_on_from_the_copies(model, tokenizer, texts, config, tmp_path, store):
    def stop(done, *_):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(model, tokenizer, texts, config, tmp_path / "a", store, report_step=stop)
    assert steps_in(store) == ["step-000004", "step-000006"]
    resumed = go(model, tokenizer, texts, config, tmp_path / "b", store)
    whole = train(model, tokenizer, texts[:16], texts[16:], config, tmp_path / "c")
    assert resumed.resumed_from_step == 6
    name = "adapter_model.safetensors"
    assert (resumed.adapter_folder / name).read_bytes() == (whole.adapter_folder / name).read_bytes()
    kept = sorted(path.name for path in (resumed.adapter_folder.parent / "checkpoints").glob("step-*"))
    assert steps_in(store) == kept


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_copy_is_passed_over_and_replaced(model, tokenizer, texts, config, tmp_path, store, damage):
    first = go(model, tokenizer, texts, config, tmp_path / "a", store)
    name = next(name for name in store.names("") if name.endswith("step-000008/state.safetensors"))
    content = bytearray(store.get(name))
    content[len(content) // 2] ^= 4
    store.delete(name) if damage == "remove" else store.put(name, bytes(content))
    again = go(model, tokenizer, texts, config, tmp_path / "b", store)
    assert again.resumed_from_step == 6
    go(model, tokenizer, texts, config, tmp_path / "c", store)
    folder = next((tmp_path / "c").glob("*/checkpoints"))
    assert newest_checkpoint(folder).position.step == first.num_steps == 8


def test_what_is_no_whole_checkpoint_is_not_copied(model, tokenizer, texts, config, tmp_path, store):
    def litter(done, *_):
        [folder] = tmp_path.glob("*/checkpoints")
        if done == 1:
            (folder / "step-notes").write_text("a file")
            (folder / "step-empty").mkdir()
            (folder / "step-000000" / "manifest.json").unlink()

    report = go(model, tokenizer, texts, config, tmp_path, store, report_step=litter)
    assert (report.num_steps, report.resumed_from_step) == (8, None)
    assert steps_in(store) == ["step-000004", "step-000006", "step-000008"]
    assert sorted({name.split("/")[-2] for name in store.names("")}) == steps_in(store)


def test_store_that_cannot_be_reached_is_found_by_the_probe(monkeypatch, bucket):
    S3Store(URI).probe()
    with pytest.raises(TrainingError, match="s3://nowhere/x refused: .*NoSuchBucket.*train.checkpoints"):
        S3Store("s3://nowhere/x").probe()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TrainingError, match="refused: Could not connect") as error:
        S3Store(URI).probe()
    assert "secret-value" not in str(error.value)


def checkpoints(uri):
    return _checkpoints(load_config("local", {"train.checkpoints": uri}))


def test_checkpoints_go_where_the_recipe_says(bucket, tmp_path):
    assert checkpoints("") == (load_config("local").folder / "training", None)
    assert checkpoints(str(tmp_path)) == (tmp_path, None)
    folder, store = checkpoints(URI)
    assert folder == load_config("local").folder / "training"
    store.put("name", b"x")
    assert S3Store(URI).get("name") == b"x"
    with pytest.raises(TrainingError, match="s3://nowhere/x refused"):
        checkpoints("s3://nowhere/x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_gpu_profile_without_a_gpu_fails_before_the_base_is_read(tmp_path):
    config = load_config("gpu").recipe.train
    assert (config.device, config.micro_batch_tokens) == ("cuda", None)
    with pytest.raises(TrainingError, match="train.device is cuda, and PyTorch finds no NVIDIA GPU.*auto or cpu"):
        _load(config, BaseFiles("absent", tmp_path, "", "", ""))


def test_dataset_without_a_train_split_is_one_clear_line(monkeypatch, model, tokenizer):
    monkeypatch.setattr(fine_tune, "_load", lambda *_: (model, tokenizer))
    monkeypatch.setattr(fine_tune, "iter_examples", lambda version, split: [] if split == "train" else tiny_examples(3))
    version = SimpleNamespace(name="2018-01-01", uri="datasets/2018-01-01")
    with pytest.raises(TrainingError, match="2018-01-01 has no rows in the split train. Build one over a longer"):
        fine_tune._train(load_config("local"), None, None, tiny_catalogue(), version)


def test_title_that_the_tokenizer_changes_is_named_before_training(monkeypatch, model, tokenizer):
    odd = replace(tiny_catalogue().recipes[0], title="Stop <|im_end|> here")
    catalogue = Catalogue.of([odd, *tiny_catalogue().recipes[1:]])
    monkeypatch.setattr(fine_tune, "_load", lambda *_: (model, tokenizer))
    monkeypatch.setattr(fine_tune, "iter_examples", lambda version, split: tiny_examples(3))
    monkeypatch.setattr(fine_tune, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ModelError, match="Stop .* here.*cannot be written and read back"):
        fine_tune._train(load_config("local"), None, None, catalogue, SimpleNamespace(name="x", uri="x"))


@pytest.fixture(scope="module")
def results(base_folder, tmp_path_factory, bucket):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_runs", base_folder, tmp_path_factory.mktemp("runs"), *MOMENTS],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CHECKPOINTS": URI},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("moments", [moments for moments in MOMENTS if moments])
def test_killed_run_goes_on_from_the_store_alone_and_ends_with_the_same_bytes(results, moments):
    whole, resumed = results[""], results[moments]
    assert resumed["adapter"] == whole["adapter"]
    assert resumed["losses"] == whole["losses"]
    assert resumed["resumed_from_step"] == MOMENTS[moments]
    assert resumed["left"] == whole["left"]
