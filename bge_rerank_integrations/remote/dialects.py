"""What servers speak, one value for each protocol: nothing here sends anything.

A row says where to ask, what to send, where the results are, what their numbers mean and how much
fits into a request. A new server is a new row. Sources are the servers' own code and documents,
named in `docs/remote.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.remote.bodies import (
    Body,
    as_pairs,
    as_text_pairs,
    named,
    under_inputs,
)
from bge_rerank_integrations.types import Scale

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One protocol. `path` may hold `{model}`; texts come from `body`, all else is said by keys.

    `logits` is what asks for logits where a server gives either, `probabilities` its opposite.
    `items` leads to the list of results; `index` is None where they come in the order sent; a 0 in
    `score` steps into a list that must hold one thing. `too_large` are the statuses that mean: send
    fewer. With `repeats_query` a request holds the query once for each passage. `self_hosted`
    servers may serve any model, so theirs is tried before it is believed.
    """

    name: str
    path: str
    body: Body
    scale: Scale
    options: Mapping[str, Any] = field(default_factory=dict)
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
    body=named("query", "texts"),
    options={"truncate": True, "return_text": False},
    logits={"raw_scores": True},
    probabilities={"raw_scores": False},
    scale="logit",
    model_key=None,
    items=(),
    score=("score",),
    max_documents=32,
    max_bytes=1_500_000,  # the server's own limit is 2 MB
    too_large=frozenset({413, 422}),  # too many texts: 413 up to release 1.8, 422 since
)
_VLLM = Dialect(
    name="vllm",
    path="/v1/rerank",  # an API key of the server does not protect /rerank
    body=named("query", "documents"),
    options={"truncate_prompt_tokens": -1},
    logits={"use_activation": False},
    probabilities={"use_activation": True},
    scale="logit",
)
_HF_TOOLKIT = Dialect(
    name="hf-toolkit",
    path="",
    body=under_inputs,
    scale="probability",
    model_key=None,
    items=(),
    score=("score",),
    key_variable="HF_TOKEN",
)
_NIM = Dialect(
    name="nim",
    path="/v1/ranking",
    body=named("query", "passages", text="text", query_text="text"),
    options={"truncate": "END"},
    scale="logit",
    needs_model=True,
    items=("rankings",),
    score=("logit",),
    max_documents=32,
    key_variable="NVIDIA_API_KEY",
)
_COHERE = Dialect(
    name="cohere",
    path="/v2/rerank",
    body=named("query", "documents"),
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
    "path": "",  # an endpoint's scoring URI is the whole address
    "deployment_header": "azureml-model-deployment",
    "status_header": "ms-azureml-model-error-statuscode",
    "key_variable": "AZUREML_ENDPOINT_KEY",
}

_ROWS = (
    _TEI,
    replace(_TEI, name="tei-predict", path="/predict", body=as_pairs, index=None,
            repeats_query=True, options={"truncate": True}, score=(0, "score")),
    _VLLM,
    replace(_VLLM, name="vllm-score", path="/v1/score", body=named("text_1", "text_2"),
            items=("data",), score=("score",)),
    Dialect(
        name="infinity",
        path="/rerank",
        body=named("query", "documents"),
        options={"return_documents": False},
        logits={"raw_scores": True},
        probabilities={"raw_scores": False},
        scale="logit",
        too_large=frozenset({413, 422}),  # 422 for more than 2048 passages
    ),
    Dialect(
        name="llama.cpp",
        path="/v1/rerank",
        body=named("query", "documents"),
        count_key="top_n",
        scale="logit",
    ),
    Dialect(
        name="xinference",
        path="/v1/rerank",
        body=named("query", "documents"),
        options={"return_documents": False},
        scale="probability",
        needs_model=True,
    ),
    Dialect(
        name="sglang",
        path="/v1/rerank",
        body=named("query", "documents"),
        options={"return_documents": False},
        scale="logit",  # the head's own number, unless the model's config names an activation
        items=(),
        score=("score",),
    ),
    _NIM,
    replace(_NIM, name="nvidia-api", path="", self_hosted=False),
    replace(_TEI, name="azure-tei", **_AZURE),
    replace(_HF_TOOLKIT, name="azure-hf", **_AZURE),
    _HF_TOOLKIT,
    Dialect(
        name="hf-pipeline",
        path="",
        body=as_text_pairs,
        repeats_query=True,
        # top_k of None gives every label, so that a model of two is seen to have two
        logits={"parameters": {"function_to_apply": "none", "top_k": None, "truncation": True}},
        probabilities={
            "parameters": {"function_to_apply": "sigmoid", "top_k": None, "truncation": True}
        },
        scale="logit",
        model_key=None,
        items=(),
        index=None,
        score=(0, "score"),
        key_variable="HF_TOKEN",
    ),
    replace(_TEI, name="sagemaker", path="/invocations"),
    _COHERE,
    _JINA,
    replace(
        _JINA,
        name="voyage",
        options={"return_documents": False, "truncation": True},
        count_key="top_k",
        items=("data",),
        key_variable="VOYAGE_API_KEY",
        hosts=("api.voyageai.com",),
    ),
    replace(
        _JINA,
        name="siliconflow",
        key_variable="SILICONFLOW_API_KEY",
        hosts=("api.siliconflow.cn", "api.siliconflow.com"),
        max_documents=100,
    ),
    replace(
        _COHERE,
        name="pinecone",
        path="/rerank",
        body=named("query", "documents", text="text"),
        options={
            "return_documents": False,
            "rank_fields": ["text"],
            "parameters": {"truncate": "END"},
        },
        items=("data",),
        score=("score",),
        key_header="Api-Key",
        key_prefix="",
        key_variable="PINECONE_API_KEY",
        headers={"X-Pinecone-Api-Version": "2025-10"},
        hosts=("api.pinecone.io",),
        max_documents=100,
    ),
    replace(
        _COHERE,
        name="cloudflare",
        path="/ai/run/{model}",
        body=named("query", "contexts", text="text"),
        model_key=None,
        count_key="top_k",
        items=("result", "response"),
        index="id",
        score=("score",),
        key_variable="CLOUDFLARE_API_TOKEN",
        hosts=("api.cloudflare.com",),
        max_documents=100,
    ),
)  # fmt: skip

DIALECTS: Mapping[str, Dialect] = {row.name: row for row in _ROWS}


def dialect_named(name: str) -> Dialect:
    """The row of that name; raises `InvalidInputError` with the names there are."""
    if name not in DIALECTS:
        raise InvalidInputError(
            f"dialect is {name!r}; it must be 'auto' or one of {', '.join(DIALECTS)}"
        )
    return DIALECTS[name]


def dialect_of_host(host: str) -> Dialect | None:
    """The row of a hosted service by its host name, if it is one."""
    return next((row for row in _ROWS if host in row.hosts), None)


def request_body(
    dialect: Dialect,
    query: str,
    passages: Sequence[str],
    *,
    model: str | None,
    logits: bool = True,
) -> dict[str, Any]:
    """The whole request as JSON; with `logits=False` probabilities are asked for instead."""
    body = dialect.body(query, passages)
    body.update(dialect.options)
    body.update(dialect.logits if logits else dialect.probabilities)
    if dialect.model_key is not None and model is not None:
        body[dialect.model_key] = model
    if dialect.count_key is not None:
        body[dialect.count_key] = len(passages)
    return body
