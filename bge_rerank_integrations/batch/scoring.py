"""Score the rows of a shard, isolating the rows that cannot be scored.

Many rows are scored at once. An error is traced to its row by halving them. A row that kills the
process is found with the help of `Attempts`: each shard being scored has a file, which outlives the
process. After a worker dies, the rows it was scoring are scored one by one. A row that killed three
workers is not tried again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Container, Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from bge_rerank_integrations.base.contract import check_text, checked_scores, show_score
from bge_rerank_integrations.batch.source import Layout, Row
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    OutOfMemoryError,
    RerankError,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scorer

PAIRS_AT_ONCE = 2048
"""Enough to sort by length; few enough to repeat when a worker dies."""

ROW_ERRORS = (InvalidInputError, NonFiniteScoreError, OutOfMemoryError)
"""Errors that a single pair can cause; this package's other errors would affect every row."""

UNEXPECTED_ROWS = 10
"""Rows of a shard that may raise unexpected errors; beyond that, the rows are not at fault."""

RAISED = "raised twice while this row was scored alone"

DEATHS_OF_A_ROW = 3
DEATHS_OF_A_LOAD = 3
DEATHS_OF_A_SHARD = 30
"""Ten rows of a shard at three deaths each; beyond that, the machine is at fault, not the rows."""

Problem = tuple[str, str]
"""An error's class and a message that quotes no text."""

Record = dict[str, Any]
"""A row of a table of results or errors, with more columns than the table has."""


class Attempts(BaseModel):
    """The attempts to score one shard; rows `start` to `stop` are being scored, if any."""

    file: Path = Field(exclude=True)
    start: int = 0
    stop: int = 0
    deaths: int = 0
    loading: int = 0
    """The number of workers that died while they loaded the model."""
    rows: dict[int, int] = {}
    """The number of workers that died of each row: first with others, then alone."""

    @classmethod
    def read(cls, file: Path, *, shard: int) -> Attempts:
        """The attempts so far; an existing file was left by a worker that died.

        Raises `RerankError` if workers died so often that no single row can be the cause.
        """
        try:
            left = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(file=file)
        attempts = cls(file=file, **left)
        attempts.deaths += 1
        attempts.loading += attempts.start == attempts.stop
        for place in range(attempts.start, attempts.stop):
            attempts.rows[place] = attempts.rows.get(place, 0) + 1
        if attempts.loading >= DEATHS_OF_A_LOAD:
            raise RerankError(
                f"{attempts.loading} workers died while they loaded the model, most likely of too "
                "little memory: use fewer workers per machine, or larger machines"
            )
        if attempts.deaths >= DEATHS_OF_A_SHARD:
            raise RerankError(
                f"workers died {attempts.deaths} times in shard {shard}: too often to be caused by "
                "its rows; fix the worker, then rerun to resume"
            )
        return attempts

    def begin(self, start: int, stop: int) -> None:
        """Record that these rows are about to be scored, or with 0 and 0 that the model loads."""
        self.start, self.stop = start, stop
        # without fsync: if the machine dies, the run ends too
        unfinished = self.file.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(self.model_dump_json(), encoding="utf-8")
        unfinished.replace(self.file)

    def is_hopeless(self, place: int) -> bool:
        """Whether the row is not tried again."""
        return self.rows.get(place, 0) >= DEATHS_OF_A_ROW


def score_rows(
    scorer: Scorer, rows: Sequence[Row], layout: Layout, attempts: Attempts, *, normalize: bool
) -> tuple[list[Record], list[Record]]:
    """The rows of the results and of the errors, each in order; see `schemas`.

    Ranks are within the row's passages, or for pairs within the scored rows of the same query;
    equal raw scores keep the input's order. Raises the scorer's error if no row can be its cause.
    """
    pairs: dict[int, list[Pair]] = {}
    raw: dict[int, FloatArray] = {}
    failed: dict[int, Problem] = {}
    queries: dict[Any, str] = {}
    for place, row in enumerate(rows):
        if attempts.is_hopeless(place):
            failed[place] = "WorkerDied", f"{DEATHS_OF_A_ROW} workers died while they scored it"
            continue
        try:
            pairs[place] = _pairs(row, layout, queries)
        except InvalidInputError as error:
            failed[place] = type(error).__name__, str(error)
    unexpected = 0
    for portion in _portions(pairs, attempts.rows):
        attempts.begin(min(portion), max(portion) + 1)
        for place, outcome in _score(scorer, portion):
            if isinstance(outcome, np.ndarray):
                raw[place] = outcome
                continue
            failed[place] = outcome
            unexpected += outcome[1] == RAISED
            if unexpected > UNEXPECTED_ROWS:
                raise RerankError(
                    f"{unexpected} rows of a shard raised errors that no scorer should, last "
                    f"{outcome[0]}: too many to be caused by the rows; fix the worker, then rerun "
                    "to resume"
                )
    ranks = _ranks(raw, rows, layout)
    scored = []
    for place in sorted(raw):
        scores = raw[place].tolist()
        columns = {
            "score": [show_score(score, scorer.scale, normalize=normalize) for score in scores],
            "raw_score": scores,
            "rank": ranks[place].tolist(),
        }
        if not layout.lists:
            columns = {name: values[0] for name, values in columns.items()}
        scored.append(_record(rows[place], columns))
    return scored, [
        _record(rows[place], {"error": error, "message": message})
        for place, (error, message) in sorted(failed.items())
    ]


