"""Recognising a server by its information page, and testing that it serves a reranker.

Both work on values: `server.py` sends the requests, and puts the server's name before the messages
of errors. The test scores two sentences against each other: an embedding model is symmetric and
gives 1 for a sentence and itself, and a switch between logits and probabilities has an effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bge_rerank_integrations.errors import RemoteAnswerError, RemoteRefused, UnsupportedModel
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect
from bge_rerank_integrations.remote.redaction import quote_name
from bge_rerank_integrations.types import FloatArray

SENTENCES = (
    "The giant panda is a bear that lives in the mountains of China and eats bamboo.",
    "Water boils at one hundred degrees Celsius at the level of the sea.",
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's dialect, the name of its model, and how many passages a request may have."""

    dialect: str
    model: str | None
    max_documents: int


PageReader = Callable[[Any, str | None, str | None], ServerInfo | None]
"""Reads (page, requested model, key to hide); None if the page is of an unknown server."""


def _read_tei_info(page: Any, model: str | None, key: str | None) -> ServerInfo | None:
    if not isinstance(page, dict) or not {"model_id", "model_type"} <= page.keys():
        return None
    _check_kind(page["model_type"], "reranker", "text-embeddings-inference", key)
    served = _name(page["model_id"])
    # a path says where the server found the model, not which model it is
    if model is not None and served and served[0] not in "/." and served.lower() != model.lower():
        raise _other_model(model, [served], key)
    limit = page.get("max_client_batch_size")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        limit = DIALECTS["tei"].max_documents
    return ServerInfo("tei", served, limit)


def _read_model_list(page: Any, model: str | None, key: str | None) -> ServerInfo | None:
    """The model list of servers with OpenAI's routes; each server marks its entries differently."""
    listed = page.get("data") if isinstance(page, dict) else None
    models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    name = next(filter(None, map(_dialect_of_entry, models)), None)
    if name is None:
        return None
    dialect, entry = DIALECTS[name], models[0]
    if model is not None and name != "llama.cpp":  # llama.cpp accepts any name
        found = next((one for one in models if one.get("id") == model), None)
        if found is None:
            raise _other_model(model, [one.get("id") for one in models[:5]], key)
        entry = found
    kind = entry.get("capabilities") or entry.get("model_type")
    if kind is not None:
        _check_kind(kind, "rerank", name, key)
    return ServerInfo(name, _name(entry.get("id")), dialect.max_documents)


_OWNERS = {
    "vllm": "vllm-score",
    "llamacpp": "llama.cpp",
    "sglang": "sglang",
    "infinity": "infinity",
}


def _dialect_of_entry(entry: Mapping[str, Any]) -> str | None:
    owner = entry.get("owned_by")
    if isinstance(owner, str) and owner in _OWNERS:
        return _OWNERS[owner]
    return "xinference" if {"model_type", "address"} <= entry.keys() else None


def _check_kind(kind: Any, wanted: str, server: str, key: str | None) -> None:
    """`kind` is a name, a list of names, or an object whose keys are names."""
    named = [kind] if isinstance(kind, str) else kind if isinstance(kind, list | dict) else []
    if wanted not in named:
        kinds = ", ".join(quote_name(one, key) for one in list(named)[:5]) or "of an unknown kind"
        raise UnsupportedModel(
            f"is {server}, and its model is not a reranker but {kinds}; serve a reranker, or name "
            "the model that is one"
        )


def _other_model(model: str, served: Sequence[object], key: str | None) -> RemoteRefused:
    names = ", ".join(quote_name(name, key) for name in served)
    return RemoteRefused(
        f"does not serve {model!r}; it serves {names}; name that one, or pass the address as the "
        "model to use the server's own"
    )


def _name(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


PAGES: tuple[tuple[str, PageReader], ...] = (
    ("/info", _read_tei_info),
    ("/v1/models", _read_model_list),
    ("/models", _read_model_list),
)
"""The information pages, in the order in which they are requested."""


def settle_scale(
    dialect: Dialect,
    first: FloatArray | None,
    second: FloatArray | None,
    probabilities: FloatArray | None = None,
) -> Dialect:
    """The dialect, of probabilities if it has `generations` and this server gives no logits.

    Each array has the scores of both sentences as passages: `first` with the first sentence as the
    query, `second` with the second. `probabilities` are those of `first` if the server offers both
    scales. None is a request that was refused as too large. Raises `UnsupportedModel` if these are
    not a reranker's scores on that scale.
    """
    if first is None or second is None:
        raise RemoteAnswerError("refuses two short passages as too large")
    if _are_cosines(first, second):
        raise UnsupportedModel(
            "gives equal scores in both directions, and 1 for a sentence and itself: these are "
            "cosines of an embedding model, not a reranker's scores"
        )
    if dialect.scale == "logit":
        wrong = _not_logits(first, second, probabilities)
        if wrong is None:
            return dialect
        if not dialect.generations or probabilities is None or not _separate(probabilities):
            raise UnsupportedModel(wrong)
        return replace(dialect, scale="probability", logits=dialect.probabilities)
    if not _separate(first):
        raise UnsupportedModel(
            "gives a sentence with itself about the score that it gives it with an unrelated one: "
            "these are not the probabilities of a reranker; they may be logits"
        )
    return dialect


def _separate(scores: FloatArray) -> bool:
    """Whether these are probabilities, and the odds of the first are seven times the other's."""
    itself, other = map(float, scores)
    return 0 <= other <= 1 and 0 <= itself <= 1 and itself * (1 - other) > 7 * other * (1 - itself)


def _are_cosines(first: FloatArray, second: FloatArray) -> bool:
    (self_a, a_b), (b_a, self_b) = first.tolist(), second.tolist()
    # Half precision rounds a cosine of 1 by up to 0.004. Rerankers are not symmetric to four digits
    # unless both scores are near 0.
    ones = abs(self_a - 1) < 0.01 and abs(self_b - 1) < 0.01
    return bool(ones and abs(a_b) > 0.05 and abs(a_b - b_a) <= 1e-4 * abs(a_b))


def _not_logits(
    first: FloatArray, second: FloatArray, probabilities: FloatArray | None
) -> str | None:
    """Why the scores cannot be logits; None if they can."""
    logits = first.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-logits))  # in half precision, both vary by a few percent
    if probabilities is None:
        scores = np.concatenate([first, second])
        if scores.min() >= 0 and scores.max() <= 1:
            return (
                "gives scores between 0 and 1 where its dialect has logits: its model ends in an "
                "unknown activation"
            )
    elif np.abs(probabilities - logits).max() < 1e-6:
        # a model whose config has no activation gives logits both times
        if np.abs(logits).max() <= 1:
            return (
                "gives the same scores for logits and for probabilities: it serves an embedding "
                "model, or is too old to support both"
            )
    elif (np.abs(probabilities - sigmoid) > np.minimum(0.02, 0.2 * sigmoid)).any():
        return (
            "gives probabilities that are not the sigmoid of its logits: its model has another "
            "activation than a reranker, or the server leaves out a part of the model for logits"
        )
    return None
