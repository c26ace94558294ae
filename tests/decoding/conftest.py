"""The tiny base model and catalogue that the decoding tests share, built once a session."""

from __future__ import annotations

import pytest
import torch

from planner.decoding.base import load_base, resolve_base
from tests.tiny import tiny_base_folder, tiny_catalogue


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_base_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base_files(base_folder):
    return resolve_base(str(base_folder))


@pytest.fixture(scope="session")
def base(base_files):
    return load_base(base_files, device="cpu")


@pytest.fixture(scope="session")
def catalogue():
    return tiny_catalogue(60)


@pytest.fixture(scope="session")
def bracket_tokenizer():
    """Like Llama 3's, it makes one token of `)` and a newline."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [f"{day}: Chili (hot)\nTue: Soup (hot)\n" for day in ("Mon", "Wed", "Sun")] * 50
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
