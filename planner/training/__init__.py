"""LoRA fine-tuning: rows of text in, an adapter with its learning curve out."""
