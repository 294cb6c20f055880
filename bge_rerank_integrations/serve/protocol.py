"""Requests to the served reranker, and its answers: TEI's protocol, and that of Cohere and Jina.

The protocol is recognised by the request's keys, not by its path: TEI sends "texts", Cohere, Jina,
vLLM and Infinity send "documents", NVIDIA's NIM "passages" and Mixedbread "input". An option that
asks for other scores than ours is refused, never ignored; one that cannot change the answer is
accepted.

Sources: text-embeddings-inference 1.9 (router/src/http: types.rs, server.rs), the API references of
Cohere's /v2/rerank, Jina's /v1/rerank and SiliconFlow's, vLLM 0.32 (entrypoints/pooling), Infinity
0.0.77 (fastapi_schemas/pymodels.py), and the clients voyageai 0.3.7, mixedbread 0.54 and
llama-index-postprocessor-nvidia-rerank 0.7.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bge_rerank_integrations.base.contract import check_text, show_score
from bge_rerank_integrations.errors import missing_extra
from bge_rerank_integrations.types import FloatArray, Pair, PairLength, Scale

with missing_extra("ray"):
    from starlette.responses import Response

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/v1/ranking", "/v1/reranking")
MODEL_PATHS = ("/v1/models", "/models")
PATHS = (*RERANK_PATHS, *MODEL_PATHS, "/info", "/health")
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "5"},
}


class Refusal(Exception):
    """An error answer: its HTTP status, TEI's error type, and a message without any text."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, kind, message)
        self.status, self.kind, self.message = status, kind, message

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, str]:
        """The message under each key that clients read."""
        error = dict.fromkeys(("error", "message", "detail"), self.message)
        return error | {"error_type": self.kind}


def unavailable() -> Refusal:
    """The refusal of a request that may succeed later."""
    return Refusal(503, "Unavailable", "the model is not available; try again later")


def invalid(message: str) -> Refusal:
    """The refusal of a request that is well-formed but cannot be answered."""
    return Refusal(422, "Validation", message)


@dataclass(frozen=True, slots=True)
class Form:
    """How a protocol answers: the keys of its results (None: a bare list), scores and texts.

    `echo` is the option that asks for the texts, and `echoes` its default.
    """

    results: str | None
    score: str
    text: tuple[str, ...]
    echo: str
    echoes: bool = False
    logits: bool = False


TEI = Form(None, "score", ("text",), "return_text")
FORMS: Mapping[str, Form] = {
    "texts": TEI,
    # Cohere and Jina; vLLM and Infinity always return the texts, and Jina by default
    "documents": Form(
        "results", "relevance_score", ("document", "text"), "return_documents", echoes=True
    ),
    "passages": Form("rankings", "logit", ("text",), "return_text", logits=True),  # NVIDIA's NIM
    "input": Form("data", "score", ("input",), "return_input"),  # Mixedbread
}
"""The forms by the key of the passages in a request."""

VOYAGE = Form("data", "relevance_score", ("document",), "return_documents")
"""The form of "documents" with "top_k" and without "top_n"."""


@dataclass(frozen=True, slots=True)
class RerankCall:
    """One request: a query, its passages, and the form of the answer.

    `limits` are options that change the scores of some texts only, see `refuse_changed_texts`.
    """

    query: str
    passages: list[str]
    model: str | None
    form: Form
    raw: bool
    echo: bool
    top_n: int | None
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        return [(self.query, passage) for passage in self.passages]


OURS: Mapping[str, tuple[Any, ...]] = {
    "truncate": (True, "end"),
    "truncation": (True,),
    "truncation_direction": ("right",),
    "truncate_prompt_tokens": (-1,),  # vLLM: at the model's own length
    "normalize": (True,),
    "rewrite_query": (False,),  # Mixedbread
    "rank_fields": (["text"],),  # the only one that is read
    **dict.fromkeys(("instruction", "instructions", "instruct"), ()),
    **dict.fromkeys(("prompt", "prompt_name"), ()),
}
"""Options of these and related protocols that change scores, with the values that match ours."""

UNCUT: Mapping[str, tuple[Any, ...]] = {
    "truncate": (False, "none", "start"),
    "truncation": (False,),
    "truncation_direction": ("left",),
}
"""Values of such options that matter only for texts that the model does not read in full."""

TOKENS = {"max_tokens_per_doc": 1, "max_tokens_per_query": 1}
CHUNKS = {"max_chunks_per_doc": 1, "overlap_tokens": 0}
"""Options that are numbers, with their minimum: the tokens and the chunks to read of a text."""

RAW_SCORES: Mapping[str, bool] = {"raw_scores": True, "use_activation": False, "activation": False}
"""Options, each with the value that asks for logits: TEI's, and those of vLLM's releases."""

COUNTS = ("top_n", "top_k")
"""How many of the best results to return: as named by Cohere and Jina, by Voyage and Mixedbread."""