def schemas(layout: Layout, copied: Sequence[pa.Field]) -> tuple[pa.Schema, pa.Schema]:
    """The columns of the results and of the errors.

    Row number, copied columns, score (see `show_score`), raw score and rank; the last three are
    lists if rows have lists of passages. Row number, query id, the error's class and its message.
    """
    number = pa.field("row", pa.int64())
    kinds = {"score": pa.float64(), "raw_score": pa.float32(), "rank": pa.int32()}
    found = [pa.field(n, pa.list_(kind) if layout.lists else kind) for n, kind in kinds.items()]
    error = [pa.field(name, pa.string()) for name in ("error", "message")]
    key = [field for field in copied if field.name == layout.query_id]
    return pa.schema([number, *copied, *found]), pa.schema([number, *key, *error])


def _record(row: Row, columns: Record) -> Record:
    return {**({} if isinstance(row.values, str) else row.values), "row": row.number, **columns}


def _pairs(row: Row, layout: Layout, queries: dict[Any, str]) -> list[Pair]:
    if isinstance(row.values, str):
        raise InvalidInputError(row.values)
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


def _portions(
    pairs: dict[int, list[Pair]], suspects: Container[int]
) -> Iterator[dict[int, list[Pair]]]:
    """Rows to score together; suspects are alone."""
    counts = dict(zip(pairs, accumulate(map(len, pairs.values())), strict=True))

    def portion(place: int) -> tuple[bool, int]:
        alone = place in suspects
        return alone, place if alone else counts[place] // PAIRS_AT_ONCE

    for _, places in groupby(pairs, portion):
        yield {place: pairs[place] for place in places}


def _score(
    scorer: Scorer, pairs: dict[int, list[Pair]], tries: int = 2
) -> Iterator[tuple[int, FloatArray | Problem]]:
    """Each row's raw scores, or the reason why it has none."""
    try:
        scores = checked_scores(scorer, [pair for own in pairs.values() for pair in own])
    except ROW_ERRORS as error:
        problem, tries = (type(error).__name__, str(error)), 1
    except RerankError:
        raise  # caused by the model, the key or the network
    except Exception as error:  # noqa: BLE001 - any error that a row can cause
        problem = type(error).__name__, RAISED  # its own message may quote texts
    else:
        ends = np.cumsum([len(own) for own in pairs.values()])
        yield from zip(pairs, np.split(scores, ends[:-1]), strict=True)
        return
    places = list(pairs)
    if len(places) > 1:
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            yield from _score(scorer, {place: pairs[place] for place in half})
    elif tries > 1:
        yield from _score(scorer, pairs, tries - 1)
    else:
        yield places[0], problem


def _ranks(raw: dict[int, FloatArray], rows: Sequence[Row], layout: Layout) -> dict[int, Any]:
    """The ranks of each row's passages, from 1; pairs are ranked with those of their query."""
    groups: dict[Any, list[int]] = {}
    for place in sorted(raw):
        values: Any = rows[place].values
        groups.setdefault(place if layout.lists else values[layout.group], []).append(place)
    found: dict[int, Any] = {}
    for places in groups.values():
        together = np.concatenate([raw[place] for place in places])
        ranks = pc.rank(pa.array(together), "descending", tiebreaker="first").to_numpy()
        ends = np.cumsum([len(raw[place]) for place in places])
        found.update(zip(places, np.split(ranks, ends[:-1]), strict=True))
    return found
