"""The texts of a request, in each of the shapes that servers read."""

from collections.abc import Callable, Sequence
from typing import Any

Body = Callable[[str, Sequence[str]], dict[str, Any]]
"""The part of a request that holds the texts: from a query and its passages."""


def named(
    query: str, passages: str, *, text: str | None = None, query_text: str | None = None
) -> Body:
    """Query and passages under these keys; `text` wraps each passage as `{text: ...}`."""

    def body(asked: str, given: Sequence[str]) -> dict[str, Any]:
        return {
            query: asked if query_text is None else {query_text: asked},
            passages: list(given) if text is None else [{text: passage} for passage in given],
        }

    return body


def as_pairs(asked: str, given: Sequence[str]) -> dict[str, Any]:
    """`{"inputs": [[query, passage], ...]}`."""
    return {"inputs": [[asked, passage] for passage in given]}


def as_text_pairs(asked: str, given: Sequence[str]) -> dict[str, Any]:
    """The input of transformers' text-classification pipeline."""
    return {"inputs": [{"text": asked, "text_pair": passage} for passage in given]}


def under_inputs(asked: str, given: Sequence[str]) -> dict[str, Any]:
    """The input of the Hugging Face inference toolkit for sentence ranking."""
    return {"inputs": {"query": asked, "texts": list(given), "return_documents": False}}
