"""The LoRA adapter: put onto a frozen base, read out, written in PEFT's format, and taken off again.

In: a transformers model. Out: a PEFT model whose adapter weights are fp32 and whose base weights never change.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from planner.contracts.errors import TrainingError
from planner.training.config import TrainConfig
from planner.training.disk import written_to

_ADAPTER = "adapter/"
_LOGIT_OPTIONS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


@contextmanager
def adapted(model: PreTrainedModel, config: TrainConfig) -> Iterator[PeftModel]:
    """Put a fresh adapter onto the model for the block; it equals the base until its first step.

    The first weights are a function of `config.seed`. Afterwards the adapter is off again; the base's weights are as
    they were, and stay frozen.

    Raises:
        TrainingError: the base lacks one of the target modules (names it and what there is), or does more to its
            logits than one matrix.
    """
    _check_modules(model, config.target_modules)
    _check_head(model)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by an old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        peft_model = get_peft_model(model, lora, autocast_adapter_dtype=True)
    try:
        yield peft_model
    finally:
        peft_model.unload()
        # A base that has carried an adapter once would warn when it gets the next one.
        if hasattr(model, "peft_config"):
            del model.peft_config


def trainable(peft_model: PeftModel) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: weight for name, weight in sorted(peft_model.named_parameters()) if weight.requires_grad}


def read_adapter(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's weights by PEFT's names, on the CPU, as copies."""
    weights = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()}


def adapter_tensors(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names that they have in a checkpoint."""
    return {_ADAPTER + name: weight for name, weight in read_adapter(peft_model).items()}


def adapter_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's weights among a checkpoint's tensors, by PEFT's names."""
    return {name.removeprefix(_ADAPTER): tensor for name, tensor in tensors.items() if name.startswith(_ADAPTER)}


def load_adapter(peft_model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights that `read_adapter` gave back in."""
    unexpected = set_peft_model_state_dict(peft_model, dict(weights)).unexpected_keys
    assert not unexpected, unexpected


def write_adapter(folder: Path, weights: Mapping[str, torch.Tensor], peft_model: PeftModel, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; equal weights give equal bytes.

    The config names the base by `base_name`, never by a path of this machine.

    Raises:
        TrainingError: the disk is full or the folder cannot be written.
    """
    values = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in peft_model.peft_config["default"].to_dict().items()
    }
    values |= {"base_model_name_or_path": base_name, "inference_mode": True}
    text = json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"
    temporary = folder / "adapter_model.safetensors.part"
    with written_to(folder, "The adapter"):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(weights), temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _check_modules(model: PreTrainedModel, wanted: tuple[str, ...]) -> None:
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [name for name in wanted if name not in linear]
    if missing:
        raise TrainingError(
            f"The base model ({model.config.model_type}) has no linear module {', '.join(missing)}; "
            f"it has {', '.join(sorted(linear)) or 'none'}. "
            "Set train.target_modules, or take another train.model_base.",
            missing=tuple(missing),
        )


def _check_head(model: PreTrainedModel) -> None:
    """The loss applies the head's matrix itself; a base that does more to its logits would be trained wrongly."""
    head = model.get_output_embeddings()
    scaled = [name for name in _LOGIT_OPTIONS if getattr(model.config, name, None) not in (None, 1)]
    if not isinstance(head, nn.Linear) or head.bias is not None or scaled:
        raise TrainingError(
            f"The base model ({model.config.model_type}) changes its logits behind the output matrix "
            f"({', '.join(scaled) or 'a bias or no plain linear head'}), which the loss does not know. "
            "Take another train.model_base, such as one of the llama family.",
            options=tuple(scaled),
        )
