"""Entry point `train`: Fine-tune the base model with LoRA and register the result."""

from __future__ import annotations

from steps.command import run_step

OPTIONS = ("dataset", "model_base", "epochs", "lr", "batch_size", "lora_r", "lora_alpha", "max_examples", "seed")

if __name__ == "__main__":
    run_step("train", OPTIONS, description=__doc__)
