"""QLoRA: the frozen base in 4 bits (NF4), the adapter in fp32 as ever.

In: the folder of a base. Out: the model on the GPU. bitsandbytes is an optional extra, for GPUs alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from planner.contracts.errors import TrainingError


def load_quantized(folder: Path) -> PreTrainedModel:
    """Load a base with its linear layers, the head apart, in 4 bits; it computes in bf16.

    Raises:
        TrainingError: there is no NVIDIA GPU, or bitsandbytes is not installed.
    Source: Dettmers et al. 2023, QLoRA: NF4 with quantised constants.
    """
    if not torch.cuda.is_available():
        raise TrainingError(
            "train.quantize_base needs an NVIDIA GPU, and there is none. Set it to false, or run where there is one."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            "train.quantize_base needs bitsandbytes, which is not installed. Run `pip install '.[qlora]'`, "
            "or set it to false."
        )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=four_bits,
        dtype=torch.bfloat16,
        device_map={"": torch.cuda.current_device()},
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.eval()
