"""The rows of a shard scored, so that a row that cannot be costs itself alone.

Rows are scored many at once. Where that raises what one pair alone can cause, halves are tried,
down to the row. A row that takes the process with it, or raises what no scorer should, is found by
`attempts.Attempts`, which outlives the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.base.raw_scores import checked_scores
from bge_rerank_integrations.batch.attempts import Attempts
from bge_rerank_integrations.batch.source import Layout, Row
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    OutOfMemoryError,
    RerankError,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scorer

PAIRS_AT_ONCE = 2048
"""Enough for the engine to sort by length, few enough to be lost with a worker."""

OF_ONE_PAIR = (InvalidInputError, NonFiniteScoreError, OutOfMemoryError)
"""What one pair can cause; any other error would meet every row, so it ends the run."""


class SuspectRow(Exception):
    """Rows raised what no scorer should: tried again, each alone. Its message is a class's name."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with the raw score of each of its passages, and their places from 1."""

    row: Row
    raw: FloatArray
    ranks: list[int]


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that has no score, with an error's class and its message, which quotes no text."""

    row: Row
    error: str
    message: str


def score_rows(
    scorer: Scorer, rows: Sequence[Row], layout: Layout, attempts: Attempts
) -> tuple[list[ScoredRow], list[FailedRow]]:
    """Every row once, in order, in one of the two lists.

    Ranks count within the row's passages, or for pairs within the rows of the same query that
    have a score; equal raw scores keep the order of the input. Raises `SuspectRow` for what is to
    be tried again, and the scorer's error where no row can be blamed for it.
    """
    pairs: dict[int, list[Pair]] = {}
    raw: dict[int, FloatArray] = {}
    failed: dict[int, FailedRow] = {}
    queries: dict[Any, str] = {}
    for place, row in enumerate(rows):
        try:
            pairs[place] = _pairs(row, layout, queries)
        except InvalidInputError as error:
            failed[place] = _failure(row, error)
    for places in _portions(pairs, attempts):
        first = places[0]
        if cause := attempts.hopeless(first):
            failed[first] = FailedRow(rows[first], *cause)
            continue
        attempts.begin(first, places[-1] + 1)
        try:
            outcomes = list(_score(scorer, rows, pairs, places))
        except RerankError:
            raise  # nothing of the row's: the model, the key, the network
        except Exception as error:  # noqa: BLE001 - whatever a row brings about; raised as a name
            attempts.raised(type(error).__name__)
            # neither the message nor the traceback's locals, which may hold texts
            raise SuspectRow(type(error).__name__) from None
        for place, outcome in outcomes:
            if isinstance(outcome, FailedRow):
                failed[place] = outcome
            else:
                raw[place] = outcome
    scored = _ranked(rows, raw, layout)
    return scored, [failed[place] for place in sorted(failed)]


def _pairs(row: Row, layout: Layout, queries: dict[Any, str]) -> list[Pair]:
    if row.problem is not None:
        raise InvalidInputError(row.problem)
    query = check_text(row.values[layout.query], "query")
    found = row.values[layout.passage]
    if layout.lists:
        if not isinstance(found, list):
            raise InvalidInputError(
                f"the {layout.passage} are {type(found).__name__}, not a list of str"
            )
        return [(query, check_text(text, "passage", i)) for i, text in enumerate(found)]
    group = row.values[layout.group]
    if group is None:
        raise InvalidInputError(f"there is no {layout.group}, so nothing to rank the pair against")
    pair = query, check_text(found, "passage")
    if queries.setdefault(group, query) != query:
        raise InvalidInputError(
            f"the query is not that of the first row with this {layout.group}, so the two cannot "
            "be ranked against each other"
        )
    return [pair]


def _portions(pairs: dict[int, list[Pair]], attempts: Attempts) -> Iterator[list[int]]:
    """Places to score together, in order; one by one where a worker died before."""
    portion: list[int] = []
    count = 0
    for place, own in pairs.items():
        alone = attempts.is_suspect(place)
        if portion and (alone or count + len(own) > PAIRS_AT_ONCE):
            yield portion
            portion, count = [], 0
        if alone:
            yield [place]
            continue
        portion.append(place)
        count += len(own)
    if portion:
        yield portion


def _score(
    scorer: Scorer, rows: Sequence[Row], pairs: dict[int, list[Pair]], places: list[int]
) -> Iterator[tuple[int, FloatArray | FailedRow]]:
    """Each of the places with its raw scores, or why it has none."""
    try:
        scores = checked_scores(scorer, [pair for place in places for pair in pairs[place]])
    except OF_ONE_PAIR as error:
        if len(places) == 1:
            yield places[0], _failure(rows[places[0]], error)
            return
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            yield from _score(scorer, rows, pairs, half)
        return
    ends = np.cumsum([len(pairs[place]) for place in places])
    yield from zip(places, np.split(scores, ends[:-1]), strict=True)


def _failure(row: Row, error: RerankError) -> FailedRow:
    return FailedRow(row, type(error).__name__, str(error))


def _ranked(rows: Sequence[Row], raw: dict[int, FloatArray], layout: Layout) -> list[ScoredRow]:
    if layout.lists:
        return [ScoredRow(rows[place], raw[place], _ranks(raw[place])) for place in sorted(raw)]
    groups: dict[Any, list[int]] = {}
    for place in sorted(raw):
        groups.setdefault(rows[place].values[layout.group], []).append(place)
    ranks: dict[int, int] = {}
    for places in groups.values():
        together = np.concatenate([raw[place] for place in places])
        ranks.update(zip(places, _ranks(together), strict=True))
    return [ScoredRow(rows[place], raw[place], [ranks[place]]) for place in sorted(raw)]


def _ranks(raw: FloatArray) -> list[int]:
    ranks = np.empty(len(raw), dtype=np.int64)
    ranks[np.argsort(-raw, kind="stable")] = np.arange(1, len(raw) + 1)
    return ranks.tolist()
