"""A model's graph: found in its folder, checked, and its engine on ONNX Runtime or OpenVINO."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bge_rerank_integrations.base.fork import cached_property
from bge_rerank_integrations.base.models import label_count
from bge_rerank_integrations.errors import CheckpointError, InvalidInputError
from bge_rerank_integrations.local.checkpoint import GRAPHS, SETTINGS, Checkpoint
from bge_rerank_integrations.local.device import check_precision
from bge_rerank_integrations.local.download import find_folder
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.model_config import padding_id
from bge_rerank_integrations.local.onnx_backend.encoder import GraphEncoder, GraphUse, Runtime
from bge_rerank_integrations.local.onnx_backend.file import GraphFile, read_graph_file
from bge_rerank_integrations.local.st_config import FolderSettings
from bge_rerank_integrations.local.text.tokenizer import read_tokenizer, token_types
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.types import Precision

GraphBackend = Literal["onnx", "openvino"]

IR = "openvino_model.xml"
"""The name of the file of OpenVINO's own format that optimum writes."""
DEFAULTS: dict[GraphBackend, tuple[str, ...]] = {
    "onnx": GRAPHS,
    "openvino": (f"openvino/{IR}", IR, *GRAPHS),
}
# letters, digits and these: no pattern that fetches other files, no way out of the folder
FILE_NAME = re.compile(r"(?:[\w-][\w.+-]*/)*[\w-][\w.+-]*\.(?:onnx|xml)")
FOLDERS = ("onnx", "openvino")
# The endings of a graph's own file, and of those of its weights.
ONNX_FILES = ("", "_data", "_data_[0-9]", "_data_[0-9][0-9]", ".data")


@dataclass(frozen=True)
class GraphCheckpoint(Checkpoint):
    """A model folder whose weights are those of a graph: `file_name`, or the one of usual name."""

    backend: GraphBackend
    file_name: str | None = None

    @cached_property
    def graph_path(self) -> Path | None:
        """The graph's file; None where the folder has none.

        Raises `InvalidInputError` for a `file_name` that the folder does not have, and
        `CheckpointError` for several graphs without a usual name among them.
        """
        names = DEFAULTS[self.backend]
        if self.file_name is not None:
            names = _places(self.file_name, self.backend)
        there = [self.folder / name for name in names if (self.folder / name).is_file()]
        if len(there) == 1 or (there and self.file_name is None):
            return there[0]
        kinds = ("onnx", "xml") if self.backend == "openvino" else ("onnx",)
        files = (f for kind in kinds for p in ("", "*/") for f in self.folder.glob(f"{p}*.{kind}"))
        others = sorted(file.relative_to(self.folder).as_posix() for file in files)
        if self.file_name is not None:
            problem = "it in two folders" if there else "no such graph"
            raise InvalidInputError(
                f"file_name is {self.file_name!r}, and {self.folder} has {problem}; "
                f"its graphs: {', '.join(others) or 'none'}"
            )
        if len(others) > 1:
            raise CheckpointError(
                f"{self.folder} has several graphs, none of them {' or '.join(names)}: choose one "
                f"by file_name, of {', '.join(others)}"
            )
        return self.folder / others[0] if others else None

    @cached_property
    def graph(self) -> GraphFile:
        """Raises as `graph_path`, and `CheckpointError` for none or one that cannot be read."""
        if self.graph_path is None:
            raise CheckpointError(
                f"{self.folder} has no {' or '.join(DEFAULTS[self.backend])}; write one where "
                f"torch is installed with bge-rerank export {self.model} FOLDER, name the graph by "
                "file_name, or use backend='torch'"
            )
        return read_graph_file(self.graph_path)

    @property
    def weight_files(self) -> set[Path]:
        return set(self.graph.files)


