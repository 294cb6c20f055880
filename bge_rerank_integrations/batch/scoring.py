"""Score the rows of a shard, isolating the rows that cannot be scored, and make their tables.

Many rows are scored at once. An error that a single pair can cause is traced to its row by halving
the batch. A row that kills the process, or raises an error that no scorer should, is found with the
help of `attempts.Attempts`, which outlives the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bge_rerank_integrations.base.contract import check_text, checked_scores, show_score
from bge_rerank_integrations.batch.attempts import Attempts
from bge_rerank_integrations.batch.source import Layout, Row
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    OutOfMemoryError,
    RerankError,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scale, Scorer

PAIRS_AT_ONCE = 2048
"""Enough to sort by length; few enough to repeat when a worker dies."""

ROW_ERRORS = (InvalidInputError, NonFiniteScoreError, OutOfMemoryError)
"""Errors that a single pair can cause; any other would affect every row, and ends the run."""

Copied = Sequence[tuple[str, pa.DataType]]
"""Name and type of each column that is copied from the input."""


class SuspectRow(Exception):
    """Rows that raised an unexpected error and are retried one by one; names the error's class."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with the raw score of each of its passages, and their ranks from 1."""

    row: Row
    raw: FloatArray
    ranks: list[int]


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row without a score, with an error's class and message, which quotes no text."""

    row: Row
    error: str
    message: str


def score_rows(
    scorer: Scorer, rows: Sequence[Row], layout: Layout, attempts: Attempts
) -> tuple[list[ScoredRow], list[FailedRow]]:
    """The scored and the failed rows, each in order.

    Ranks are within the row's passages, or for pairs within the scored rows of the same query;
    equal raw scores keep the input's order. Raises `SuspectRow` for rows to retry, and the scorer's
    error if no row can be its cause.
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
            raise  # caused by the model, the key or the network
        except Exception as error:  # noqa: BLE001 - any error that a row can cause
            attempts.raised(type(error).__name__)
            # without the message and the traceback, which may contain texts
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
        raise InvalidInputError(f"there is no {layout.group}, so the pair cannot be ranked")
    pair = query, check_text(found, "passage")
    if queries.setdefault(group, query) != query:
        raise InvalidInputError(
            f"the query is not that of the first row with this {layout.group}, so the two rows "
            "cannot be ranked together"
        )
    return [pair]


def _portions(pairs: dict[int, list[Pair]], attempts: Attempts) -> Iterator[list[int]]:
    """Places to score together, in order; suspects are alone."""
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
    """Each place with its raw scores, or the reason why it has none."""
    try:
        scores = checked_scores(scorer, [pair for place in places for pair in pairs[place]])
    except ROW_ERRORS as error:
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


def scored_table(
    scored: Sequence[ScoredRow], layout: Layout, copied: Copied, *, scale: Scale, normalize: bool
) -> pa.Table:
    """Row number, copied columns, score (see `show_score`), raw score and rank.

    If rows have lists of passages, the last three are lists.
    """
    raw = [row.raw.tolist() for row in scored]
    shown = [[show_score(r, scale, normalize=normalize) for r in some] for some in raw]
    columns = {"row": pa.array([row.row.number for row in scored], pa.int64())}
    for name, kind in copied:
        columns[name] = pa.array([row.row.values[name] for row in scored], kind)
    for name, lists, kind in (
        ("score", shown, pa.float64()),
        ("raw_score", raw, pa.float32()),
        ("rank", [row.ranks for row in scored], pa.int32()),
    ):
        if layout.lists:
            columns[name] = pa.array(lists, pa.list_(kind))
        else:
            columns[name] = pa.array([value for (value,) in lists], kind)
    return pa.table(columns)


def failed_table(failed: Sequence[FailedRow], layout: Layout, copied: Copied) -> pa.Table:
    """Row number, query id if there is one, the error's class and its message."""
    columns = {"row": pa.array([row.row.number for row in failed], pa.int64())}
    for name, kind in copied:
        if name == layout.query_id:
            columns[name] = pa.array([row.row.values.get(name) for row in failed], kind)
    columns["error"] = pa.array([row.error for row in failed], pa.string())
    columns["message"] = pa.array([row.message for row in failed], pa.string())
    return pa.table(columns)
