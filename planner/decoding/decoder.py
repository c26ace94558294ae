"""Plans from a language model that cannot break a constraint: jump-forward decoding over the catalogue trie.

In: a model and tokenizer, a catalogue, typed requests. Out: a `PlanResult` for each, greedily and deterministically.

Tokens with no alternative are appended and fed together with the next choice; behind them come guesses of what the
model will choose (`guess.py`). Each guess is compared with the best legal token by the model's own scores at its place:
where it is another one, the row's cache is cut back and goes on with the right token. So a call may decide a whole
line, and the plan is the one that a call a decision gives. Rows are packed without padding, and a finished row's place
goes to the next request at once. The tokens are always those that the tokenizer gives for the plan's text, so a plan
reads to the model as it did in training.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

import torch

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ContractError
from planner.contracts.plan import EMPTY_PLAN
from planner.contracts.prompt import default_servings, encode_prompt, render_prompt
from planner.contracts.request import Household, Request
from planner.decoding.beam import Beam, Row
from planner.decoding.constraints import Allowed
from planner.decoding.guess import BETWEEN_DISHES, PRIORS, Guesser, Leaves, Piece
from planner.decoding.legal import LegalTokens
from planner.decoding.likely import AT_ROOT, BEHIND, Node
from planner.decoding.packed import PackedModel, RowCache
from planner.decoding.result import PlanResult
from planner.decoding.sampling import Sampler, Sampling
from planner.decoding.search import DishSearch
from planner.decoding.trie import Pieces

Decide = Literal["token", "dish"]

# How many more tokens in a call cost as much as another call: on a CPU (measured: 78 ms a call, 3.6 ms a row in it and
# 2.3 to 4.2 ms a token), and on a GPU (a guess on the safe side: 8 billion weights on an H100 took 33 to 37 ms for 1 to
# 512 tokens alike; a smaller GPU has a dearer token). Only the number of calls depends on it, never a plan.
CALL_TOKENS = {"cpu": 25.0, "cuda": 400.0}
ROW_SHARE = 0.05  # of a call's cost that each row in it adds by itself
ROOM_FOR_PLAN = 112  # tokens that a row's cache has room for behind the prompt; it grows where that is too few

# Only where `Soup x2` is a title beside `Soup`, and nothing but two servings of `Soup` would fit.
UNWRITABLE = "no_recipe_allowed: what fits the budget reads like the title of another recipe"


class Decoder:
    """Decodes plans for one catalogue; safe to call from several threads, one at a time gets the model.

    Args:
        model: a Hugging Face causal language model in evaluation mode, merged or with an adapter.
        tokenizer: its tokenizer.
        catalogue: the dishes that may be proposed.
        max_rows: rows decoded at a time, one a request or `beam` of them. More share a call's cost; each has a cache.
        repeats: whether a dish may stand twice in a plan.
        max_prep_time_by_day: minutes by weekday that a dish may take there, beside the request's own limit.
        decide: `token` takes the likeliest token at each place; `dish` the likeliest dish as a whole, and ends a plan
            at the middle of the lengths that the model holds possible.
        beam: beginnings of a plan that are followed at a time with `dish`, see `beam.py`; 1 follows the likeliest.
        guess: feed guesses with what is decided; the same plans in fewer calls.
        call_tokens: how many more tokens in a call cost as much as another call; None for `CALL_TOKENS`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        catalogue: Catalogue,
        *,
        max_rows: int = 16,
        repeats: bool = False,
        max_prep_time_by_day: Mapping[str, int | None] | None = None,
        decide: Decide = "token",
        beam: int = 1,
        guess: bool = True,
        call_tokens: float | None = None,
    ) -> None:
        assert beam == 1 or decide == "dish", "a beam is one over dishes"
        self.catalogue = catalogue
        self.legal = LegalTokens(catalogue, tokenizer, repeats=repeats, max_prep_time_by_day=max_prep_time_by_day)
        self.trie, self.constraints = self.legal.trie, self.legal.constraints
        self.packed = PackedModel(model)
        self._tokenizer, self._guess = tokenizer, guess
        self._tokens, self._beam, self._num_at_once = decide == "token", beam, max(1, max_rows // beam)
        # A search is spared nothing by a dish's first words; one row of several waits in front of each dish.
        dishes = PRIORS.keys() - (set() if self._tokens else {"alike"})
        self._guessed = dishes if beam == 1 else BETWEEN_DISHES
        kind = self.packed.device.type
        self._call_tokens = CALL_TOKENS.get(kind, CALL_TOKENS["cpu"]) if call_tokens is None else call_tokens
        self._leaves = Leaves.of(self.trie, len(catalogue.recipes))
        self._row_of = {recipe.id: row for row, recipe in enumerate(catalogue.recipes)}
        self._lock = threading.Lock()
        self._prefix = self._shared_prefix()
        self._prefix_cache: RowCache | None = None

    def plan(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[PlanResult]:
        """Plan each request; one that no plan can satisfy gets an empty plan and the reason, without a model call.

        Args:
            requests: any number of them.
            sampling: draws plans by the model's probabilities; None is greedy.

        Raises:
            ContractError: a request's text is longer than the model's context.
        """
        results: dict[int, PlanResult] = {}
        beams: list[Beam] = []
        for index, request in enumerate(requests):
            allowed = self.constraints.allowed(request)
            reason = self.constraints.infeasible_reason(allowed)
            beam = None if reason is not None else self._new_beam(index, request, allowed, sampling)
            if beam is not None and (beam.is_open or beam.rows[0].moves.plan.meals):
                beams.append(beam)
            else:
                results[index] = PlanResult(EMPTY_PLAN, False, reason or UNWRITABLE)
        # The longest first: the last to finish should be short ones.
        beams.sort(key=lambda beam: (-len(beam.prompt), beam.index))
        with self._lock:
            self._decode(beams)
        for beam in beams:
            best = beam.rows[0].moves
            results[beam.index] = PlanResult(
                best.plan, True, None, len(best.tokens), beam.num_calls, beam.num_decisions, beam.num_rejected
            )
        return [results[index] for index in range(len(requests))]

    def _new_beam(self, index: int, request: Request, allowed: Allowed, sampling: Sampling | None) -> Beam:
        prompt = self._encode(request)
        most = self.packed.max_positions - ROOM_FOR_PLAN
        if len(prompt) > most:
            raise ContractError(
                f"Invalid request: its text has {len(prompt)} tokens, and the model takes {most} beside a plan. "
                "Shorten pantry, preferences and exclusions."
            )
        moves = self.legal.moves(request, allowed)
        row = Row(moves, moves.run_forced())
        usual, previous = default_servings(request), request.previous_plan
        guesser = Guesser(self.trie, self._leaves, self._row_of, previous, usual) if self._guess else None
        return Beam(index, prompt, [row], guesser, Sampler(sampling, request) if sampling else None)

    def _decode(self, beams: Sequence[Beam]) -> None:
        waiting = deque(beam for beam in beams if beam.is_open)
        active: list[Beam] = []
        while waiting or active:
            while waiting and len(active) < self._num_at_once:
                active.append(self._started(waiting.popleft()))
            self._call([(beam, row) for beam in active for row in beam.rows if row.is_open])
            for beam in active:
                beam.num_calls += 1
                while not beam.is_open and any(row.search for row in beam.rows):
                    beam.narrow(self._beam, self._new_cache)
                    for row in beam.rows:
                        self._decide(beam, row)
                if not beam.is_open:
                    self._settle(beam, beam.rows[0])
                    del beam.rows[1:]
                    beam.rows[0].cache = None
                    self._leaves.count(self._row_of[meal.recipe_id] for meal in beam.rows[0].moves.plan.meals)
            active = [beam for beam in active if beam.is_open]

    def _call(self, active: Sequence[tuple[Beam, Row]]) -> None:
        """One model call: what is certain with guesses behind it, or the beginnings that a search asks about."""
        call_tokens = self._call_tokens * (1 / len(active) + ROW_SHARE)
        drafts, fed = [], []
        for beam, row in active:
            certain = self._settle(beam, row)
            draft = self._draft(beam, row, call_tokens) if certain else []
            drafts.append(draft)
            paths = self._paths(beam, row, draft, call_tokens)
            fed.append((row.held_cache(), [*certain, *row.ahead.grow(paths)]))
            row.num_fed += len(certain)
        trees = [row.ahead.parents for _, row in active]
        for (beam, row), draft, states in zip(active, drafts, self.packed.forward(fed, trees), strict=True):
            row.ahead.fill(states)
            start = len(row.moves.tokens)
            self._decide(beam, row)
            if beam.guesser and draft:
                guessed = [token for piece in draft for token in piece.tokens]
                beam.guesser.learn(draft, _common_length(guessed, row.moves.tokens[start:]))

    def _settle(self, beam: Beam, row: Row) -> Pieces:
        """Cut a row's cache back to what is written, and what may follow; the written tokens that it lacks."""
        written = beam.unfed(row)
        num_ahead = len(row.ahead.parents)
        if not written and row.search:
            return ()
        num_right, places = row.ahead.settle(written)
        beam.num_rejected += num_ahead - len(places)
        row.held_cache().keep(row.num_fed, [row.num_fed + place for place in places])
        row.num_fed += num_right
        return written[num_right:]

    def _draft(self, beam: Beam, row: Row, call_tokens: float) -> list[Piece]:
        draft = beam.guesser.draft(row.moves, call_tokens) if beam.guesser else []
        return list(takewhile(lambda piece: piece.kind in self._guessed, draft))

    def _paths(self, beam: Beam, row: Row, draft: Sequence[Piece], call_tokens: float) -> list[Pieces]:
        """What may follow behind what is certain, as tokens: what a search asks about, or a draft, and guesses."""
        num_guesses = int(call_tokens) if beam.guesser else 0
        if row.search:
            return row.search.branches + row.search.likely(min(BEHIND, num_guesses))
        front = tuple(token for piece in draft for token in piece.tokens)
        paths = [front]
        at_title = draft[-1].kind == "day" if draft else row.moves.leaves_open() and row.moves.place().depth == 0
        if at_title and not self._by_token(beam):
            root = Node(0, self.trie.num_leaves, 0, (), 0.0)
            likely = beam.opinions.likely(row.moves, [root], min(AT_ROOT, num_guesses))
            paths += [front + beginning for beginning in likely]
        return paths

    def _decide(self, beam: Beam, row: Row) -> None:
        """Decide as far as the model's states behind what is written are known."""
        while len(row.legal):
            here = beam.unfed(row)
            state = row.ahead.states.get(here)
            if state is None:
                return
            if not self._by_token(beam) and row.moves.leaves_open():
                row.search = row.search or DishSearch(row.moves, self.packed, beam.opinions, count=self._beam)
                row.search.go_on(row.ahead.behind(here))
                if not row.search.is_done or self._beam > 1:
                    return
                beam.narrow(1, self._new_cache)
            else:
                row.moves.take(self._next_token(beam, row, state))
                row.legal = row.moves.run_forced()
                beam.num_decisions += 1

    def _next_token(self, beam: Beam, row: Row, state: torch.Tensor) -> int:
        legal = row.legal
        scores = self.packed.scores(state, torch.from_numpy(legal).to(self.packed.device))
        if beam.sampler:
            return int(legal[beam.sampler.choose(scores.double().cpu().numpy(), beam.num_decisions)])
        if not self._tokens and self.trie.end in legal:
            # Going on is likelier than ending for most lengths, one by one: taken each by itself, every plan is long.
            others = torch.from_numpy(legal != self.trie.end).to(scores.device)
            row.going_on *= float(torch.softmax(scores.double(), 0)[others].sum())
            if row.going_on < 0.5:
                return self.trie.end
            legal, scores = legal[legal != self.trie.end], scores[others]
        return int(legal[int(scores.argmax())])

    def _by_token(self, beam: Beam) -> bool:
        """Whether titles are decided token by token: drawn ones always, since that draws dishes by their chances."""
        return self._tokens or beam.sampler is not None

    def _started(self, beam: Beam) -> Beam:
        (row,) = beam.rows
        row.cache = self._new_cache(len(beam.prompt))
        shared = _common_length(beam.prompt[:-1], self._prefix)
        if shared:
            if self._prefix_cache is None:
                self._prefix_cache = self.packed.new_row(len(self._prefix))
                self.packed.forward([(self._prefix_cache, self._prefix)])
            row.cache.copy_prefix(self._prefix_cache, shared)
            row.num_fed = shared
        return beam

    def _new_cache(self, prompt_length: int) -> RowCache:
        return self.packed.new_row(prompt_length + ROOM_FOR_PLAN)

    def _encode(self, request: Request) -> list[int]:
        return encode_prompt(self._tokenizer, render_prompt(request, self.catalogue))

    def _shared_prefix(self) -> list[int]:
        """The tokens that every prompt begins with, found by comparing two prompts that differ at once."""
        one, two = (self._encode(Request(Household("", size))) for size in (1, 2))
        return one[: _common_length(one, two)]


def _common_length(one: Sequence[int], two: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return index
    return min(len(one), len(two))
