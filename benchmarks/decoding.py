"""Constrained decoding of this project against Hugging Face's `generate`, alone and with grammar libraries.

In: a base model's name or folder, and optionally an adapter and a dataset version (then its catalogue and test
requests; else synthetic ones). Out: lines of CPU seconds a plan, model calls, tokens (the prompt's included), and the
share of the floor `calls x t_call + tokens x t_token` that is calibrated in the same run; and what preparing a request
costs by catalogue size. xgrammar and llguidance take part where they can be imported (`pip install --no-deps --target`
a folder of your own, and put that on PYTHONPATH); they are no dependencies of this project.

Run: `python -m benchmarks.decoding smollm2-135m --adapter FOLDER --dataset .planner/datasets/planner/2018-01-01`
(about 4 minutes; `--requests 8 --rounds 3` for figures to quote; `--only prepare` or `--only plans` for one half;
`--alone` without the peers, as for a large synthetic catalogue: `--recipes 100000`).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.menus import menu, requests_for
from benchmarks.peers import grammar_peers
from planner.contracts.catalogue import Catalogue
from planner.contracts.prompt import default_servings, encode_prompt, render_prompt
from planner.contracts.request import Request
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from planner.decoding.base import load_base, resolve_base
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.decoder import Decoder
from planner.decoding.guess import Guesser, Leaves
from planner.decoding.lora import merge_adapter
from planner.decoding.moves import PlanMoves
from planner.decoding.result import PlanResult
from planner.decoding.trie import build_trie


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--dataset", help="folder or URI of a dataset version")
    parser.add_argument("--recipes", type=int, default=500, help="of the synthetic catalogue")
    parser.add_argument("--requests", type=int, default=3, help="decoded one at a time")
    parser.add_argument("--batches", type=int, nargs="*", default=[8], help="further numbers of rows at a time")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", type=int, nargs="*", default=[500, 5000, 100_000], help="catalogue sizes")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--only", choices=("plans", "prepare"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(resolve_base(options.base), device="cpu")
    if options.only != "plans":
        for size in options.prepare:
            _prepare(base.tokenizer, size)
    if options.only != "prepare":
        model = merge_adapter(base, options.adapter) if options.adapter else base.model
        most = max([options.requests, *options.batches])
        catalogue, requests = _workload(options, most)
        print(f"{len(catalogue.recipes)} recipes; adapter {'merged' if options.adapter else 'none'}")
        for rows, few in ((1, requests[: options.requests]), *((rows, requests[:rows]) for rows in options.batches)):
            _compare(model, base.tokenizer, catalogue, few, rows=rows, rounds=options.rounds, alone=options.alone)


def _workload(options: argparse.Namespace, most: int) -> tuple[Catalogue, list[Request]]:
    if not options.dataset:
        catalogue = menu(options.recipes)
        return catalogue, requests_for(catalogue, most)
    version = open_version(options.dataset)
    catalogue = read_catalogue(version)
    index = ConstraintIndex(catalogue)
    found = [example.request for example in iter_examples(version, split="test")]
    random.Random(0).shuffle(found)  # neighbours may be of one household
    return catalogue, list(islice((r for r in found if index.infeasible_reason(index.allowed(r)) is None), most))


@dataclass
class Tally:
    """What one engine used so far."""

    seconds: float = 0.0
    plans: int = 0
    calls: int = 0
    tokens: int = 0


def _compare(model, tokenizer, catalogue, requests, *, rows: int, rounds: int, alone: bool) -> None:
    groups = [requests[start : start + rows] for start in range(0, len(requests), rows)]
    plain = Decoder(model, tokenizer, catalogue, max_rows=rows, guess=False)
    known = [plain.plan(group) for group in groups]  # warm, and the plans for the peers
    meals = sum(len(result.plan.meals) for group in known for result in group)
    tallies: dict[str, Tally] = {}
    guessed: list[PlanResult] = []
    costs = []
    for _ in range(rounds):
        # A fresh one each round: it guesses what it planned before, and must not have seen these requests.
        ours = {"ours": Decoder(model, tokenizer, catalogue, max_rows=rows), "ours without guesses": plain}
        for group, results in zip(groups, known, strict=True):
            costs.append(_calibrate(plain, rows))
            for name, decoder in ours.items():
                answers = _ours(tallies.setdefault(name, Tally()), decoder, group)
                assert [a.plan for a in answers] == [r.plan for r in results], "guesses changed a plan"
                guessed += answers if name == "ours" else []
            if alone:
                continue
            prompts = [encode_prompt(tokenizer, render_prompt(request, catalogue)) for request in group]
            count = max(result.num_tokens for result in results)  # of a batch, the longest
            free: dict[str, int] = {"HF generate, unconstrained": count}
            free["HF generate, as much as JSON"] = max(_num_json_tokens(tokenizer, catalogue, r) for r in results)
            for name, num_new in free.items():
                _generate(tallies.setdefault(name, Tally()), model, tokenizer, prompts, num_new, list)
            for name, processors in grammar_peers(
                tokenizer, model.config.vocab_size, catalogue, group, results
            ).items():
                _generate(tallies.setdefault(name, Tally()), model, tokenizer, prompts, 4 * count, processors)
    cost = np.median(np.array(costs), axis=0)
    print(f"\n{rows} rows at a time, {len(requests)} requests, {meals / len(requests):.1f} meals a plan, "
          f"{rounds} rounds; calibrated {cost[0] * 1e3:.0f} ms a call + {cost[1] * 1e3:.2f} ms a token")  # fmt: skip
    reference = tallies["ours without guesses" if alone else "HF generate, unconstrained"]
    for name, t in tallies.items():
        each = t.seconds / t.plans
        ratio = reference.seconds / reference.plans / each
        floor = f"floor {(t.calls * cost[0] + t.tokens * cost[1]) / t.seconds:.0%}" if name.startswith("ours") else ""
        print(f"{name:28} {each:6.2f} CPU s a plan  x{ratio:4.2f}  calls {t.calls / t.plans:5.1f}"
              f"  tokens {t.tokens / t.plans:5.0f}  {floor}")  # fmt: skip
    eaten = meals * rounds
    print(f"ours: calls a meal {sum(r.num_model_calls for r in guessed) / eaten:.2f}, decisions a meal "
          f"{sum(r.num_decisions for r in guessed) / eaten:.2f}, rejected tokens a plan "
          f"{sum(r.num_rejected for r in guessed) / len(guessed):.1f}")  # fmt: skip


def _ours(tally: Tally, decoder: Decoder, group: Sequence[Request]) -> list[PlanResult]:
    calls, tokens, started = decoder.packed.num_calls, decoder.packed.num_tokens, time.process_time()
    answers = decoder.plan(group)
    tally.seconds += time.process_time() - started
    tally.plans += len(group)
    tally.calls += decoder.packed.num_calls - calls
    tally.tokens += decoder.packed.num_tokens - tokens
    return answers


def _num_json_tokens(tokenizer, catalogue: Catalogue, result: PlanResult) -> int:
    """What the plan would take as JSON, with titles."""
    meals = [
        {"day": meal.day, "recipe": catalogue.by_id[meal.recipe_id].title, "servings": meal.servings}
        for meal in result.plan.meals
    ]
    return len(tokenizer.encode(json.dumps({"meals": meals}), add_special_tokens=False)) + 1


def _generate(tally: Tally, model, tokenizer, prompts, most: int, processors) -> None:
    """Exactly `most` new tokens without a grammar, until the grammar ends with one."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    started = time.process_time()
    constrained = processors()  # a grammar is of a request: compiling it is part of the cost
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.eos_token_id,
        logits_processor=constrained,
        min_new_tokens=None if constrained else most,
        max_new_tokens=most,
    )
    tally.seconds += time.process_time() - started
    new = output.shape[1] - longest
    tally.plans += len(prompts)
    tally.calls += new
    tally.tokens += new * len(prompts) + sum(map(len, prompts))


