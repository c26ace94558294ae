"""Llama 3's own tokenizer, out of the package in which Meta ships it; no weights, no gate, no tiktoken.

In: a folder to download into. Out: a Hugging Face fast tokenizer, converted as transformers converts Llama 3's.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from planner.decoding.files import sha256_of_file

PACKAGE = "llama-models==0.3.0"
WHEEL_SHA256 = "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


def llama3_tokenizer(folder: Path) -> Any:
    """Fetch the wheel (7 MB), check its hash, and convert `tokenizer.model`."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(path: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(path).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    wheel = next(folder.glob("*.whl"))
    assert sha256_of_file(wheel) == WHEEL_SHA256
    with zipfile.ZipFile(wheel) as archive:
        model = archive.extract("llama_models/llama3/tokenizer.model", folder)
    inner = Converter(vocab_file=model, extra_special_tokens=[BEGIN, END]).converted()
    inner.post_processor = _begins(inner)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BEGIN, eos_token=END)


def _begins(inner: Any) -> Any:
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    template = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, inner.token_to_id(BEGIN))])
    return Sequence([ByteLevel(trim_offsets=False), template])