def read_call(body: bytes, *, max_passages: int) -> RerankCall:
    """The request in a JSON body; raises `Refusal` if it cannot be answered."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "Validation", "the body is not JSON") from None
    keys = [key for key in FORMS if key in request] if isinstance(request, dict) else []
    if len(keys) != 1:
        raise invalid(
            'send one JSON object with "texts" or "documents" ("passages" for clients of NVIDIA\'s '
            'NIM, "input" for those of Mixedbread)'
        )
    form = FORMS[keys[0]]
    if "documents" in request and "top_k" in request and "top_n" not in request:
        form = VOYAGE
    given = request[keys[0]]
    if not isinstance(given, list):
        raise invalid("the passages are not a list")
    if not given:
        raise Refusal(400, "Empty", "there are no passages")
    if len(given) > max_passages:
        raise invalid(f"{len(given)} passages are more than the {max_passages} of one request")
    raw = [_flag(request, key) is wanted for key, wanted in RAW_SCORES.items()]
    echo = _flag(request, form.echo)
    return RerankCall(
        query=_text(request.get("query"), "query"),
        passages=[_text(text, f"passage {i}") for i, text in enumerate(given)],
        model=_of_type(request, "model", str) or None,
        form=form,
        raw=form.logits or any(raw),
        echo=form.echoes if echo is None else echo,
        # 0, vLLM's default, means all
        top_n=min(filter(None, (_number(request, key, 0) for key in COUNTS)), default=None),
        limits=_limits(request),
    )


def _limits(request: dict[str, Any]) -> dict[str, Any]:
    """The options that change the scores of some texts only; raises for those that change all."""
    found: dict[str, Any] = {}
    parameters = _of_type(request, "parameters", dict) or {}
    for key, value in [*request.items(), *parameters.items()]:
        plain = _plain(value)
        if value is None or plain in OURS.get(key, (plain,)):
            continue
        if plain not in UNCUT.get(key, ()):
            raise invalid(
                f'"{key}" is not supported here with this value: how texts are joined, and cut on '
                'the right, is set where the model is served; omit it, and send "raw_scores": true '
                "for logits"
            )
        found[key] = plain
    for key, low in (TOKENS | CHUNKS).items():
        number = _number(request, key, low)
        if number is not None:
            found[key] = number
    return found


def refuse_changed_texts(
    call: RerankCall, lengths: Sequence[PairLength] | None, *, windows: bool
) -> None:
    """Raise `Refusal` if one of the call's limits would change a score.

    `lengths` are None if the scorer cannot measure texts; `windows` if it reads passages that are
    too long in parts instead of cutting them.
    """
    if call.limits and lengths is None:
        keys = ", ".join(f'"{key}"' for key in call.limits)
        raise invalid(f"{keys}: the model cannot tell whether this changes a score; omit it")
    for key, value in call.limits.items():
        for place, length in enumerate(lengths or ()):
            long_query = length.query > length.query_limit
            long_passage = length.passage > length.passage_limit
            query, passage = tokens_read(length, windows=windows)
            if key in TOKENS:
                changes = (query if key == "max_tokens_per_query" else passage) > value
            elif key in CHUNKS:
                changes = windows and long_passage
            else:
                changes = long_query or (long_passage and not windows)
            if changes:
                raise invalid(
                    f'"{key}" would change the score of passage {place}: the model reads {query} '
                    f"of {length.query} tokens of the query, and {passage} of {length.passage} of "
                    "the passage; omit the option, or shorten the texts"
                )


def tokens_read(length: PairLength, *, windows: bool) -> tuple[int, int]:
    """The tokens of query and passage that the model reads."""
    passage = length.passage if windows else min(length.passage, length.passage_limit)
    return min(length.query, length.query_limit), passage


def write_answer(call: RerankCall, raw: FloatArray, scale: Scale, model: str, tokens: int) -> Any:
    """The results on the requested scale, best first; ties keep the request's order.

    `tokens` is the number that the model read. Raises `Refusal` if raw scores are requested of a
    scorer that gives only probabilities.
    """
    if call.raw and scale != "logit":
        raise invalid(f"{model} has no raw scores: it gives a {scale}")
    results = []
    for i in np.argsort(-raw, kind="stable").tolist()[: call.top_n]:
        score = show_score(float(raw[i]), scale, normalize=not call.raw)
        text: Any = call.passages[i]
        for key in reversed(call.form.text):
            text = {key: text}
        results.append({"index": i, call.form.score: score} | (text if call.echo else {}))
    if call.form.results is None:
        return results
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "rerank",
        "created": int(time.time()),
        "model": model,
        call.form.results: results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 0},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        },
    }


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """The names of the model as OpenAI's /v1/models lists them."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "BAAI"} for name in names]
    return {"object": "list", "data": models}


def _text(value: Any, what: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise invalid(f"the {what} is {type(text).__name__}, not text")
    return check_text(text, what)


def _plain(value: Any) -> Any:
    """A text in lower case, or as the truth value that it names; other values unchanged."""
    text = value.lower() if isinstance(value, str) else value
    return {"true": True, "false": False}.get(text, text) if isinstance(text, str) else text


def _of_type(request: dict[str, Any], key: str, kind: type) -> Any:
    value = request.get(key)
    if value is not None and not isinstance(value, kind):
        raise invalid(f'"{key}" is {type(value).__name__}, not {kind.__name__}')
    return value


def _flag(request: dict[str, Any], key: str) -> bool | None:
    flag: bool | None = _of_type({key: _plain(request.get(key))}, key, bool)
    return flag


def _number(request: dict[str, Any], key: str, low: int) -> int | None:
    value = request.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise invalid(f'"{key}" must be a whole number from {low}')
    return value


def answer_bytes(answer: Any) -> bytes:
    """An answer as JSON; escapes keep a lone surrogate valid."""
    return json.dumps(answer, ensure_ascii=True, allow_nan=False).encode()


def respond(answer: bytes | Refusal) -> Response:
    """The HTTP response with this JSON, or with this error."""
    if isinstance(answer, bytes):
        return Response(answer, media_type="application/json")
    status, body = answer.status, answer_bytes(answer.body())
    return Response(body, status, HEADERS.get(status), media_type="application/json")


def refuse_other_model(requested: str | None, served: Sequence[str]) -> None:
    """Raise `Refusal` if the request names a model that is not served here."""
    if requested is not None and requested not in served:
        names = ", ".join(map(repr, served))
        raise Refusal(404, "NotFound", f"the requested model is not served here; {names} is")
