"""The options that `load_scorer` takes: their types, and where each has a meaning."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.errors import InvalidInputError, ModelNotFound
from bge_rerank_integrations.types import (
    Backend,
    HeadIndexing,
    Precision,
    SpecialTokens,
    Truncation,
)


class RemoteOptions(TypedDict, total=False):
    """The options of `load_scorer` for a model on a server."""

    api_key: str | None
    dialect: str
    deployment: str | None
    connect_timeout: float
    read_timeout: float
    request_timeout: float
    max_retries: int
    max_concurrency: int


class ModelOptions(TypedDict, total=False):
    """The options of `load_scorer` for a model that runs in this process, apart from where."""

    precision: Precision
    max_length: int | None
    query_max_length: int | None
    query_instruction: str | None
    passage_instruction: str | None
    special_tokens: SpecialTokens
    prompt: str | None
    truncation: Truncation
    label: int | str | None
    cutoff_layers: Sequence[int] | None
    compress_ratio: int
    compress_layers: Sequence[int]
    head_indexing: HeadIndexing
    batch_size: int | None
    max_batch_tokens: int | None
    revision: str | None
    cache_dir: str | None
    local_files_only: bool
    token: str | None
    show_progress: bool
    file_name: str | None


class LocalOptions(ModelOptions, total=False):
    """The options of `load_scorer` for a model that runs in this process."""

    backend: Backend
    device: str | Sequence[str] | None


class ScorerOptions(LocalOptions, RemoteOptions, total=False):
    """The keyword options of `load_scorer`, for functions that hand them on."""

    base_url: str | None


def read_model(model: str | Path) -> str:
    """The model as text; raises `InvalidInputError` for what names none.

    A `Path` must be a folder: raises `ModelNotFound` where it is not, and asks no hub for it.
    """
    if isinstance(model, Path):
        if not model.expanduser().is_dir():
            raise ModelNotFound(f"no folder {model} (looked for it in {Path.cwd()})")
        model = str(model)
    if not isinstance(model, str) or not model.strip():
        given = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise InvalidInputError(
            f"model is {given}; it must be a hub id, a folder, an address, 'offline' or "
            "'offline-embedder'"
        )
    return model


def refuse_strangers(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` for an option that has no meaning where the model runs."""
    remote = given["base_url"] is not None or is_address(given["model"])
    if given["base_url"] is not None and is_address(given["model"]):
        raise InvalidInputError("model and base_url are both addresses; give one server")
    for name, default in defaults.items():
        if name in ("base_url", "batch_size") or given[name] == default:
            continue
        if (name in RemoteOptions.__annotations__) != remote:
            # the value is not shown: it may be a token or a key
            raise InvalidInputError(
                f"{name} is for models that run in this process, and this one runs on a server: "
                "leave it out"
                if remote
                else f"{name} is for models on a server: give its base_url as well, or leave it out"
            )


def with_options_of(
    loader: Callable[..., object], function: Callable[..., object]
) -> inspect.Signature:
    """The signature of a function that hands its last options on, with these written out."""
    own, handed_on = inspect.signature(function), inspect.signature(loader)
    parameters = {
        name: parameter
        for name, parameter in {**own.parameters, **handed_on.parameters}.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    return own.replace(parameters=list(parameters.values()))
