"""Pairs to requests, and answers to scores. An answer that may be wrong is an error.

Error messages are phrases that follow the name of the server. They contain positions and counts,
never a part of an answer, not even a number: it may come from a passage or a key.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from bge_rerank_integrations.errors import InvalidInputError, RemoteAnswerError
from bge_rerank_integrations.remote.dialects import Dialect
from bge_rerank_integrations.types import FloatArray, Pair


@dataclass(frozen=True, slots=True)
class Chunk:
    """The passages of one request, each with the rows of its score."""

    query: str
    passages: dict[str, list[int]]

    def halves(self) -> Iterator["Chunk"]:
        items = iter(self.passages.items())
        for size in (len(self.passages) // 2, None):
            yield Chunk(self.query, dict(islice(items, size)))


def split_pairs(
    pairs: Sequence[Pair], *, max_documents: int, max_bytes: int, repeats_query: bool
) -> list[Chunk]:
    """Group the pairs into requests of one query and distinct passages each, in the given order.

    With `repeats_query`, a request contains the query once per passage. Raises `InvalidInputError`,
    with its position, for a pair that alone exceeds `max_bytes`.
    """
    by_query: dict[str, dict[str, list[int]]] = {}
    for row, (query, passage) in enumerate(pairs):
        by_query.setdefault(query, {}).setdefault(passage, []).append(row)
    chunks: list[Chunk] = []
    for query, passages in by_query.items():
        query_bytes = len(to_json(query)) + 1000  # room for the options
        size = max_bytes  # so that the query begins a request
        for passage, rows in passages.items():
            passage_bytes = len(to_json(passage)) + 40  # room for the keys around it
            if repeats_query:
                passage_bytes += query_bytes
            if query_bytes + passage_bytes > max_bytes:
                raise InvalidInputError(
                    f"the pair at position {rows[0]} takes {query_bytes + passage_bytes} bytes; "
                    f"the server accepts {max_bytes}: shorten its texts",
                    index=rows[0],
                )
            if size + passage_bytes > max_bytes or len(chunks[-1].passages) == max_documents:
                chunks.append(Chunk(query, {}))
                size = query_bytes
            chunks[-1].passages[passage] = rows
            size += passage_bytes
    return chunks


def to_json(body: object) -> bytes:
    """Compact JSON: UTF-8 without escapes and spaces."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


MAX_DEPTH = 50
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[][{},]', re.DOTALL)
_DEEPER = {"[": 1, "{": 1, "]": -1, "}": -1}


def parse_json(body: bytes, results: int = 0) -> Any:
    """Parse strict JSON; raises `RemoteAnswerError`, also for NaN and duplicate keys.

    A list of small values takes a hundred times its bytes when parsed, and no other thread runs
    meanwhile. So JSON with more parts than this many results need is refused before it is parsed.
    """
    wrong = "are not valid JSON (NaN and duplicate keys are not valid)"
    with suppress(ValueError):
        text = body.decode("utf-8-sig")
        if _is_small(text, 20_000 + 200 * results):
            return json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
        wrong = "are nested too deep, or have more parts than its results need"
    raise RemoteAnswerError(
        f"answered with {len(body)} bytes that {wrong}; is it the address of a rerank server?"
    )


def _is_small(text: str, max_parts: int) -> bool:
    depth = 0
    for parts, token in enumerate(_TOKEN.finditer(text)):
        depth += _DEEPER.get(text[token.start()], 0)
        if depth > MAX_DEPTH or parts > max_parts:
            return False
    return True


def _reject_constant(constant: str) -> Any:
    raise ValueError(constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def read_answer(dialect: Dialect, answer: Any, sent: int) -> FloatArray:
    """One finite score for each of the `sent` passages, in the order of the request, by index.

    Raises `RemoteAnswerError` for an error inside the answer, a wrong number of results, an index
    that is missing, repeated or out of range, and a score that is not a finite number on the
    dialect's scale.
    """
    items = _read_items(dialect, answer)
    if len(items) != sent:
        raise RemoteAnswerError(f"gave {len(items)} results for {sent} passages")
    scores = np.full(sent, np.nan, dtype=np.float32)
    for place, item in enumerate(items):
        index = place if dialect.index is None else _read_index(dialect.index, item, place)
        if not 0 <= index < sent:
            raise RemoteAnswerError(f"gave an index beyond the {sent} passages to result {place}")
        if not math.isnan(scores[index]):
            raise RemoteAnswerError(f"gave the index of another result to result {place}")
        scores[index] = _read_score(dialect, item, place)
    return scores


def _read_items(dialect: Dialect, answer: Any) -> list[Any]:
    if isinstance(answer, dict):
        failed = next((key for key in ("error", "errors") if answer.get(key)), None)
        if failed is not None or answer.get("success") is False:
            raise RemoteAnswerError(f"answered 200 with an error inside, under {failed!r}")
    found = answer
    for key in dialect.items:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        place = f"under {'.'.join(dialect.items)!r}" if dialect.items else "at the top"
        raise RemoteAnswerError(f"gave no list of results {place}; does it speak {dialect.name!r}?")
    return found


def _read_index(key: str, item: Any, place: int) -> int:
    index = item.get(key) if isinstance(item, dict) else None
    if isinstance(index, bool) or not isinstance(index, int):
        raise RemoteAnswerError(
            f"gave {_type_of(index)} for {key!r} of result {place}, not an integer"
        )
    return index


def _read_score(dialect: Dialect, item: Any, place: int) -> np.float32:
    found = item
    for key in dialect.score:
        if isinstance(key, str):
            found = found.get(key) if isinstance(found, dict) else None
        elif isinstance(found, list) and len(found) == 1:
            found = found[0]
        else:
            raise RemoteAnswerError(
                f"gave {_type_of(found)} as result {place}, not a list of one score; a model with "
                "several labels is not a reranker"
            )
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RemoteAnswerError(
            f"gave {_type_of(found)} for the score of result {place}, not a number"
        )
    with np.errstate(over="ignore"):
        score = np.float32(found) if abs(found) < 1e300 else np.float32(np.inf)
    if not np.isfinite(score):
        raise RemoteAnswerError(f"gave {score} for the score of result {place}")
    if dialect.scale == "probability" and not 0 <= found <= 1:
        raise RemoteAnswerError(
            f"gave a score outside of 0 to 1 for result {place}, but scores of {dialect.name!r} "
            "are probabilities; set the dialect that the server speaks"
        )
    return score


def _type_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
