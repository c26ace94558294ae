"""The fine-tuned planner: a base model with its adapter merged in, behind the constrained decoder.

In: a loaded base and an adapter folder in PEFT's format (safetensors). Out: a `LoraPlanner`. Unmerged adapters cost
1.2 to 1.4 times the time, so they are merged, and the merged logits are compared with the unmerged ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError
from planner.contracts.prompt import INSTRUCTION, TARGET_HEADER, encode_prompt
from planner.contracts.request import Request
from planner.decoding.base import LoadedBase, quiet_transformers
from planner.decoding.decoder import Decoder
from planner.decoding.result import PlanResult
from planner.decoding.sampling import Sampling

# Of the largest logit: fp32 differs by rounding alone; bf16 rounds the merged weights once more.
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class LoraPlanner:
    """A decoder as a planner."""

    kind = "lora"

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    @property
    def catalogue(self) -> Catalogue:
        """The dishes that may be proposed."""
        return self.decoder.catalogue

    def plan(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[PlanResult]:
        """Plan each request; see `Decoder.plan`."""
        return self.decoder.plan(requests, sampling=sampling)


def merge_adapter(base: LoadedBase, adapter: Path) -> Any:
    """Merge an adapter into the base's weights, in place, and check that the merged model says the same.

    Args:
        base: the loaded base; its weights change.
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The merged model, of the base's own class.

    Raises:
        ModelError: the adapter does not fit the base, or merging changed the logits.
    """
    check_adapter_folder(adapter)
    tokens = encode_prompt(base.tokenizer, INSTRUCTION + "Household: 2\n" + TARGET_HEADER)
    ids = torch.tensor([tokens], device=base.model.device)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            # peft 0.21 asks transformers 5 for a name that it is about to drop.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            unmerged = PeftModel.from_pretrained(base.model, adapter, is_trainable=False).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ModelError(
            f"The adapter does not fit base model {base.files.name!r} ({reason}). Train it again on this base."
        ) from error
    with torch.inference_mode():
        before = unmerged(input_ids=ids).logits[0, -1].float()
    merged = unmerged.merge_and_unload()
    with torch.inference_mode():
        after = merged(input_ids=ids).logits[0, -1].float()
    scale, difference = float(before.abs().max()), float((after - before).abs().max())
    # Written so that NaN fails as well.
    if not difference <= MERGE_TOLERANCE[merged.dtype] * max(scale, 1.0):
        raise ModelError(
            f"The merged model's logits are off by {difference:.3g} (largest logit {scale:.3g}): "
            "the adapter is broken. Train it again.",
            difference=difference,
        )
    return merged.eval()


def check_adapter_folder(adapter: Path) -> None:
    """Refuse an adapter that is not LoRA in safetensors.

    Raises:
        ModelError: a file is missing, or the adapter is of another kind.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise ModelError(f"The adapter folder {adapter} has no {name}. Save the adapter with safetensors.")
    try:
        kind = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind != "LORA":
        raise ModelError(f"The adapter in {adapter} is {kind or 'nothing known'}, not LORA.")
