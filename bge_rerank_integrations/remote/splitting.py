"""Pairs to requests: one query each, bounded by passages and by bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import Pair


@dataclass(frozen=True, slots=True)
class Chunk:
    """The pairs of one request, by their indices; `whole` if these are all that the query has."""

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
    """The requests for these pairs, queries and pairs in the order given.

    `positions` are the pairs' places in the caller's list; with `repeats_query` a request holds
    the query once for each passage. Raises `InvalidInputError` with the position of a pair that
    alone is more than `max_bytes`.
    """
    by_query: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(index)
    chunks: list[Chunk] = []
    for query, indices in by_query.items():
        query_bytes = _json_bytes(query) + 1000  # room for the options
        groups: list[list[int]] = []
        size = max_bytes
        for index in indices:
            passage_bytes = _json_bytes(pairs[index][1]) + 40  # room for what wraps a passage
            if repeats_query:
                passage_bytes += query_bytes
            if query_bytes + passage_bytes > max_bytes:
                raise InvalidInputError(
                    f"the pair at position {positions[index]} takes {query_bytes + passage_bytes} "
                    f"bytes and the server takes {max_bytes}; cut its texts",
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
    """As small as JSON gets: UTF-8 without escapes and spaces."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _json_bytes(text: str) -> int:
    return len(to_json(text))