def open_graph_checkpoint(
    model: str, hub: HubOptions, backend: GraphBackend, file_name: str | None
) -> GraphCheckpoint:
    """A local folder, or a hub id of which one graph, tokenizer and config are downloaded.

    Raises `ModelNotFound` as `find_folder` does, and `InvalidInputError` for a `file_name` that is
    none.
    """
    if file_name is not None:
        choices = [_places(file_name, backend)]
    elif backend == "onnx":
        choices = [GRAPHS]
    else:  # one after the other: a repository may have both, each as large as the model
        choices = [DEFAULTS[backend][:2], GRAPHS]

    def is_complete(folder: Path) -> bool:
        graphs = ((folder / name).is_file() for names in choices for name in names)
        needed = ((folder / name).is_file() for name in ("config.json", "tokenizer.json"))
        return any(graphs) and all(needed)

    for names in choices:
        folder = find_folder(model, downloaded(names), hub, is_complete=is_complete)
        if any((folder / name).is_file() for name in names):
            break
    return GraphCheckpoint(model, folder, backend, file_name)


def downloaded(graphs: Sequence[str]) -> tuple[str, ...]:
    """Files of a download: settings, graphs, and the names of their weights next to them."""
    files = list(SETTINGS)
    for name in graphs:
        if name.endswith(".xml"):
            files += [name, name.removesuffix("xml") + "bin"]
        else:
            files += [name + end for end in ONNX_FILES]
    return tuple(files)


def _places(file_name: str, backend: GraphBackend) -> tuple[str, ...]:
    """Where in a model's folder a graph of this name may be."""
    named = isinstance(file_name, str) and FILE_NAME.fullmatch(file_name)
    if not named or (backend == "onnx" and file_name.endswith(".xml")):
        kinds = ".onnx" if backend == "onnx" else ".onnx or .xml"
        raise InvalidInputError(
            f"file_name is {file_name!r}; with backend={backend!r} it must be the name of a "
            f"{kinds} file in the model's folder, such as 'onnx/model_quantized.onnx'"
        )
    if "/" in file_name:
        return (file_name,)
    return (file_name, *(f"{folder}/{file_name}" for folder in FOLDERS))


def import_runtime(backend: GraphBackend) -> Callable[[GraphFile], Runtime]:
    """The loader of a graph; raises `ModuleNotFoundError` where the runtime is not installed."""
    if backend == "onnx":
        from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime

        return OnnxRuntime
    from bge_rerank_integrations.local.onnx_backend.openvino import OpenVino

    return OpenVino


def load_engine(
    checkpoint: GraphCheckpoint, settings: FolderSettings, start: Callable[[GraphFile], Runtime]
) -> Engine:
    """The engine of the checkpoint's graph, in the runtime that `start` gives.

    Raises `CheckpointError` for a graph whose tables are not as large as the config says: a runtime
    may read past a table's end without an error.
    """
    config, model, graph = checkpoint.config, checkpoint.model, checkpoint.graph
    for name in ("vocab_size", "max_position_embeddings"):
        rows = config.whole(name)
        if rows not in graph.tables:
            raise CheckpointError(
                f"{graph.path} has no table of {rows} rows, the {name} in config.json of {model}: "
                f"they belong to different models, or the graph has no such table, as "
                "encoders with relative positions, and is not supported"
            )
    runtime, types = start(graph), token_types(config)
    if not types and "token_type_ids" in runtime.inputs:
        why = f"{graph.path} has an input for token types, and with this value the model has none"
        config.refuse("type_vocab_size", why)
    use = GraphUse(
        output=settings.output,
        vocabulary=config.whole("vocab_size"),
        padding=padding_id(config),
        segments=types > 1,
        labels=label_count(config) if settings.output == "logit" else 1,
    )
    tokenizer = read_tokenizer(checkpoint, lowercase=settings.lowercase)
    return Engine(model, checkpoint.fingerprint, tokenizer, GraphEncoder(runtime, graph, use))


def check_graph_precision(given: Precision, graph: GraphFile) -> list[str]:
    """Reasons for the plan; raises `InvalidInputError` for a format more exact than the graph's."""
    check_precision(given)
    has = graph.number_format
    if given in ("auto", has):
        return []
    if has == "fp32":
        return [f"precision fp32: the graph has it, and {given} is less exact"]
    raise InvalidInputError(
        f"precision is {given!r}, and {graph.path} is a graph in {has}: leave precision out, or "
        "export the model with --dtype fp32"
    )
