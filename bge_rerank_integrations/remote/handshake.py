"""Which server stands at an address, from what it says of itself.

Values in, values out: who asks the server is `scorer.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bge_rerank_integrations.errors import RemoteRefused, UnsupportedModel
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is known of a server: the dialect it speaks, its model's name, passages in a request."""

    dialect: str
    model: str | None
    max_documents: int


REMEDY = "name that one, or give the address in place of the model to take what is there"

Reading = Callable[[Any, str | None, str], ServerInfo | None]
"""From a page, the model asked for and the words for messages to what it says, if it is known."""


def _text_embeddings_inference(page: Any, model: str | None, source: str) -> ServerInfo | None:
    if not isinstance(page, dict) or not {"model_id", "model_type"} <= page.keys():
        return None
    kinds = page["model_type"]
    if "reranker" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise UnsupportedModel(
            f"{source} is text-embeddings-inference with a model that is no reranker but "
            f"{_words(kinds)}; start it with a reranker"
        )
    served = _text(page["model_id"])
    # a path says where the server found the model, not which it is
    if model is not None and served and served[0] not in "/." and served.lower() != model.lower():
        raise RemoteRefused(f"{source} does not serve {model!r}; it serves {served!r}; {REMEDY}")
    most = page.get("max_client_batch_size")
    limit = most if isinstance(most, int) and most > 0 else DIALECTS["tei"].max_documents
    return ServerInfo("tei", served, limit)


def _list_of_models(page: Any, model: str | None, source: str) -> ServerInfo | None:
    """The list that servers with OpenAI's routes give, each with marks of its own."""
    listed = page.get("data") if isinstance(page, dict) else None
    if not isinstance(listed, list):
        return None
    models = [entry for entry in listed if isinstance(entry, dict)]
    dialect = next(filter(None, map(_dialect_of_entry, models)), None)
    if dialect is None:
        return None
    entry = _entry(models, model, source, strict=dialect.name != "llama.cpp")
    name = _text(entry.get("id"))
    kinds = entry.get("capabilities") or entry.get("model_type")
    if kinds is not None and "rerank" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise UnsupportedModel(
            f"{source} is {dialect.name} with a model that is no reranker but {_words(kinds)}; "
            "serve a reranker or name the model that is one"
        )
    return ServerInfo(dialect.name, name, dialect.max_documents)


def _dialect_of_entry(entry: Mapping[str, Any]) -> Dialect | None:
    owner = {"vllm": "vllm-score", "llamacpp": "llama.cpp"}.get(
        str(entry.get("owned_by")), str(entry.get("owned_by"))
    )
    if owner in ("vllm-score", "llama.cpp", "sglang", "infinity"):
        return DIALECTS[owner]
    return DIALECTS["xinference"] if {"model_type", "address"} <= entry.keys() else None


def _entry(
    models: list[dict[str, Any]], model: str | None, source: str, *, strict: bool
) -> Mapping[str, Any]:
    if model is None or not strict:
        return models[0]
    found = next((entry for entry in models if entry.get("id") == model), None)
    if found is None:
        served = ", ".join(repr(_text(entry.get("id"))) for entry in models[:5])
        raise RemoteRefused(f"{source} does not serve {model!r}; it serves {served}; {REMEDY}")
    return found


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _words(kinds: Any) -> str:
    named = [kinds] if isinstance(kinds, str) else list(kinds)
    return ", ".join(repr(str(kind)[:40]) for kind in named[:5]) or "of no known kind"


PAGES: tuple[tuple[str, Reading], ...] = (
    ("/info", _text_embeddings_inference),
    ("/v1/models", _list_of_models),
    ("/models", _list_of_models),
)
"""Where servers say what they are, in the order in which they are asked."""
