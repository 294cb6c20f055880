"""Rerank protocols as data: one `Dialect` per protocol. Nothing here sends anything.

A dialect says where to send a request, how to build its body, where the results are, what the
scores mean and how much fits into one request. To support a new server, add a row. `docs/remote.md`
names the server code and documentation that each row comes from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import Scale

TextFields = Callable[[str, list[str]], dict[str, Any]]
"""Builds the part of a request body that holds the query and its passages."""


def _documents(query: str, passages: list[str]) -> dict[str, Any]:
    return {"query": query, "documents": passages}


def _objects(passages: list[str]) -> list[dict[str, str]]:
    return [{"text": passage} for passage in passages]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One rerank protocol.

    `path` may contain `{model}`. `texts` builds the text fields, `options` holds the others;
    `omitted` names those that some models refuse, by the start of the model's name. `logits` asks
    for logits where a server offers both scales, `probabilities` for the other.

    `items` is the path to the list of results. `index` is None if results come in request order. In
    `score`, a 0 steps into a list of exactly one element. `too_large` lists the statuses that mean
    "send fewer passages". With `repeats_query`, each passage is sent with a copy of the query.
    `self_hosted` servers may run any model, so they are tested before their scores are used. With
    `generations`, older servers speak it too: if one refuses the `options`, they are left out; if
    one gives no logits, probabilities are requested, and are the scale.
    """

    name: str
    path: str
    scale: Scale
    texts: TextFields = _documents
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
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    key_variable: str = "BGE_RERANK_API_KEY"
    headers: Mapping[str, str] = field(default_factory=dict)
    repeats_query: bool = False
    deployment_header: str | None = None
    status_header: str | None = None
    hosts: tuple[str, ...] = ()
    max_documents: int = 64
    max_bytes: int = 4_000_000
    too_large: frozenset[int] = frozenset({413})
    self_hosted: bool = True
    generations: bool = False


_TEI = Dialect(
    name="tei",
    path="/rerank",
    scale="logit",
    texts=lambda query, passages: {"query": query, "texts": passages},
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
    options={"truncate_prompt_tokens": -1},  # refused before 0.9
    # neither before 0.10, then `activation`, and `use_activation` since 0.11.1
    logits={"activation": False, "use_activation": False},
    probabilities={"activation": True, "use_activation": True},
    generations=True,
)
_HF_TOOLKIT = Dialect(
    name="hf-toolkit",
    path="",
    scale="probability",
    texts=lambda query, passages: {
        "inputs": {"query": query, "texts": passages, "return_documents": False}
    },
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
    texts=lambda query, passages: {"query": {"text": query}, "passages": _objects(passages)},
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
    replace(_TEI, name="tei-predict", path="/predict", index=None, repeats_query=True,
            texts=lambda query, passages: {"inputs": [[query, text] for text in passages]},
            options={"truncate": True}, score=(0, "score")),
    _VLLM,
    replace(_VLLM, name="vllm-score", path="/v1/score",
            texts=lambda query, passages: {"text_1": query, "text_2": passages},
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
    replace(_HF_TOOLKIT, name="hf-pipeline", scale="logit", repeats_query=True,
            texts=lambda query, passages: {
                "inputs": [{"text": query, "text_pair": text} for text in passages]},
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
            texts=lambda query, passages: {"query": query, "documents": _objects(passages)},
            options={"return_documents": False, "rank_fields": ["text"],
                     "parameters": {"truncate": "END"}},
            omitted={"cohere-": ("parameters",)},
            items=("data",), score=("score",), key_header="Api-Key", key_prefix="",
            key_variable="PINECONE_API_KEY", headers={"X-Pinecone-Api-Version": "2025-10"},
            hosts=("api.pinecone.io",), max_documents=100),
    replace(_COHERE, name="cloudflare", path="/ai/run/{model}",
            texts=lambda query, passages: {"query": query, "contexts": _objects(passages)},
            model_key=None, count_key="top_k",
            items=("result", "response"), index="id", score=("score",),
            key_variable="CLOUDFLARE_API_TOKEN", hosts=("api.cloudflare.com",), max_documents=100),
)  # fmt: skip

DIALECTS: Mapping[str, Dialect] = {row.name: row for row in _ROWS}


def find_dialect(name: str, host: str) -> Dialect | None:
    """The dialect of this name; for `"auto"` that of the hosted service at `host`, if it is one.

    Raises `InvalidInputError` if there is none of this name.
    """
    if name == "auto":
        return next((row for row in _ROWS if host in row.hosts), None)
    if name not in DIALECTS:
        raise InvalidInputError(
            f"dialect is {name!r}; it must be 'auto' or one of {', '.join(DIALECTS)}"
        )
    return DIALECTS[name]


def check_dialect_options(dialect: Dialect, model: str | None, deployment: str | None) -> None:
    """Raise `InvalidInputError` for an option that the dialect does not have, or needs."""
    if deployment is not None and dialect.deployment_header is None:
        raise InvalidInputError(
            f"deployment is {deployment!r}, but {dialect.name} has no deployments"
        )
    if model is None and (dialect.needs_model or "{model}" in dialect.path):
        raise InvalidInputError(f"{dialect.name} serves several models; name one with model=...")


def request_body(
    dialect: Dialect, query: str, passages: list[str], *, model: str | None, logits: bool = True
) -> dict[str, Any]:
    """The request body; with `logits=False` it asks for probabilities."""
    body = dialect.texts(query, passages) | dict(dialect.options)
    body |= dialect.logits if logits else dialect.probabilities
    for prefix, keys in dialect.omitted.items():
        if model is not None and model.startswith(prefix):
            body = {key: value for key, value in body.items() if key not in keys}
    if dialect.model_key is not None and model is not None:
        body[dialect.model_key] = model
    if dialect.count_key is not None:
        body[dialect.count_key] = len(passages)
    return body