def _calibrate(decoder: Decoder, rows: int) -> tuple[float, float]:
    """Seconds a call of this many rows, and seconds a token in it, behind a typical prompt, by least squares."""
    packed, past = decoder.packed, 180
    prompt = [7 + i for i in range(past)]
    caches = []
    for _ in range(rows):
        caches.append(packed.new_row(past + 128))
        packed.forward([(caches[-1], prompt)])
    facts, times = [], []
    for new in (1, 4, 16):
        best = 1e9
        for _ in range(2):
            started = time.process_time()
            packed.forward([(cache, prompt[:new]) for cache in caches])
            best = min(best, time.process_time() - started)
            for cache in caches:
                cache.cut(past)
        facts.append((1.0, rows * new))
        times.append(best)
    weights = 1 / np.array(times)  # relative errors: a long pass must not drown the short ones
    call, token = np.linalg.lstsq(np.array(facts) * weights[:, None], np.ones(len(times)), rcond=None)[0]
    return float(call), float(token)


def _prepare(tokenizer, size: int) -> None:
    """CPU microseconds of everything that is done for a request beside the model, under random choices."""
    catalogue = menu(size)
    started = time.process_time()
    trie = build_trie(catalogue, tokenizer)
    index, leaves = ConstraintIndex(catalogue), Leaves.of(trie, len(catalogue.recipes))
    row_of = {recipe.id: row for row, recipe in enumerate(catalogue.recipes)}
    built = time.process_time() - started
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ("text", "filter", "walk", "decision", "guess")}

    def timed(name: str, work: Callable[[], object]) -> object:
        start = time.thread_time()
        value = work()
        times[name].append(time.thread_time() - start)
        return value

    for request in requests_for(catalogue, 60):
        timed("text", lambda r=request: encode_prompt(tokenizer, render_prompt(r, catalogue)))
        allowed = timed("filter", lambda r=request: (a := index.allowed(r), index.infeasible_reason(a)))[0]
        usual = default_servings(request)
        guesser = Guesser(trie, leaves, row_of, request.previous_plan, usual)

        def walk(allowed=allowed, usual=usual):
            moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, usual)
            return moves, moves.run_forced()

        moves, legal = timed("walk", walk)
        while len(legal):
            timed("guess", lambda moves=moves, guesser=guesser: guesser.draft(moves, 19.0))

            chosen = int(legal[rng.integers(len(legal))])

            def decide(moves=moves, token=chosen):
                moves.take(token)
                return moves.run_forced()

            legal = timed("decision", decide)
    show = "  ".join(
        f"{name} {np.median(t) * 1e6:.0f} (p95 {np.percentile(t, 95) * 1e6:.0f})" for name, t in times.items()
    )
    ready = sum(float(np.median(times[name])) for name in ("text", "filter", "walk"))
    print(f"{size:7} recipes: built in {built:.1f} CPU s; a request ready in {ready * 1e3:.2f} ms; µs: {show}")


if __name__ == "__main__":
    main()
