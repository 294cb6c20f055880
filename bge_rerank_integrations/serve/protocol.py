"""Requests to the served reranker, and its answers: TEI's protocol, and Cohere's and Jina's.

Values in, values out; nothing here serves anything. The protocol is recognised by the request's
keys, not by its path: TEI sends "texts", Cohere, Jina and vLLM send "documents". A known option
that asks for scores we do not compute is refused, never ignored.

Sources: text-embeddings-inference 1.9 (router/src/http: types.rs, server.rs), the API references of
Cohere's /v2/rerank and Jina's /v1/rerank, vLLM 0.32 (entrypoints/pooling).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bge_rerank_integrations.base.contract import check_text, show_score
from bge_rerank_integrations.types import FloatArray, Pair, Scale


class Refusal(Exception):
    """An error answer: its HTTP status, TEI's error type, and a message without any text."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def body(self) -> dict[str, str]:
        """The message under each key that clients read."""
        message = str(self)
        return {"error": message, "error_type": self.kind, "message": message, "detail": message}


def invalid(message: str) -> Refusal:
    """The refusal of a request that is well-formed but cannot be answered."""
    return Refusal(422, "Validation", message)


@dataclass(frozen=True, slots=True)
class RerankCall:
    """One request: a query, its passages, and the form of the answer."""

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


UNSUPPORTED = (
    *("max_tokens_per_doc", "max_tokens_per_query", "max_chunks_per_doc", "overlap_tokens"),
    *("rank_fields", "instruction", "instructions", "instruct", "prompt", "prompt_name"),
)
ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(UNSUPPORTED, ()),
    "truncate": (True, "end"),
    "truncation": (True,),
    "truncation_direction": ("right",),
    "truncate_prompt_tokens": (-1,),  # vLLM: at the model's own length
    "parameters": ({}, {"truncate": "END"}),
    "normalize": (True,),
}
"""Options of these and related protocols that change scores, with the values that mean ours."""

RAW_SCORES: Mapping[str, bool] = {"raw_scores": True, "use_activation": False, "activation": False}
"""Options, each with the value that asks for logits: TEI's, and those of vLLM's releases."""

COUNTS = ("top_n", "top_k")
"""How many of the best results to return: Cohere's and Jina's option, and Voyage's."""


def read_call(body: bytes, *, max_passages: int) -> RerankCall:
    """The request in a JSON body; raises `Refusal` if it cannot be answered as asked."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "Validation", "the body is not JSON") from None
    if not isinstance(asked, dict) or ("texts" in asked) == ("documents" in asked):
        raise invalid('send one JSON object with "texts" or "documents"')
    tei = "texts" in asked
    given = asked["texts" if tei else "documents"]
    if not isinstance(given, list):
        raise invalid("the passages are not a list")
    if not given:
        raise Refusal(400, "Empty", "there are no passages")
    if len(given) > max_passages:
        raise invalid(f"{len(given)} passages are more than the {max_passages} of one request")
    for key, accepted in ACCEPTED.items():
        value = asked.get(key)
        if value is None or (value.lower() if isinstance(value, str) else value) in accepted:
            continue
        raise invalid(
            f'"{key}" is not supported here with this value: how texts are joined, and truncated '
            'on the right, is set where the model is served; omit it, and send "raw_scores": true '
            "for logits"
        )
    texts = [passage.get("text") if isinstance(passage, dict) else passage for passage in given]
    asked_raw = {key: _of_type(asked, key, bool) for key in RAW_SCORES}
    return RerankCall(
        query=_text(asked.get("query"), "query"),
        passages=[_text(text, f"passage {i}") for i, text in enumerate(texts)],
        model=_of_type(asked, "model", str),
        tei=tei,
        raw=any(asked_raw[key] is wanted for key, wanted in RAW_SCORES.items()),
        echo=_of_type(asked, "return_text" if tei else "return_documents", bool) or False,
        top_n=_top_n(asked, tei=tei),
    )


def write_answer(call: RerankCall, raw: FloatArray, scale: Scale, model: str) -> Any:
    """The results on the requested scale, best first; ties keep the request's order.

    Raises `Refusal` if raw scores are requested of a scorer that gives only probabilities.
    """
    if call.raw and scale != "logit":
        raise invalid(f"{model} has no raw scores: it gives a {scale}")
    results = []
    for i in np.argsort(-raw, kind="stable").tolist()[: call.top_n]:
        score = show_score(float(raw[i]), scale, normalize=not call.raw)
        text = call.passages[i]
        if call.tei:
            results.append({"index": i, "score": score} | ({"text": text} if call.echo else {}))
        else:
            document = {"document": {"text": text}} if call.echo else {}
            results.append({"index": i, "relevance_score": score} | document)
    return results if call.tei else {"model": model, "results": results}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise invalid(f"the {what} is {type(value).__name__}, not text")
    return check_text(value, what)


def _of_type(asked: dict[str, Any], key: str, kind: type) -> Any:
    value = asked.get(key)
    if value is not None and not isinstance(value, kind):
        raise invalid(f'"{key}" is {type(value).__name__}, not {kind.__name__}')
    return value


def _top_n(asked: dict[str, Any], *, tei: bool) -> int | None:
    given = {key: asked[key] for key in COUNTS if asked.get(key) is not None}
    for key, count in given.items():
        if tei:
            raise invalid(f'"{key}" is not supported with "texts": all results are returned')
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise invalid(f'"{key}" must be a whole number from 1')
    return min(given.values(), default=None)


def answer_bytes(answer: Any) -> bytes:
    """An answer as JSON; escapes keep a lone surrogate valid."""
    return json.dumps(answer, ensure_ascii=True, allow_nan=False).encode()


def refuse_other_model(asked: str | None, served: Sequence[str]) -> None:
    """Raise `Refusal` if the request names a model that is not served here."""
    if asked is not None and asked not in served:
        names = ", ".join(map(repr, served))
        raise Refusal(404, "NotFound", f"the requested model is not served here; {names} is")
