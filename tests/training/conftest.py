"""A tiny base model and rows for the tests of the training room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from planner.training.config import TrainConfig
from planner.training.text import TextRow, text_rows
from tests.tiny import tiny_base_folder, tiny_catalogue, tiny_examples


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower with more, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tokenizer(base_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def model(base_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def texts() -> tuple[TextRow, ...]:
    return text_rows(tiny_examples(24), tiny_catalogue())


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        model_base="tiny", epochs=2, lr=1e-2, batch_size=4, max_tokens=512, checkpoint_every=2, seed=3, lora_r=4
    )
