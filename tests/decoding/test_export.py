"""What another engine gets: the model that was registered, handles that are the decoder's own, legal tokens."""

from __future__ import annotations

import json
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from planner.contracts.errors import ModelError
from planner.contracts.prompt import encode_prompt, encode_target, render_plan, render_prompt
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.base import load_base
from planner.decoding.export import export_package
from planner.decoding.files import verify_package
from planner.decoding.legal import LegalTokens
from planner.decoding.package import DecodingOptions, Lineage, LoraParts, load_package, write_package
from planner.decoding.popular import fit_popular
from planner.evaluation.verify import violations
from tests.tiny import tiny_examples, tiny_requests

LINEAGE = Lineage("2025-01-03", "d" * 32, ("train",))
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21


@pytest.fixture(scope="module")
def package(base, base_files, catalogue, tmp_path_factory):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("export")
    get_peft_model(load_base(base_files, device="cpu").model, config).save_pretrained(folder / "adapter")
    parts = LoraParts(base_files, base.tokenizer, folder / "adapter")
    options = DecodingOptions(max_prep_time_by_day={"monday": 0, "tuesday": 20})
    write_package(folder / "package", parts, catalogue, LINEAGE, options=options)
    return folder / "package"


@pytest.fixture(scope="module")
def exported(package):
    folder = package.parent / "exported"
    assert export_package(package, folder).num_recipes == 60
    return folder


def test_files_are_complete_and_hashed(exported):
    verify_package(exported)
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"merged/model.safetensors", "merged/config.json", "merged/tokenizer.json"} <= names
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "catalogue.json"} <= names
    assert {"handles.json", "manifest.json"} <= names


def test_merged_weights_alone_decode_the_plans_of_the_registered_model(package, exported, catalogue):
    """A stock engine, token by token, with the legal tokens of the export."""
    model = AutoModelForCausalLM.from_pretrained(exported / "merged", dtype=torch.float32).eval()
    tokenizer, legal = AutoTokenizer.from_pretrained(exported / "merged"), LegalTokens.of_export(exported)
    requests = tiny_requests(6, 5, catalogue=catalogue)
    expected = load_package(package, device="cpu").plan(requests)
    for request, result in zip(requests, expected, strict=True):
        prompt = encode_prompt(tokenizer, render_prompt(request, legal.catalogue))
        written: list[int] = []
        while allowed := legal.after(written, request):
            if len(allowed) > 1:
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([prompt + written])).logits[0, -1]
                allowed.sort(key=lambda token: -float(logits[token]))
            written.append(allowed[0])
        assert written == encode_target(tokenizer, render_plan(result.plan, request, catalogue))


def test_handles_name_the_tokens_of_every_dish_as_its_line_has_them(exported, base, catalogue):
    handles = json.loads((exported / "handles.json").read_text())
    assert [dish["id"] for dish in handles["recipes"]] == [recipe.id for recipe in catalogue.recipes]
    assert handles["end"] == base.tokenizer.eos_token_id
    for dish in handles["recipes"]:
        line = handles["labels"]["friday"] + dish["tokens"]
        assert line == base.tokenizer.encode(f"Fri: {dish['title']}\n", add_special_tokens=False)
        counted = handles["labels"]["friday"] + dish["counted"]
        assert base.tokenizer.decode(counted) == f"Fri: {dish['title']} x"
    description = json.loads((exported.parent / "package" / "planner.json").read_text())
    assert handles["tokenizer_sha256"] == description["tokenizer_sha256"]
    assert handles["base"]["sha256"] == description["base"]["sha256"]


def test_any_choice_among_the_legal_tokens_breaks_nothing(exported, catalogue):
    legal, rng = LegalTokens.of_export(exported), random.Random(5)
    for request in tiny_requests(12, 6, catalogue=catalogue):
        assert legal.infeasible_reason(request) is None
        moves = legal.moves(request)
        while allowed := legal.after(moves.tokens, request):
            assert allowed == moves.legal_tokens().tolist()
            moves.take(rng.choice(allowed))
        assert moves.plan.meals and not violations(moves.plan, request, catalogue)
        assert moves.plan.meals[0].day != "monday"  # which the version leaves free
    assert legal.infeasible_reason(Request(Household("h"), constraints=Constraints(budget=0.0)))


def test_planner_without_weights_damaged_model_and_folder_in_use_are_refused(package, exported, catalogue, tmp_path):
    write_package(
        tmp_path / "popular", fit_popular(tiny_examples(9, catalogue=catalogue), catalogue), catalogue, LINEAGE
    )
    with pytest.raises(ModelError, match="has no weights to export"):
        export_package(tmp_path / "popular", tmp_path / "out")
    with pytest.raises(ModelError, match="is not empty"):
        export_package(package, exported)
    (tmp_path / "popular" / "popular.json").write_text("{}")
    with pytest.raises(ModelError, match=r"popular\.json .* changed"):
        export_package(tmp_path / "popular", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["popular"]
