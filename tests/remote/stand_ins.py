"""Small servers that speak each protocol on a loopback socket: stand-ins, not the real ones.

Each is written from its server's wire format, apart from the client's table: where it listens,
what it demands, in which order and shape it answers, what it refuses. A pair's logit is how many
words of the query, repeated ones counted, its passage has, minus 1.5; a probability is its sigmoid.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

KEY = "sk-stand-in-5b1e"
MODEL = "BAAI/bge-reranker-v2-m3"

Texts = tuple[str, list[str]]
Item = Callable[[int, float], Any]


class Refused(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def logit(query: str, passage: str) -> float:
    words = set(passage.split())
    return sum(word in words for word in query.split()) - 1.5


def probability(query: str, passage: str) -> float:
    return 1 / (1 + math.exp(-logit(query, passage)))


def float32_probability(query: str, passage: str) -> float:
    return float(np.float32(probability(query, passage)))


@dataclass(frozen=True)
class StandIn:
    """One protocol from the server's side."""

    route: str
    texts: Callable[[Any], Texts]
    shape: Callable[[list[Any]], Any]
    item: Item = lambda index, score: {"index": index, "relevance_score": score}
    # the key of the request that switches, and what it holds for logits
    raw: tuple[str, Any] | None = None
    plain: Callable[[str, str], float] = probability
    sorted: bool = True
    ties_reversed: bool = False
    needs: tuple[str, ...] = ()
    most: tuple[int, int] = (10_000, 400)  # passages, and the status for more
    key_header: tuple[str, str] = ("Authorization", "Bearer ")
    pages: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""  # what the caller's address ends with

    def answer(self, body: dict[str, Any]) -> Any:
        missing = [key for key in self.needs if key not in body]
        if missing:
            raise Refused(422, {"detail": [{"type": "missing", "loc": ["body", missing[0]]}]})
        query, passages = self.texts(body)
        if len(passages) > self.most[0]:
            status = self.most[1]
            said = f"batch size {len(passages)} > maximum allowed batch size {self.most[0]}"
            raise Refused(status, {"error": said, "error_type": "Validation"})
        gives_logits = self.raw is not None and body.get(self.raw[0]) == self.raw[1]
        score = logit if gives_logits else self.plain
        scores = [score(query, passage) for passage in passages]
        order = list(range(len(scores)))
        if self.sorted:
            if self.ties_reversed:
                order.reverse()
            order.sort(key=lambda index: -scores[index])
        items = [self.item(index, scores[index]) for index in order]
        return self.shape(items[: body.get("top_n") or body.get("top_k") or None])


def _of(query: str, passages: str) -> Callable[[Any], Texts]:
    def texts(body: Any) -> Texts:
        given = body[passages]
        if not isinstance(body[query], str) or not all(isinstance(text, str) for text in given):
            raise Refused(422, {"detail": "string expected"})
        return body[query], given

    return texts


def _pairs(body: Any) -> Texts:
    queries = {query for query, _ in body["inputs"]}
    assert len(queries) == 1
    return queries.pop(), [passage for _, passage in body["inputs"]]


def _text_pairs(body: Any) -> Texts:
    queries = {pair["text"] for pair in body["inputs"]}
    assert len(queries) == 1
    return queries.pop(), [pair["text_pair"] for pair in body["inputs"]]


def _wrapped(key: str) -> Callable[[Any], Texts]:
    def texts(body: Any) -> Texts:
        query = body["query"]
        return query["text"] if isinstance(query, dict) else query, [p["text"] for p in body[key]]

    return texts


def _plain_item(index: int, score: float) -> Any:
    return {"index": index, "score": score}


def _labelled(index: int, score: float) -> Any:
    return [{"label": "LABEL_0", "score": score}]


def _echoing(index: int, score: float) -> Any:
    return {"index": index, "relevance_score": score, "document": {"text": "x" * 50}}


def _under(key: str, **more: Any) -> Callable[[list[Any]], Any]:
    return lambda items: {**more, key: items}


_TEI = StandIn(
    "/rerank",
    _of("query", "texts"),
    list,
    item=_plain_item,
    raw=("raw_scores", True),
    plain=float32_probability,
    ties_reversed=True,
    most=(32, 422),
    pages={
        "/info": {
            "model_id": MODEL,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_client_batch_size": 32,
            "max_input_length": 8192,
            "version": "1.9.3",
        }
    },
)
_VLLM = StandIn(
    "/v1/rerank",
    _of("query", "documents"),
    _under("results", id="rerank-1", usage={"total_tokens": 7}),
    item=_echoing,
    raw=("use_activation", False),
    pages={"/v1/models": {"object": "list", "data": [{"id": MODEL, "owned_by": "vllm"}]}},
)
_COHERE = StandIn(
    "/v2/rerank",
    _of("query", "documents"),
    _under("results", meta={"api_version": {"version": "2"}}),
    needs=("model",),
)

