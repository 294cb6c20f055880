"""Pairs to requests, and answers to scores. An answer that may be wrong is an error.

Error messages contain positions, counts and numbers, never any text of an answer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_rerank_integrations.errors import InvalidInputError, RemoteAnswerError
from bge_rerank_integrations.remote.dialects import Dialect
from bge_rerank_integrations.types import FloatArray, Pair


@dataclass(frozen=True, slots=True)
class Chunk:
    """The pairs of one request, by index; `whole` if the query has no other pairs."""

    query: str
    indices: tuple[int, ...]
    whole: bool


def split_pairs(
    pairs: Sequence[Pair],
    positions: Sequence[int],
    *,
    max_documents: int,
    max_bytes: int,
    repeats_query: bool,
) -> list[Chunk]:
    """Group the pairs into requests of one query each, in the given order.

    `positions` are the pairs' places in the caller's list. With `repeats_query`, a request contains
    the query once per passage. Raises `InvalidInputError`, with its position, for a pair that alone
    exceeds `max_bytes`.
    """
    by_query: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(index)
    chunks: list[Chunk] = []
    for query, indices in by_query.items():
        query_bytes = len(to_json(query)) + 1000  # room for the options
        groups: list[list[int]] = []
        size = max_bytes
        for index in indices:
            passage_bytes = len(to_json(pairs[index][1])) + 40  # room for the keys around it
            if repeats_query:
                passage_bytes += query_bytes
            if query_bytes + passage_bytes > max_bytes:
                raise InvalidInputError(
                    f"the pair at position {positions[index]} takes {query_bytes + passage_bytes} "
                    f"bytes; the server accepts {max_bytes}: shorten its texts",
                    index=positions[index],
                )
            if size + passage_bytes > max_bytes or len(groups[-1]) == max_documents:
                groups.append([])
                size = query_bytes
            groups[-1].append(index)
            size += passage_bytes
        chunks += [Chunk(query, tuple(group), len(groups) == 1) for group in groups]
    return chunks


def to_json(body: object) -> bytes:
    """Compact JSON: UTF-8 without escapes and spaces."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores in request order; `order` is the order of the results in the answer."""

    scores: FloatArray
    order: list[int]


def parse_json(body: bytes, source: str) -> Any:
    """Parse strict JSON; raises `RemoteAnswerError`, also for NaN and duplicate keys."""
    try:
        return json.loads(body, parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        pass
    raise RemoteAnswerError(
        f"{source} answered with {len(body)} bytes that are not valid JSON (NaN and duplicate keys "
        "are not valid); is it the address of a rerank server?"
    )


def read_answer(dialect: Dialect, answer: Any, sent: int, source: str) -> Answer:
    """One finite score for each of the `sent` passages, assigned by index.

    Raises `RemoteAnswerError` for an error inside the answer, a wrong number of results, an index
    that is missing, repeated or out of range, and a score that is not a finite number on the
    dialect's scale.
    """
    try:
        return _read_items(dialect, _items(dialect, answer), sent)
    except _WrongAnswer as wrong:
        raise RemoteAnswerError(f"{source} {wrong}") from None


class _WrongAnswer(Exception):
    """The server's mistake, without its name."""


def _items(dialect: Dialect, answer: Any) -> list[Any]:
    if isinstance(answer, dict):
        failed = next((key for key in ("error", "errors") if answer.get(key)), None)
        if failed is not None or answer.get("success") is False:
            raise _WrongAnswer(f"answered 200 with an error inside, under {failed!r}")
    found = answer
    for key in dialect.items:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        place = f"under {'.'.join(dialect.items)!r}" if dialect.items else "at the top"
        raise _WrongAnswer(f"gave no list of results {place}; does it speak {dialect.name!r}?")
    return found


def _read_items(dialect: Dialect, items: list[Any], sent: int) -> Answer:
    if len(items) != sent:
        raise _WrongAnswer(f"gave {len(items)} results for {sent} passages")
    scores = np.full(sent, np.nan, dtype=np.float32)
    order: list[int] = []
    for place, item in enumerate(items):
        index: Any = place
        key = dialect.index
        if key is not None:
            index = item.get(key) if isinstance(item, dict) else None
            if isinstance(index, bool) or not isinstance(index, int):
                found = _type_of(index)
                raise _WrongAnswer(f"gave {found} for {key!r} of result {place}, not an integer")
        if not 0 <= index < sent:
            raise _WrongAnswer(f"gave the index {index} among {sent} passages")
        if not math.isnan(scores[index]):
            raise _WrongAnswer(f"gave the index {index} twice")
        scores[index] = _read_score(dialect, item, place)
        order.append(index)
    return Answer(scores, order)


def _read_score(dialect: Dialect, item: Any, place: int) -> np.float32:
    found = item
    for key in dialect.score:
        if isinstance(key, str):
            found = found.get(key) if isinstance(found, dict) else None
        elif isinstance(found, list) and len(found) == 1:
            found = found[0]
        else:
            raise _WrongAnswer(
                f"gave {_type_of(found)} as result {place}, not a list of one score; a model with "
                "several labels is not a reranker"
            )
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _WrongAnswer(f"gave {_type_of(found)} for the score of result {place}, not a number")
    with np.errstate(over="ignore"):
        score = np.float32(found) if abs(found) < 1e300 else np.float32(np.inf)
    if not np.isfinite(score):
        raise _WrongAnswer(f"gave {score} for the score of result {place}")
    if dialect.scale == "probability" and not 0 <= found <= 1:
        raise _WrongAnswer(
            f"gave {found} for result {place}, but scores of {dialect.name!r} are probabilities; "
            "set the dialect that the server speaks"
        )
    return score


def _type_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def separate_ties(scores: FloatArray, order: Sequence[int]) -> FloatArray:
    """Break ties of probabilities in the server's order, by the smallest float32 steps.

    A tied score that the server placed first becomes the next larger float32; a score that would
    exceed 1 is lowered instead. Scores without ties, or not sorted in the answer, are unchanged.
    """
    places = np.asarray(order, dtype=np.intp)
    ranked = scores[places]
    falls = np.diff(ranked)
    if (falls > 0).any() or not (falls == 0).any():
        return scores
    for place in range(len(ranked) - 2, -1, -1):
        ranked[place] = max(ranked[place], np.nextafter(ranked[place + 1], np.float32(2)))
    limit = np.float32(1)
    for place in range(len(ranked)):
        if ranked[place] <= limit:
            break
        ranked[place] = limit
        limit = np.nextafter(limit, np.float32(0))
    separated = np.empty_like(scores)
    separated[places] = ranked
    return separated


def _reject_constant(constant: str) -> Any:
    raise ValueError(constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found
