"""Rerank protocols as data: one `Dialect` per protocol. Nothing here sends anything.

A dialect says where to send a request, how to build its body, where the results are, what the
scores mean and how much fits into one request. To support a new server, add a row. `docs/remote.md`
names the server code and documentation that each row comes from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import Scale

MEGABYTE = 1_000_000

TextFields = Callable[[str, Sequence[str]], dict[str, Any]]
"""Builds the part of a request body that holds the query and its passages."""


def _fields(
    query_key: str, passages_key: str, *, wrap: str | None = None, wrap_query: bool = False
) -> TextFields:
    """Texts under these keys; with `wrap`, each passage is an object with that key."""

    def build(query: str, passages: Sequence[str]) -> dict[str, Any]:
        return {
            query_key: {wrap: query} if wrap_query else query,
            passages_key: [{wrap: text} for text in passages] if wrap else list(passages),
        }

    return build


_DOCUMENTS = _fields("query", "documents")


def _pairs(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return {"inputs": [[query, text] for text in passages]}


def _text_pairs(query: str, passages: Sequence[str]) -> dict[str, Any]:
    """Input of the transformers text-classification pipeline."""
    return {"inputs": [{"text": query, "text_pair": text} for text in passages]}


def _sentence_ranking(query: str, passages: Sequence[str]) -> dict[str, Any]:
    """Input of the Hugging Face inference toolkit's sentence-ranking task."""
    return {"inputs": {"query": query, "texts": list(passages), "return_documents": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One rerank protocol.

    `path` may contain `{model}`. `texts` builds the text fields, `options` holds the others;
    `omitted` names those that some models refuse, by the start of the model's name. `logits` asks
    for logits where a server offers both scales, `probabilities` for the other.

    `items` is the path to the list of results. `index` is None if results come in request order. In
    `score`, a 0 steps into a list of exactly one element. `too_large` lists the statuses that mean
    "send fewer passages". With `repeats_query`, each passage is sent with a copy of the query.
    `self_hosted` servers may run any model, so they are tested before their scores are used.
    """

    name: str
    path: str
    scale: Scale
    texts: TextFields = _DOCUMENTS
    options: Mapping[str, Any] = field(default_factory=dict)
    omitted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    logits: Mapping[str, Any] = field(default_factory=dict)
    probabilities: Mapping[str, Any] = field(default_factory=dict)
    model_key: str | None = "model"
    needs_model: bool = False
    count_key: str | None = None
    items: tuple[str, ...] = ("results",)
    index: str | None = "index"
    score: tuple[str | int, ...] = ("relevance_score",)
    order_breaks_ties: bool = False
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    key_variable: str = "BGE_RERANK_API_KEY"
    headers: Mapping[str, str] = field(default_factory=dict)
    repeats_query: bool = False
    deployment_header: str | None = None
    status_header: str | None = None
    hosts: tuple[str, ...] = ()
    max_documents: int = 64
    max_bytes: int = 4 * MEGABYTE
    too_large: frozenset[int] = frozenset({413})
    self_hosted: bool = True


_TEI = Dialect(
    name="tei",
    path="/rerank",
    scale="logit",
    texts=_fields("query", "texts"),
    options={"truncate": True, "return_text": False},
    logits={"raw_scores": True},
    probabilities={"raw_scores": False},
    model_key=None,
    items=(),
    score=("score",),
    max_documents=32,
    max_bytes=1_500_000,  # the server's own limit is 2 MB
    too_large=frozenset({413, 422}),  # too many texts: 413 up to release 1.8, 422 since
)
_VLLM = Dialect(
    name="vllm",
    path="/v1/rerank",  # the server's API key does not protect /rerank
    scale="logit",
    options={"truncate_prompt_tokens": -1},
    logits={"use_activation": False},
    probabilities={"use_activation": True},
)
_HF_TOOLKIT = Dialect(
    name="hf-toolkit",
    path="",
    scale="probability",
    texts=_sentence_ranking,
    model_key=None,
    items=(),
    score=("score",),
    key_variable="HF_TOKEN",
)
# top_k None returns every label, so that a model with two labels is noticed
_PIPELINE: dict[str, Any] = {"top_k": None, "truncation": True}
_NIM = Dialect(
    name="nim",
    path="/v1/ranking",
    scale="logit",
    texts=_fields("query", "passages", wrap="text", wrap_query=True),
    options={"truncate": "END"},
    needs_model=True,
    items=("rankings",),
    score=("logit",),
    max_documents=32,
    key_variable="NVIDIA_API_KEY",
)
_COHERE = Dialect(
    name="cohere",
    path="/v2/rerank",
    scale="probability",
    needs_model=True,
    count_key="top_n",
    order_breaks_ties=True,
    key_variable="COHERE_API_KEY",
    hosts=("api.cohere.com",),
    max_documents=1000,
    self_hosted=False,
)
_JINA = replace(
    _COHERE,
    name="jina",
    path="/v1/rerank",
    options={"return_documents": False},
    key_variable="JINA_API_KEY",
    hosts=("api.jina.ai",),
)
_AZURE: dict[str, Any] = {
    "path": "",  # base_url is the endpoint's whole scoring URI
    "deployment_header": "azureml-model-deployment",
    "status_header": "ms-azureml-model-error-statuscode",
    "key_variable": "AZUREML_ENDPOINT_KEY",
}

_ROWS = (
    _TEI,
    replace(_TEI, name="tei-predict", path="/predict", texts=_pairs, index=None,
            repeats_query=True, options={"truncate": True}, score=(0, "score")),
    _VLLM,
    replace(_VLLM, name="vllm-score", path="/v1/score", texts=_fields("text_1", "text_2"),
            items=("data",), score=("score",)),
    Dialect(name="infinity", path="/rerank", scale="logit", options={"return_documents": False},
            logits={"raw_scores": True}, probabilities={"raw_scores": False},
            too_large=frozenset({413, 422})),  # 422 for more than 2048 passages
    Dialect(name="llama.cpp", path="/v1/rerank", scale="logit", count_key="top_n"),
    Dialect(name="xinference", path="/v1/rerank", scale="probability", needs_model=True,
            options={"return_documents": False}),
    # a logit unless the model's config names an activation
    Dialect(name="sglang", path="/v1/rerank", scale="logit", options={"return_documents": False},
            items=(), score=("score",)),
    _NIM,
    replace(_NIM, name="nvidia-api", path="", self_hosted=False),
    replace(_TEI, name="azure-tei", **_AZURE),
    replace(_HF_TOOLKIT, name="azure-hf", **_AZURE),
    _HF_TOOLKIT,
    replace(_HF_TOOLKIT, name="hf-pipeline", texts=_text_pairs, scale="logit", repeats_query=True,
            logits={"parameters": {"function_to_apply": "none", **_PIPELINE}},
            probabilities={"parameters": {"function_to_apply": "sigmoid", **_PIPELINE}},
            index=None, score=(0, "score")),
    replace(_TEI, name="sagemaker", path="/invocations"),
    _COHERE,
    _JINA,
    replace(_JINA, name="voyage", options={"return_documents": False, "truncation": True},
            count_key="top_k", items=("data",), key_variable="VOYAGE_API_KEY",
            hosts=("api.voyageai.com",)),
    replace(_JINA, name="siliconflow", key_variable="SILICONFLOW_API_KEY", max_documents=100,
            hosts=("api.siliconflow.cn", "api.siliconflow.com")),
    replace(_COHERE, name="pinecone", path="/rerank",
            texts=_fields("query", "documents", wrap="text"),
            options={"return_documents": False, "rank_fields": ["text"],
                     "parameters": {"truncate": "END"}},
            omitted={"cohere-": ("parameters",)},
            items=("data",), score=("score",), key_header="Api-Key", key_prefix="",
            key_variable="PINECONE_API_KEY", headers={"X-Pinecone-Api-Version": "2025-10"},
            hosts=("api.pinecone.io",), max_documents=100),
    replace(_COHERE, name="cloudflare", path="/ai/run/{model}",
            texts=_fields("query", "contexts", wrap="text"), model_key=None, count_key="top_k",
            items=("result", "response"), index="id", score=("score",),
            key_variable="CLOUDFLARE_API_TOKEN", hosts=("api.cloudflare.com",), max_documents=100),
)  # fmt: skip

DIALECTS: Mapping[str, Dialect] = {row.name: row for row in _ROWS}


def dialect_named(name: str) -> Dialect:
    """The dialect with this name; raises `InvalidInputError` if there is none."""
    if name not in DIALECTS:
        raise InvalidInputError(
            f"dialect is {name!r}; it must be 'auto' or one of {', '.join(DIALECTS)}"
        )
    return DIALECTS[name]


def dialect_of_host(host: str) -> Dialect | None:
    """The dialect of a hosted service, by its host name."""
    return next((row for row in _ROWS if host in row.hosts), None)


def request_body(
    dialect: Dialect,
    query: str,
    passages: Sequence[str],
    *,
    model: str | None,
    logits: bool = True,
) -> dict[str, Any]:
    """The request body; with `logits=False` it asks for probabilities."""
    body: dict[str, Any] = dialect.texts(query, passages) | dict(dialect.options)
    body |= dialect.logits if logits else dialect.probabilities
    for prefix, keys in dialect.omitted.items():
        if model is not None and model.startswith(prefix):
            body = {key: value for key, value in body.items() if key not in keys}
    if dialect.model_key is not None and model is not None:
        body[dialect.model_key] = model
    if dialect.count_key is not None:
        body[dialect.count_key] = len(passages)
    return body
