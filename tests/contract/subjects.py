"""Every scorer that exists, as something the laws can load with any options."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from bge_rerank_integrations import Scorer, load_scorer
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.types import Backend, GraphFormat
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from bge_rerank_integrations.wrappers.draft import DraftedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from bge_rerank_integrations.wrappers.windows import WindowedScorer
from tests.fakes import WordOverlapScorer
from tests.local.llm import tiny_llms
from tests.remote.serving import Served
from tests.remote.stand_ins import MODEL, MODELS, STAND_INS


class Load(Protocol):
    """Gives the scorer under test; two calls give two scorers of the same model."""

    def __call__(self, **options: Any) -> Scorer: ...
    def __hash__(self) -> int: ...


FOLDERS = {
    "xlmr": "reranker_base",
    "xlmr-8k": "reranker_m3",
    "bert": "bert_reranker",
    "bert-cls-embedder": "bge_embedder",
    "bert-mean-embedder": "mean_embedder",
    "xlmr-embedder": "m3_embedder",
}
"""Subjects that are one of the folders of `tests/conftest.py`."""

LIBRARY = ("distilbert", "electra", "mpnet-embedder")
"""Subjects that only transformers' own forward can run."""

LLMS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "minicpm": {"cutoff_layers": [3, 5]},
    "gemma2-window": {"compress_ratio": 2, "compress_layers": [2]},
}
"""LLM rerankers of `tests/local/llm/tiny_llms.py`, with options of their own."""

ON_TWO = {"xlmr-on-two": "xlmr", "gemma-on-two": "gemma"}
"""Subjects that are another one on two devices, in batches so small that both get some."""

GRAPHS: dict[str, tuple[str, Backend, GraphFormat]] = {
    "xlmr-onnx": ("reranker_base", "onnx", "fp32"),
    "bert-onnx-int8": ("bert_reranker", "onnx", "int8"),
    "bert-mean-embedder-onnx": ("mean_embedder", "onnx", "fp32"),
    "bert-openvino": ("bert_reranker", "openvino", "fp32"),
    "xlmr-openvino-int8": ("reranker_base", "openvino", "int8"),
    "xlmr-embedder-openvino": ("m3_embedder", "openvino", "fp32"),
}
"""Subjects that are an exported folder of `tests/conftest.py`, in a runtime of ONNX graphs."""

WRAPPED: dict[str, Callable[[Scorer, Path], Scorer]] = {
    "xlmr-cached": lambda scorer, folder: CachedScorer(scorer, MemoryStore()),
    "xlmr-cached-file": lambda scorer, folder: CachedScorer(scorer, SqliteStore(folder / "cache")),
    "xlmr-drafted": lambda scorer, folder: DraftedScorer(scorer, scorer),
    "xlmr-windows": lambda scorer, folder: WindowedScorer(scorer, overlap=8),
}
"""Scorers around an XLM-R that reads 64 tokens unless told otherwise; a subject has one folder."""

OFFLINE = ("offline", "offline-embedder")
TORCH = (*FOLDERS, *LIBRARY, *LLMS, *ON_TWO)
LOCAL = (*TORCH, *GRAPHS, *OFFLINE, *WRAPPED)
REMOTE = tuple(f"remote-{dialect}" for dialect in STAND_INS)
NAMES = ("word-overlap", *LOCAL, *REMOTE)


def loading(  # noqa: PLR0911 - one way for each kind of subject
    name: str, request: pytest.FixtureRequest, folders: pytest.TempPathFactory
) -> Load:
    if name == "word-overlap":
        return lambda **options: WordOverlapScorer()
    if name in REMOTE:
        dialect = name.removeprefix("remote-")
        served = Served(STAND_INS[dialect])
        request.addfinalizer(served.close)
        model = MODELS.get(dialect, MODEL)
        return lambda **options: load_scorer(model, base_url=served.url, dialect=dialect, **options)
    if name in OFFLINE:
        return lambda **options: load_scorer(name, **options)
    folder: Path
    cpu: dict[str, Any] = {"device": "cpu"}
    if name in WRAPPED:
        folder, shared = request.getfixturevalue("reranker_base"), folders.mktemp("wrapped")
        short = {"device": "cpu", "max_length": 64}
        return lambda **options: WRAPPED[name](
            load_scorer(str(folder), **{**short, **options}), shared
        )
    if name in GRAPHS:
        model, backend, dtype = GRAPHS[name]
        source: Path = request.getfixturevalue(model)
        out = folders.mktemp("graph") / name
        folder = export_onnx(str(source), out, dtype=dtype).folder
        return lambda **options: load_scorer(str(folder), backend=backend, **options)
    if name in ON_TWO:
        # a CPU may be named twice: two threads then take the batches of one engine
        two: dict[str, Any] = {"device": ["cpu", "cpu"], "max_batch_tokens": 64}
        load = loading(ON_TWO[name], request, folders)
        return lambda **options: load(**{**two, **options})
    if name in LLMS:
        folder = tiny_llms.MODELS[name](folders.mktemp("llm"))
        # by default bf16 where the CPU has it, in which a batch moves a score by up to 0.02
        exact = {"precision": "fp32", **LLMS[name]}
        return lambda **options: load_scorer(str(folder), **{**cpu, **exact, **options})
    if name in LIBRARY:
        folder = build_library_model(name, folders.mktemp("library"), request)
    else:
        folder = request.getfixturevalue(FOLDERS[name])
    return lambda **options: load_scorer(str(folder), **{**cpu, **options})


def build_library_model(name: str, folder: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny model of an architecture that the flat forward does not know."""
    if name == "mpnet-embedder":
        # its positions count from behind padding id 1, which is XLM-R's
        tokens: Path = request.getfixturevalue("reranker_base")
        pooled: Path = request.getfixturevalue("mean_embedder")
        shutil.copytree(pooled / "1_Pooling", folder / "1_Pooling")
        shutil.copy(pooled / "modules.json", folder)
    else:
        tokens = request.getfixturevalue("bert_reranker")
    vocabulary = json.loads((tokens / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens / file, folder)
    model = _library_model(name, vocabulary)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            draw = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * draw if "LayerNorm.weight" in key else 0.3 * draw)
    model.save_pretrained(folder)
    return folder


def _library_model(name: str, vocabulary: int) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    one_label: dict[str, Any] = {"num_labels": 1}
    if name == "electra":
        return ElectraForSequenceClassification(
            ElectraConfig(**sizes, **one_label, embedding_size=16, max_position_embeddings=512)
        )
    if name == "mpnet-embedder":
        return MPNetModel(MPNetConfig(**sizes, max_position_embeddings=514))
    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=vocabulary,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=512,
            **one_label,
        )
    )
