"""A server's answer read into scores, strictly: what is not surely right is an error.

Messages name positions, counts and numbers, never what an answer holds of the texts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_rerank_integrations.errors import RemoteAnswerError
from bge_rerank_integrations.remote.dialects import Dialect
from bge_rerank_integrations.types import FloatArray


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores in the order in which the passages were sent; `order` is that of the answer."""

    scores: FloatArray
    order: list[int]


def parse_json(body: bytes, source: str) -> Any:
    """The body as JSON; raises `RemoteAnswerError` for NaN, doubled keys and what is no JSON."""
    try:
        return json.loads(body, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        pass
    raise RemoteAnswerError(
        f"{source} answered with {len(body)} bytes that are no valid JSON (NaN and a key given "
        "twice are not valid either); is it the address of a rerank server?"
    )


def read_answer(dialect: Dialect, answer: Any, sent: int, source: str) -> Answer:
    """One finite score for each of the `sent` passages, scattered by index.

    Raises `RemoteAnswerError` for an error inside the answer, a wrong count, an index that is
    missing, repeated or out of range, and a score that is no finite number or not on the scale.
    """
    items = _items(dialect, answer, source)
    if len(items) != sent:
        raise RemoteAnswerError(f"{source} gave {len(items)} results for {sent} passages")
    scores = np.full(sent, np.nan, dtype=np.float32)
    order: list[int] = []
    for place, item in enumerate(items):
        index = place if dialect.index is None else _index(dialect.index, item, place, source)
        if not 0 <= index < sent:
            raise RemoteAnswerError(f"{source} gave the index {index} among {sent} passages")
        if not math.isnan(scores[index]):
            raise RemoteAnswerError(f"{source} gave the index {index} twice")
        scores[index] = _score(dialect, item, place, source)
        order.append(index)
    return Answer(scores, order)


def separate_ties(scores: FloatArray, order: Sequence[int]) -> FloatArray:
    """Probabilities in which ties are broken as the server did, by the least float32 steps.

    A tied score that the server put first is raised to the next float32, one that would pass 1 is
    lowered instead. Without ties, or where the answer is not sorted by score, nothing changes.
    """
    ranked = scores[np.asarray(order, dtype=np.intp)]
    falls = np.diff(ranked)
    if (falls > 0).any() or not (falls == 0).any():
        return scores
    for place in range(len(ranked) - 2, -1, -1):
        ranked[place] = max(ranked[place], np.nextafter(ranked[place + 1], np.float32(2)))
    most = np.float32(1)
    for place in range(len(ranked)):
        if ranked[place] <= most:
            break
        ranked[place] = most
        most = np.nextafter(most, np.float32(0))
    separated = np.empty_like(scores)
    separated[np.asarray(order, dtype=np.intp)] = ranked
    return separated


def _items(dialect: Dialect, answer: Any, source: str) -> list[Any]:
    if isinstance(answer, dict):
        failed = next((key for key in ("error", "errors") if answer.get(key)), None)
        if failed is not None or answer.get("success") is False:
            raise RemoteAnswerError(f"{source} answered 200 with an error inside, under {failed!r}")
    found = answer
    for key in dialect.items:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        place = f"under {'.'.join(dialect.items)!r}" if dialect.items else "at the top"
        raise RemoteAnswerError(
            f"{source} gave no list of results {place}; does it speak {dialect.name!r}?"
        )
    return found


def _index(key: str, item: Any, place: int, source: str) -> int:
    index = item.get(key) if isinstance(item, dict) else None
    if isinstance(index, bool) or not isinstance(index, int):
        raise RemoteAnswerError(
            f"{source} gave {_kind(index)} for {key!r} of result {place}, not a whole number"
        )
    return index


def _score(dialect: Dialect, item: Any, place: int, source: str) -> np.float32:
    found = item
    for key in dialect.score:
        if isinstance(key, str):
            found = found.get(key) if isinstance(found, dict) else None
        elif isinstance(found, list) and len(found) == 1:
            found = found[0]
        else:
            raise RemoteAnswerError(
                f"{source} gave {_kind(found)} as result {place}, not a list of one score; "
                "a model with several labels is no reranker"
            )
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RemoteAnswerError(
            f"{source} gave {_kind(found)} for the score of result {place}, not a number"
        )
    with np.errstate(over="ignore"):
        score = np.float32(found) if abs(found) < 1e300 else np.float32(np.inf)
    if not np.isfinite(score):
        raise RemoteAnswerError(f"{source} gave {score} for the score of result {place}")
    if dialect.scale == "probability" and not 0 <= found <= 1:
        raise RemoteAnswerError(
            f"{source} gave {found} for result {place}, and {dialect.name!r} says that scores are "
            "probabilities; give the dialect that the server speaks"
        )
    return score


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found
