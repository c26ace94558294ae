"""Constrained decoding of this project against Hugging Face's `generate`, alone and with grammar libraries.

In: a base model's name or folder, and optionally an adapter and a dataset version (then its catalogue and test
requests; else synthetic ones). Out: lines of CPU seconds a plan, model calls, tokens (the prompt's included), shares of
two floors, and which bars are met; and what preparing a request costs by catalogue size.

The floors: `passes` runs each of the decoder's own passes again, right behind it and with nothing but the pass, and
fits `calls x t_call + tokens x t_token` to them, so the share is what the rest of the decoder leaves; `stock` is the
same formula from passes of the unchanged model over one row with its own cache. xgrammar and llguidance take part where
they can be imported (`pip install --no-deps` into an environment of your own); this project does not depend on them.

Run: `python -m benchmarks.decoding smollm2-135m --adapter FOLDER --dataset .planner/datasets/planner/2018-01-01`
(about 4 minutes; `--requests 8 --rounds 3` for figures to quote; `--decide dish` for whole dishes; `--only prepare` or
`--only plans` for one half; `--alone` without the peers, as for a large synthetic catalogue: `--recipes 100000`).
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
from planner.contracts.request import Household, Request
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
    parser.add_argument("--decide", choices=("token", "dish"), default="token")
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
            _compare(model, base.tokenizer, catalogue, few, rows=rows, options=options)


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
    """What one engine used so far; `alone` are the seconds of the same passes by themselves, by the fit."""

    seconds: float = 0.0
    plans: int = 0
    calls: int = 0
    tokens: int = 0
    alone: float = 0.0

    @property
    def each(self) -> float:
        return self.seconds / self.plans


HF, HF_JSON = "HF generate, unconstrained", "HF generate, as much as JSON"
# By rows at a time: plans a CPU second against HF that writes JSON, for a compact target as ours is.
BARS = {1: 6.5, 8: 4.0}
FLOOR_BAR = 0.95


def _compare(model, tokenizer, catalogue, requests, *, rows: int, options: argparse.Namespace) -> None:
    groups = [requests[start : start + rows] for start in range(0, len(requests), rows)]
    kind = {"max_rows": rows, "decide": options.decide}
    plain = Decoder(model, tokenizer, catalogue, **kind, guess=False)
    known = [plain.plan(group) for group in groups]  # warm, and the plans for the peers
    meals = sum(len(result.plan.meals) for group in known for result in group)
    tallies: dict[str, Tally] = {}
    guessed: list[PlanResult] = []
    stock = []
    for _ in range(options.rounds):
        # A fresh one each round: it guesses what it planned before, and must not have seen these requests.
        guessing = Decoder(model, tokenizer, catalogue, **kind)
        guessing.plan([Request(Household("", 2))])  # the tokens that all prompts share
        for group, results in zip(groups, known, strict=True):
            stock.append(_stock_passes(model))
            for name, decoder in {"ours": guessing, "ours without guesses": plain}.items():
                answers = _ours(tallies.setdefault(name, Tally()), decoder, group)
                assert [a.plan for a in answers] == [r.plan for r in results], "guesses changed a plan"
                guessed += answers if name == "ours" else []
            if options.alone:
                continue
            prompts = [encode_prompt(tokenizer, render_prompt(request, catalogue)) for request in group]
            count = max(result.num_tokens for result in results)  # of a batch, the longest
            free: dict[str, int] = {HF: count}
            free[HF_JSON] = max(_num_json_tokens(tokenizer, catalogue, r) for r in results)
            for name, num_new in free.items():
                _generate(tallies.setdefault(name, Tally()), model, tokenizer, prompts, num_new, list)
            for name, processors in grammar_peers(
                tokenizer, model.config.vocab_size, catalogue, group, results
            ).items():
                _generate(tallies.setdefault(name, Tally()), model, tokenizer, prompts, 4 * count, processors)
    call, token = np.median(np.array(stock), axis=0)
    print(f"\n{rows} rows at a time, decide {options.decide}, {len(requests)} requests, "
          f"{meals / len(requests):.1f} meals a plan, {options.rounds} rounds; "
          f"a stock pass takes {call * 1e3:.0f} ms + {token * 1e3:.2f} ms a token")  # fmt: skip
    reference = tallies["ours without guesses" if options.alone else HF_JSON]
    for name, t in tallies.items():
        floor = ""
        if name.startswith("ours"):
            floor = f"floors: passes {t.alone / t.seconds:.0%}"
            floor += f", stock {(t.calls * call + t.tokens * token) / t.seconds:.0%}"
        print(f"{name:28} {t.each:6.2f} CPU s a plan  x{reference.each / t.each:5.2f}  calls {t.calls / t.plans:5.1f}"
              f"  tokens {t.tokens / t.plans:5.0f}  {floor}")  # fmt: skip
    eaten = meals * options.rounds
    calls_a_meal = sum(r.num_model_calls for r in guessed) / eaten
    print(f"ours: calls a meal {calls_a_meal:.2f}, decisions a meal "
          f"{sum(r.num_decisions for r in guessed) / eaten:.2f}, rejected tokens a plan "
          f"{sum(r.num_rejected for r in guessed) / len(guessed):.1f}")  # fmt: skip
    _print_bars(tallies, rows, calls_a_meal, len(catalogue.recipes))


def _print_bars(tallies: dict[str, Tally], rows: int, calls_a_meal: float, num_recipes: int) -> None:
    ours = tallies["ours"]
    if HF in tallies:
        for name, bar in ((HF_JSON, BARS.get(rows)), (HF, None)):
            ratio = tallies[name].each / ours.each
            verdict = "no bar" if bar is None else f"bar {bar} x: {'met' if ratio >= bar else 'MISSED'}"
            print(f"  bars: {ratio:.2f} x {name} ({verdict})")
        for name in (name for name in tallies if name.startswith("HF +")):
            ratio = tallies[name].each / ours.each
            print(f"  bars: {ratio:.2f} x {name} (bar 1 x: {'met' if ratio > 1 else 'MISSED'})")
    share = ours.alone / ours.seconds
    print(f"  bars: {share:.0%} of the floor (bar {FLOOR_BAR:.0%}: {'met' if share >= FLOOR_BAR else 'MISSED'})")
    limit = 2.5 if num_recipes <= 500 else 3.5
    print(f"  bars: {calls_a_meal:.2f} calls a meal (bar {limit}: {'met' if calls_a_meal <= limit else 'MISSED'})")


def _ours(tally: Tally, decoder: Decoder, group: Sequence[Request]) -> list[PlanResult]:
    shapes: list[list[tuple[int, int, Sequence[int]]]] = []
    forward = decoder.packed.forward

    def watched(rows, trees=()):
        every = [list(parents) for parents in trees] or [[]] * len(rows)
        shapes.append([(cache.length, len(new), tree) for (cache, new), tree in zip(rows, every, strict=True)])
        return forward(rows, trees)

    decoder.packed.forward = watched
    started = time.process_time()
    answers = decoder.plan(group)
    tally.seconds += time.process_time() - started
    decoder.packed.forward = forward
    tally.plans += len(group)
    tally.calls += len(shapes)
    tally.tokens += sum(new for call in shapes for _, new, _ in call)
    tally.alone += _passes_alone(decoder, shapes)
    return answers


def _passes_alone(decoder: Decoder, shapes: Sequence[Sequence[tuple[int, int, Sequence[int]]]]) -> float:
    """CPU seconds of passes of these shapes and nothing else, by the fit `calls x t_call + tokens x t_token`."""
    packed, facts, times = decoder.packed, [], []
    for call in shapes:
        rows = []
        for past, new, _ in call:
            cache = packed.new_row(past + new)
            cache.keys.zero_()
            cache.values.zero_()
            cache.length = past
            rows.append((cache, [7 + i for i in range(new)]))
        started = time.process_time()
        packed.forward(rows, [tree for _, _, tree in call])
        times.append(time.process_time() - started)
        facts.append((1.0, sum(new for _, new, _ in call)))
    fitted = np.array(facts) @ np.linalg.lstsq(np.array(facts), np.array(times), rcond=None)[0]
    return float(fitted.sum())


def _stock_passes(model) -> tuple[float, float]:
    """Seconds a call and a token of the model as it is, one row behind 180 tokens, by least squares."""
    facts, times = [], []
    with torch.inference_mode():
        cache = model(input_ids=torch.arange(7, 187)[None], use_cache=True, logits_to_keep=1).past_key_values
        for new in (1, 4, 16, 64, 1, 4, 16, 64):
            started = time.process_time()
            model(input_ids=torch.arange(7, 7 + new)[None], past_key_values=cache, logits_to_keep=1)
            times.append(time.process_time() - started)
            facts.append((1.0, new))
            cache.crop(-new)
    weights = 1 / np.array(times)  # relative errors: a long pass must not drown the short ones
    call, token = np.linalg.lstsq(np.array(facts) * weights[:, None], np.ones(len(times)), rcond=None)[0]
    return float(call), float(token)


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
    decision, slow = (float(np.percentile(times["decision"], share)) * 1e6 for share in (50, 95))
    met = ["met" if value <= bar else "MISSED" for value, bar in ((ready * 1e3, 2.0), (slow, 100.0))]
    print(f"  bars: {ready * 1e3:.2f} ms a request (bar 2 ms: {met[0]}), {decision:.0f} µs a decision, "
          f"p95 {slow:.0f} (bar 100 µs: {met[1]})")  # fmt: skip


if __name__ == "__main__":
    main()
