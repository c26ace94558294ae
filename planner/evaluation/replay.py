"""Offline replay: candidate and baseline plan the same held-out requests again, are scored and verified.

In: two planners, a stream of examples of one split, and the dataset's catalogue. Out: `rows.parquet` and a `Replay`
that says what it cost. Greedy planners make it deterministic: two replays write the same bytes. Finished batches stay
in the folder, so a killed replay goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ReplayError
from planner.contracts.example import Example
from planner.contracts.prompt import render_prompt
from planner.decoding.result import Planner, PlanResult
from planner.evaluation.parts import Costs, Part, batch_key, join_parts, read_part, write_part
from planner.evaluation.rows import PLANNERS, build_row

Progress = Callable[[int, int | None, str], None]
WINDOW = 16  # batches within which rows are sorted by length


@dataclass(frozen=True, slots=True)
class Lineage:
    """On what a model was trained: a split of a dataset version. None in `split` means that nobody knows."""

    dataset_digest: str | None
    split: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are planned together; `key` changes with anything that decides their plans.

    `places` are those of the rows in the stream.
    """

    index: int
    key: str
    examples: tuple[Example, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Replay:
    """What a replay has left behind.

    `costs` are per planner (`candidate`, `baseline`); `catalogue_differences` count the recipes in which a planner's
    catalogue differs from the dataset's; `num_resumed` rows came from an earlier, killed run of the same replay.
    """

    rows_path: Path
    split: str
    num_rows: int
    num_resumed: int
    trained_on: bool
    costs: Mapping[str, Costs]
    catalogue_differences: Mapping[str, int]

    def read_rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The replayed rows under `ROWS_SCHEMA`."""
        return pq.read_table(self.rows_path, columns=list(columns) if columns is not None else None)

    def metrics(self) -> dict[str, float]:
        """Edits, speed and cost by the names they get as metrics; `plans_per_second` differs from run to run."""
        rows = self.read_rows(["feasible", "actual_edits", "predicted_edits", "baseline_predicted_edits"])
        found: dict[str, float] = {
            "num_rows": self.num_rows,
            "infeasible_share": sum(1 for feasible in rows["feasible"].to_pylist() if not feasible) / self.num_rows,
        }
        for name in ("actual_edits", "predicted_edits", "baseline_predicted_edits"):
            found[name] = sum(rows[name].to_pylist())
        for name, prefix in zip(PLANNERS, ("", "baseline_"), strict=True):
            cost = self.costs[name]
            if cost.seconds > 0:
                found[f"{prefix}plans_per_second"] = cost.num_plans / cost.seconds
            found[f"{prefix}tokens_per_plan"] = cost.num_tokens / max(1, cost.num_plans)
            found[f"{prefix}model_calls_per_plan"] = cost.num_model_calls / max(1, cost.num_plans)
        return found


def replay(
    candidate: Planner,
    baseline: Planner,
    examples: Iterable[Example],
    *,
    catalogue: Catalogue,
    folder: Path,
    split: str,
    identity: Mapping[str, str],
    lineage: Lineage,
    baseline_lineage: Lineage | None = None,
    allow_trained_rows: bool = False,
    max_catalogue_difference: float = 0.05,
    batch_size: int = 8,
    resume: bool = True,
    total: int | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Replay:
    """Plan every example's request with both planners, score, verify, and write `rows.parquet`.

    Args:
        candidate: greedy planner, judged.
        baseline: greedy planner that it is compared with.
        examples: rows of `split`, streamed; the rows keep this order.
        catalogue: the dataset's; it is what plans are scored and verified by.
        split: the split that the examples are of.
        folder: where `rows.parquet` and the finished batches (`parts/`) go.
        identity: what decides the plans beside the requests (model hashes, dataset digest); other values plan anew.
        lineage: what the candidate was trained on.
        baseline_lineage: the same of the baseline; None for one that was not trained.
        allow_trained_rows: rows that were trained on were asked for by name; the replay is then marked.
        max_catalogue_difference: largest share of recipes that may differ from the dataset's catalogue.
        batch_size: requests that a planner gets at once.
        resume: use finished batches of the same identity.
        total: number of examples, for the progress only.
        progress: called after each batch.
        clock: seconds, for plans per second.

    Raises:
        ReplayError: no rows, rows of another split or trained on, an event twice, catalogues too far apart, a planner
            that does not answer every request, or a folder that cannot be written.
    """
    trained_on = check_lineage(lineage, baseline_lineage, split, allow_trained_rows)
    planners = dict(zip(PLANNERS, (candidate, baseline), strict=True))
    differences = check_catalogues(planners, catalogue, max_catalogue_difference)
    parts: list[Part] = []
    places: list[tuple[int, ...]] = []
    num_done = num_resumed = 0
    for batch in batches_of(examples, split=split, identity=identity, catalogue=catalogue, batch_size=batch_size):
        part = read_part(folder / "parts", batch.index, batch.key) if resume else None
        if part is not None:
            num_resumed += part.num_rows
        else:
            part = plan_batch(planners, batch, catalogue, folder, clock=clock)
        parts.append(part)
        places.append(batch.places)
        num_done += len(batch.examples)
        if progress is not None:
            progress(num_done, total, "requests replayed")
    if not parts:
        raise ReplayError(
            f"The split {split!r} has no rows to replay. Choose another split or build a larger dataset.", split=split
        )
    join_parts(parts, places, folder / "rows.parquet")
    costs = {name: sum((part.costs[name] for part in parts), Costs()) for name in PLANNERS}
    return Replay(folder / "rows.parquet", split, num_done, num_resumed, trained_on, costs, differences)


def check_catalogues(planners: Mapping[str, Planner], dataset: Catalogue, limit: float) -> dict[str, int]:
    """By how many recipes each planner's catalogue differs from the dataset's.

    Raises:
        ReplayError: one differs in more than the share `limit`.
    """
    return {name: _check_catalogue(name, planner.catalogue, dataset, limit) for name, planner in planners.items()}


def catalogue_difference(one: Catalogue, other: Catalogue) -> int:
    """How many recipes stand in one catalogue alone or differ in any field."""
    ids = one.by_id.keys() | other.by_id.keys()
    return sum(1 for id in ids if one.by_id.get(id) != other.by_id.get(id))


def batches_of(
    examples: Iterable[Example], *, split: str, identity: Mapping[str, str], catalogue: Catalogue, batch_size: int
) -> Iterator[Batch]:
    """Cut the rows into batches of similar length, each with a key of everything that decides its plans.

    Rows are sorted by the length of their prompts within a window of `WINDOW` batches, so that a batch's rows finish
    together and the stream stays one.

    Raises:
        ReplayError: a row of another split, or an event twice.
    """
    known = {**identity, "split": split, "catalogue": _catalogue_key(catalogue)}
    rows = enumerate(_checked(examples, split))
    numbers = count()
    while window := list(islice(rows, WINDOW * batch_size)):
        window.sort(key=lambda row: len(render_prompt(row[1].request, catalogue)))
        for start in range(0, len(window), batch_size):
            places, batch = zip(*window[start : start + batch_size], strict=True)
            yield Batch(next(numbers), batch_key(known, [example.event_id for example in batch]), batch, places)


def plan_batch(
    planners: Mapping[str, Planner],
    batch: Batch,
    catalogue: Catalogue,
    folder: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Part:
    """Plan a batch with candidate and baseline, score and verify it, and write it as a part below `folder`.

    Raises:
        ReplayError: a planner does not answer every request, or the folder cannot be written.
    """
    results: dict[str, list[PlanResult]] = {}
    costs, num = {}, len(batch.examples)
    for name, planner in planners.items():
        start = clock()
        answers = planner.plan([example.request for example in batch.examples])
        seconds = clock() - start
        if len(answers) != num:
            raise ReplayError(
                f"The {name} gave {len(answers)} plans for {num} requests. Its planner is broken.", planner=name
            )
        results[name] = answers
        costs[name] = Costs(num, seconds, sum(a.num_tokens for a in answers), sum(a.num_model_calls for a in answers))
    rows = [
        build_row(example, mine, other, catalogue)
        for example, mine, other in zip(batch.examples, results["candidate"], results["baseline"], strict=True)
    ]
    return write_part(folder / "parts", batch.index, batch.key, rows, costs)


def check_lineage(lineage: Lineage, baseline: Lineage | None, split: str, allowed: bool) -> bool:
    """Whether rows were trained on. A household keeps its split in every dataset version, so the split decides.

    Raises:
        ReplayError: they were, and were not asked for by name (`allowed`).
    """
    trained = False
    for name, known in (("candidate", lineage), ("baseline", baseline)):
        if known is None or (known.split is not None and known.split != split):
            continue
        trained = True
        if not allowed:
            what = "nobody knows what it was trained on" if known.split is None else f"it was trained on {split!r}"
            raise ReplayError(
                f"The {name} cannot be replayed on split {split!r}: {what}. Replay held-out rows, "
                "or ask for the training rows by name (split=train); the gate cannot pass then.",
                planner=name,
                split=split,
            )
    return trained


def _check_catalogue(name: str, own: Catalogue, dataset: Catalogue, limit: float) -> int:
    num_different = catalogue_difference(own, dataset)
    num_recipes = len(own.by_id.keys() | dataset.by_id.keys())
    if num_different > limit * num_recipes:
        raise ReplayError(
            f"The {name}'s catalogue differs from the dataset's in {num_different} of {num_recipes} recipes "
            f"({num_different / num_recipes:.1%}, at most {limit:.1%}). Train on this dataset version, "
            "or raise evaluate.max_catalogue_difference.",
            planner=name,
            num_different=num_different,
        )
    return num_different


def _catalogue_key(catalogue: Catalogue) -> str:
    return batch_key({}, [repr(recipe) for recipe in catalogue.recipes])


def _checked(examples: Iterable[Example], split: str) -> Iterator[Example]:
    seen: set[str] = set()
    for example in examples:
        if example.split != split:
            raise ReplayError(
                f"Event {example.event_id} is of split {example.split!r}, but {split!r} is replayed.", split=split
            )
        if example.event_id in seen:
            raise ReplayError(f"Event {example.event_id} stands twice among the rows.", event_id=example.event_id)
        seen.add(example.event_id)
        yield example
