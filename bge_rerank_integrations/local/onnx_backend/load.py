"""From a model's ONNX graph to a scorer, on ONNX Runtime or OpenVINO: no torch."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from bge_rerank_integrations.base.models import LLM_FAMILIES, Family
from bge_rerank_integrations.errors import CheckpointError, InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import GRAPHS, SETTINGS, Checkpoint
from bge_rerank_integrations.local.device import check_precision
from bge_rerank_integrations.local.download import HubOptions, find_folder
from bge_rerank_integrations.local.engine import Engine, shared_engine
from bge_rerank_integrations.local.load_request import LoadRequest, refuse_llm_options
from bge_rerank_integrations.local.model_config import (
    padding_id,
    position_limit,
    read_size,
)
from bge_rerank_integrations.local.onnx_backend.encoder import (
    GraphEncoder,
    GraphUse,
    Output,
    Runtime,
)
from bge_rerank_integrations.local.onnx_backend.file import OnnxFile, read_onnx_file
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.st_config import read_settings
from bge_rerank_integrations.local.text.bi_encoder import bi_encoding
from bge_rerank_integrations.local.text.checkpoint_tokenizer import read_tokenizer
from bge_rerank_integrations.local.text.cross_encoder import cross_encoding

GraphBackend = Literal["onnx", "openvino"]

# A graph, and the names that its weights have beside it. No pattern may bring anything else.
DOWNLOADED = (
    *SETTINGS,
    *(
        f"{graph}{rest}"
        for graph in GRAPHS
        for rest in ("", "_data", "_data_[0-9]", "_data_[0-9][0-9]", ".data")
    ),
)


class OnnxCheckpoint(Checkpoint):
    """A model folder whose weights are those of its ONNX graph."""

    @cached_property
    def graph(self) -> OnnxFile:
        """Raises `CheckpointError` if there is none, or none that can be read safely."""
        for name in GRAPHS:
            if (self.folder / name).is_file():
                return read_onnx_file(self.folder / name)
        raise CheckpointError(
            f"{self.folder} has no {' or '.join(GRAPHS)}; write one where torch is installed with "
            f"bge-rerank export {self.model} FOLDER, or use backend='torch'"
        )

    @property
    def has_graph(self) -> bool:
        return any((self.folder / name).is_file() for name in GRAPHS)

    @property
    def weight_files(self) -> set[Path]:
        return set(self.graph.files)


def open_onnx_checkpoint(model: str, hub: HubOptions) -> OnnxCheckpoint:
    """A local folder, or a hub id of which the graph, tokenizer and config are downloaded.

    Raises `ModelNotFound` as `find_folder` does.
    """
    return OnnxCheckpoint(model, find_folder(model, DOWNLOADED, hub))


def load_onnx_scorer(
    checkpoint: OnnxCheckpoint, request: LoadRequest, backend: GraphBackend, *, reason: str
) -> LocalScorer:
    """Load the checkpoint's graph, or share it if this process has it in that runtime already.

    `reason` opens the plan: why this backend. Raises `UnsupportedModel` for a model that is no
    encoder, `CheckpointError` for a graph of another model, and `InvalidInputError` for an option
    that the backend does not have.
    """
    start = import_runtime(backend)
    config, model = checkpoint.config, checkpoint.model
    settings = read_settings(checkpoint, request.text.label)
    if settings.family in LLM_FAMILIES:
        raise UnsupportedModel(
            f"{model} is an LLM reranker, and backend {backend!r} runs encoders: use "
            "backend='torch'"
        )
    refuse_llm_options(model, request)
    if request.text.label is not None:
        raise InvalidInputError(
            f"label is {request.text.label!r}; backend {backend!r} runs models of one label: use "
            "backend='torch'"
        )
    if request.device not in (None, "auto", "cpu"):
        raise InvalidInputError(
            f"device is {request.device!r}; backend {backend!r} runs on the CPU only: leave device "
            "out, or use backend='torch'"
        )
    output: Output = settings.output
    reasons = [f"backend {backend}: {reason}", *_precision_reasons(request, checkpoint.graph)]
    limit = position_limit(config, model)

    def load() -> Engine:
        use = _graph_use(checkpoint, output)
        tokenizer = read_tokenizer(checkpoint, lowercase=settings.lowercase)
        forward = GraphEncoder(start(checkpoint.graph), checkpoint.graph, use)
        return Engine(model, checkpoint.fingerprint, tokenizer, forward)

    engine = shared_engine((checkpoint.signature, backend, output), load)
    method = cross_encoding if settings.family is Family.ENCODER else bi_encoding
    return LocalScorer(
        engine,
        method(engine.tokenizer, request.text, settings, limit=limit),
        limits=request.limits,
        show_progress=request.show_progress,
        reasons=reasons,
    )


def import_runtime(backend: GraphBackend) -> Callable[[OnnxFile], Runtime]:
    """What loads a graph; raises `ModuleNotFoundError` where the runtime is not installed."""
    if backend == "onnx":
        from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime

        return OnnxRuntime
    from bge_rerank_integrations.local.onnx_backend.openvino import OpenVino

    return OpenVino


def _precision_reasons(request: LoadRequest, graph: OnnxFile) -> list[str]:
    """Raise `InvalidInputError` for a number format more exact than the graph's."""
    check_precision(request.precision)
    asked, has = request.precision, graph.number_format
    if asked in ("auto", has):
        return []
    if has == "fp32":
        return [f"precision fp32: the graph has it, and {asked} is less exact"]
    raise InvalidInputError(
        f"precision is {asked!r}, and {graph.path} is a graph in {has}: leave precision out, or "
        "export the model with --dtype fp32"
    )


def _graph_use(checkpoint: OnnxCheckpoint, output: Output) -> GraphUse:
    """What the config says of the graph; raises `CheckpointError` where the graph says otherwise.

    A runtime may read beyond a table without a word, so the tables are held against the config.
    """
    config, model = checkpoint.config, checkpoint.model
    for name in ("vocab_size", "max_position_embeddings"):
        rows = read_size(config, name, model)
        if rows not in checkpoint.graph.tables:
            raise CheckpointError(
                f"{checkpoint.graph.path} has no table of {rows} rows, which config.json of "
                f"{model} says as {name}: they belong to different models, or the graph has no "
                "such table, as encoders with relative positions, and is not supported"
            )
    return GraphUse(
        output=output,
        vocabulary=read_size(config, "vocab_size", model),
        padding=padding_id(config),
        segments=int(config.get("type_vocab_size", 2)) > 1,
    )
