"""`python -m planner.training memory`: the memory that a training run would need, without a weight or a GPU at hand.

In: a base's shape (a known name, or a folder with a `config.json`) and the options that cost memory. Out: one line.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from planner.contracts.errors import PlannerError
from planner.training.config import TrainConfig
from planner.training.memory import GIB, plan_memory

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
}
# NF4: half a byte a weight, and 8 bits for each 64 of them with a float for each 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def main(arguments: list[str] | None = None) -> int:
    """Print the plan; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m planner.training")
    memory = parser.add_subparsers(dest="command", required=True).add_parser("memory", help="what a run would need")
    memory.add_argument("--base", default="llama-3-8b", help=f"{', '.join(SHAPES)}, or a folder with a config.json")
    memory.add_argument("--memory-gib", type=float, default=24.0)
    memory.add_argument("--lora-r", type=int, default=16)
    memory.add_argument("--max-tokens", type=int, default=1024)
    memory.add_argument("--micro-batch-tokens", type=int)
    memory.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction)
    memory.add_argument("--quantize-base", action="store_true")
    options = parser.parse_args(arguments)
    config = TrainConfig.model_validate(
        {name: getattr(options, name) for name in ("lora_r", "micro_batch_tokens", "gradient_checkpointing")}
    )
    base = base_shape(options.base)
    try:
        plan = plan_memory(
            base,
            config,
            dtype=torch.bfloat16,
            weights=weights_of(base, quantized=options.quantize_base),
            budget=int(options.memory_gib * GIB),
            device="cuda",
            longest=options.max_tokens,
        )
    except PlannerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(plan)
    return 0


def base_shape(name: str) -> PretrainedConfig:
    """The configuration of a known shape, or of a local folder."""
    if name in SHAPES:
        return AutoConfig.for_model(**SHAPES[name])
    return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)


def weights_of(base: PretrainedConfig, *, quantized: bool) -> int:
    """Bytes of the weights in bf16; quantized: linear layers but the head in 4 bits."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base, dtype=torch.bfloat16)
    packed = set()
    if quantized:
        head = model.get_output_embeddings()
        packed = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return int(sum(w.numel() * (_NF4_BYTES if id(w) in packed else 2) for w in model.parameters()))


if __name__ == "__main__":
    sys.exit(main())
