"""Grammar libraries as logits processors of Hugging Face's `generate`, where they are installed.

In: a tokenizer, a catalogue, requests with the plans that our decoder gave. Out: per library a function that compiles
the requests' grammars and returns the processors. The grammar is easier than our task: the days of our plan, and for
each a title of the allowed ones; neither budget, repeats nor servings can be written in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from planner.contracts.catalogue import Catalogue, text_title
from planner.contracts.prompt import LABEL_OF_DAY
from planner.contracts.request import Request
from planner.decoding.constraints import allowed_recipes
from planner.decoding.result import PlanResult


def grammar_peers(
    tokenizer: Any, vocab_size: int, catalogue: Catalogue, requests: Sequence[Request], results: Sequence[PlanResult]
) -> dict[str, Callable[[], list[LogitsProcessor]]]:
    """The libraries that can be imported; prints once which cannot."""
    tasks = []
    for request, result in zip(requests, results, strict=True):
        mask = allowed_recipes(request, catalogue).mask
        titles = [f" {text_title(r.title)}\n" for r, ok in zip(catalogue.recipes, mask, strict=True) if ok]
        tasks.append(([f"{LABEL_OF_DAY[meal.day]}:" for meal in result.plan.meals], titles))
    peers: dict[str, Callable[[], list[LogitsProcessor]]] = {}
    if _has("xgrammar"):
        peers["HF + xgrammar"] = lambda: _xgrammar(tokenizer, vocab_size, tasks)
    if _has("llguidance"):
        peers["HF + llguidance"] = lambda: _llguidance(tokenizer, vocab_size, tasks)
    return peers


@cache
def _has(name: str) -> bool:
    try:
        __import__(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return False
    return True


_KEPT: dict[str, Any] = {}  # what each library makes of the tokenizer, once


def _xgrammar(tokenizer: Any, vocab_size: int, tasks: Sequence[tuple[list[str], list[str]]]) -> list[LogitsProcessor]:
    import xgrammar
    from xgrammar.contrib.hf import LogitsProcessor as Processor

    if "xgrammar" not in _KEPT:
        _KEPT["xgrammar"] = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=[tokenizer.eos_token_id]
        )
    compiler = xgrammar.GrammarCompiler(_KEPT["xgrammar"], cache_enabled=False, max_threads=1)
    compiled = []
    for labels, titles in tasks:
        root = " ".join(f"{json.dumps(label)} title" for label in labels)
        alternatives = " | ".join(json.dumps(title, ensure_ascii=False) for title in titles)
        grammar = xgrammar.Grammar.from_ebnf(f"root ::= {root}\ntitle ::= {alternatives}")
        compiled.append(compiler.compile_grammar(grammar))
    return [Processor(compiled)]


def _llguidance(tokenizer: Any, vocab_size: int, tasks: Sequence[tuple[list[str], list[str]]]) -> list[LogitsProcessor]:
    import llguidance
    import llguidance.hf

    if "llguidance" not in _KEPT:
        _KEPT["llguidance"] = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)
    matchers = []
    for labels, titles in tasks:
        start = " ".join(f"{json.dumps(label)} TITLE" for label in labels)
        alternatives = " | ".join(json.dumps(title, ensure_ascii=False) for title in titles)
        grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {start}\nTITLE: {alternatives}")
        matchers.append(llguidance.LLMatcher(_KEPT["llguidance"], grammar))
        if matchers[-1].is_error():
            raise RuntimeError(f"llguidance: {matchers[-1].get_error()}")
    return [_Guidance(matchers, tokenizer.eos_token_id)]


class _Guidance(LogitsProcessor):
    """A matcher a row; the mask is unpacked by numpy, since the library's own kernel is compiled at first use."""

    def __init__(self, matchers: list[Any], end: int) -> None:
        self._matchers, self._end, self._started = matchers, end, False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, matcher in enumerate(self._matchers):
            if self._started and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if matcher.is_stopped():  # the grammar ends without the end token
                end = float(scores[row, self._end])
                scores[row] = float("-inf")
                scores[row, self._end] = end
            else:
                bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
                scores[row].masked_fill_(torch.from_numpy(bits[: scores.shape[1]] == 0), float("-inf"))
        self._started = True
        return scores