STAND_INS: dict[str, StandIn] = {
    "tei": _TEI,
    "tei-predict": replace(
        _TEI, route="/predict", texts=_pairs, item=_labelled, sorted=False, ties_reversed=False
    ),
    "vllm": _VLLM,
    "vllm-score": replace(
        _VLLM,
        route="/v1/score",
        texts=_of("text_1", "text_2"),
        shape=_under("data", object="list"),
        item=_plain_item,
        sorted=False,
    ),
    "infinity": StandIn(
        "/rerank",
        _of("query", "documents"),
        _under("results", object="rerank"),
        raw=("raw_scores", True),
        plain=float32_probability,
        most=(2048, 422),
        pages={
            "/models": {"data": [{"id": MODEL, "owned_by": "infinity", "capabilities": ["rerank"]}]}
        },
    ),
    "llama.cpp": StandIn(
        "/v1/rerank",
        _of("query", "documents"),
        _under("results", object="list", model="m.gguf"),
        plain=logit,
        pages={"/v1/models": {"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]}},
    ),
    "xinference": StandIn(
        "/v1/rerank",
        _of("query", "documents"),
        _under("results", id="1", meta=None),
        ties_reversed=True,
        needs=("model",),
        pages={
            "/v1/models": {
                "data": [{"id": MODEL, "model_type": "rerank", "address": "127.0.0.1:1"}]
            }
        },
    ),
    "sglang": StandIn(
        "/v1/rerank",
        _of("query", "documents"),
        list,
        item=lambda index, score: {"index": index, "score": score, "meta_info": {"id": "1"}},
        plain=logit,
        pages={"/v1/models": {"data": [{"id": MODEL, "owned_by": "sglang"}]}},
    ),
    "nim": StandIn(
        "/v1/ranking",
        _wrapped("passages"),
        _under("rankings", usage={"prompt_tokens": 3}),
        item=lambda index, score: {"index": index, "logit": score},
        plain=logit,
        needs=("model",),
        most=(512, 422),
    ),
    "nvidia-api": StandIn(
        "/v1/retrieval/nvidia/model/reranking",
        _wrapped("passages"),
        _under("rankings"),
        item=lambda index, score: {"index": index, "logit": score},
        plain=logit,
        needs=("model",),
        base="/v1/retrieval/nvidia/model/reranking",
    ),
    "azure-tei": replace(_TEI, route="/score", base="/score"),
    "azure-hf": StandIn(
        "/score",
        lambda body: _of("query", "texts")(body["inputs"]),
        list,
        item=_plain_item,
        base="/score",
    ),
    "hf-toolkit": StandIn(
        "/", lambda body: _of("query", "texts")(body["inputs"]), list, item=_plain_item
    ),
    "hf-pipeline": StandIn(
        "/",
        _text_pairs,
        list,
        item=_labelled,
        raw=("parameters", {"function_to_apply": "none", "top_k": None, "truncation": True}),
        sorted=False,
    ),
    "sagemaker": replace(_TEI, route="/invocations"),
    "cohere": _COHERE,
    "jina": replace(_COHERE, route="/v1/rerank"),
    "voyage": replace(_COHERE, route="/v1/rerank", shape=_under("data", object="list")),
    "siliconflow": replace(_COHERE, route="/v1/rerank", shape=_under("results", id="1")),
    "pinecone": replace(
        _COHERE,
        route="/rerank",
        texts=_wrapped("documents"),
        shape=_under("data", model="bge-reranker-v2-m3"),
        item=_plain_item,
        needs=("model", "rank_fields", "parameters"),
        most=(100, 400),
        key_header=("Api-Key", ""),
    ),
    "cloudflare": replace(
        _COHERE,
        route="/client/v4/accounts/1/ai/run/@cf/baai/bge-reranker-base",
        texts=_wrapped("contexts"),
        shape=lambda items: {"success": True, "errors": [], "result": {"response": items}},
        item=lambda index, score: {"id": index, "score": score},
        needs=(),
        base="/client/v4/accounts/1",
    ),
}
MODELS = {"cloudflare": "@cf/baai/bge-reranker-base"}
