"""One NVIDIA GPU and a model of Llama-3-8B's real shape with random weights on it, for the tests marked `gpu`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from planner.training.__main__ import base_shape

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@contextmanager
def gpu() -> Iterator[torch.device]:
    """The current GPU; afterwards its memory is free again, and no budget holds."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        yield device
    finally:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def random_llama_3_8b(device: torch.device) -> PreTrainedModel:
    """8.03 billion weights in bf16, in evaluation mode."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(base_shape("llama-3-8b"), dtype=torch.bfloat16).eval()
