"""What the served reranker is asked and answers: TEI's way, and Cohere's and Jina's.

Values in, values out; nothing here serves anything. Which way a request speaks is seen from its
keys, not from its path: "texts" is TEI's, "documents" is Cohere's and Jina's. A known option that
asks for other scores than ours is refused, never ignored.

Sources: text-embeddings-inference 1.9 (router/src/http: types.rs, server.rs), Cohere's API
reference of /v2/rerank, Jina's of /v1/rerank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.base.raw_scores import show_score
from bge_rerank_integrations.types import FloatArray, Pair, Scale


class Refusal(Exception):
    """An answer that is no result: its HTTP status, TEI's word for it, and why, without texts."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def body(self) -> dict[str, str]:
        """The message under each name that a client looks for."""
        message = str(self)
        return {"error": message, "error_type": self.kind, "message": message, "detail": message}


@dataclass(frozen=True, slots=True)
class RerankCall:
    """One request: a query, its passages, and how they are to be answered."""

    query: str
    passages: list[str]
    model: str | None
    tei: bool
    raw: bool
    echo: bool
    top_n: int | None

    @property
    def pairs(self) -> list[Pair]:
        return [(self.query, passage) for passage in self.passages]


CUTS = (
    "max_tokens_per_doc",
    "max_tokens_per_query",
    "max_chunks_per_doc",
    "overlap_tokens",
    "truncate_prompt_tokens",
)
CHANGES = ("rank_fields", "instruction", "instructions", "instruct", "prompt", "prompt_name")
DONE: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(CUTS + CHANGES, ()),
    "truncate": (True, "end"),
    "truncation": (True,),
    "truncation_direction": ("right",),
    "parameters": ({}, {"truncate": "END"}),
    "normalize": (True,),
    "use_activation": (True,),
    "activation": (True,),
}
"""Keys of these and related protocols about scores, each with the values that ask for ours."""

COUNTS = ("top_n", "top_k")
"""How Cohere and Jina, and Voyage, say how many of the best are wanted."""


def read_call(body: bytes, *, most: int) -> RerankCall:
    """The request in a body of JSON; raises `Refusal` for what cannot be answered as asked."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "Validation", "the body is not JSON") from None
    if not isinstance(asked, dict) or ("texts" in asked) == ("documents" in asked):
        raise Refusal(422, "Validation", 'give one JSON object with "texts" or "documents"')
    tei = "texts" in asked
    given = asked["texts" if tei else "documents"]
    if not isinstance(given, list):
        raise Refusal(422, "Validation", "the passages are no list")
    if not given:
        raise Refusal(400, "Empty", "there are no passages")
    if len(given) > most:
        raise Refusal(
            422, "Validation", f"{len(given)} passages are more than the {most} of one request"
        )
    _refuse_other_scores(asked)
    passages = [_text(_unwrapped(passage), f"passage {i}") for i, passage in enumerate(given)]
    return RerankCall(
        query=_text(asked.get("query"), "query"),
        passages=passages,
        model=_of_type(asked, "model", str),
        tei=tei,
        raw=_of_type(asked, "raw_scores", bool) or False,
        echo=_of_type(asked, "return_text" if tei else "return_documents", bool) or False,
        top_n=_top_n(asked, tei=tei),
    )


def write_answer(call: RerankCall, raw: FloatArray, scale: Scale, model: str) -> Any:
    """The results, best first, equal scores in the order sent, on the scale asked for.

    Raises `Refusal` where raw scores are asked of a scorer that has none but probabilities.
    """
    if call.raw and scale != "logit":
        raise Refusal(422, "Validation", f"{model} has no raw scores: it gives a {scale}")
    order = np.argsort(-raw, kind="stable").tolist()[: call.top_n]
    scores = {i: show_score(float(raw[i]), scale, normalize=not call.raw) for i in order}
    if call.tei:
        return [
            {"index": i, "score": scores[i], **({"text": call.passages[i]} if call.echo else {})}
            for i in order
        ]
    results = [
        {
            "index": i,
            "relevance_score": scores[i],
            **({"document": {"text": call.passages[i]}} if call.echo else {}),
        }
        for i in order
    ]
    return {"model": model, "results": results}


def _refuse_other_scores(asked: dict[str, Any]) -> None:
    for key, done in DONE.items():
        value = asked.get(key)
        if value is None or (value.lower() if isinstance(value, str) else value) in done:
            continue
        raise Refusal(
            422,
            "Validation",
            f'"{key}" is not supported here with this value: how texts are joined, and cut at '
            "their right end, is set where the model is served; leave it out, and for logits give "
            '"raw_scores": true',
        )


def _unwrapped(passage: Any) -> Any:
    return passage.get("text") if isinstance(passage, dict) else passage


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Refusal(422, "Validation", f"the {what} is {type(value).__name__}, not text")
    return check_text(value, what)


def _of_type(asked: dict[str, Any], key: str, kind: type) -> Any:
    value = asked.get(key)
    if value is not None and not isinstance(value, kind):
        raise Refusal(422, "Validation", f'"{key}" is {type(value).__name__}, not {kind.__name__}')
    return value


def _top_n(asked: dict[str, Any], *, tei: bool) -> int | None:
    given = {key: asked[key] for key in COUNTS if asked.get(key) is not None}
    for key, count in given.items():
        if tei:
            raise Refusal(422, "Validation", f'"{key}" is not supported with "texts": all come')
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Refusal(422, "Validation", f'"{key}" must be a whole number from 1')
    return min(given.values(), default=None)


def answer_bytes(answer: Any) -> bytes:
    """An answer as JSON, also where a text holds half a surrogate pair."""
    return json.dumps(answer, ensure_ascii=True, allow_nan=False).encode()


def refuse_other_model(asked: str | None, served: Sequence[str]) -> None:
    """Raise `Refusal` if a model is named that is not served here."""
    if asked is not None and asked not in served:
        names = ", ".join(map(repr, served))
        raise Refusal(404, "NotFound", f"the model asked for is not served here; {names} is")
